//! Paths, depth, limits, sensitivity and updates.

use inspect::AsDebug;
use inspect::AsHex;
use inspect::Error;
use inspect::Format;
use inspect::Inspect;
use inspect::Limits;
use inspect::Node;
use inspect::Query;
use inspect::Request;
use inspect::Sensitivity;
use inspect::Unit;
use inspect::Value;
use inspect::ValueKind;
use inspect::adhoc;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

/// a: {b: {c: 1}, d: 2}, e: 3
fn sample() -> impl Inspect {
    adhoc(|request| {
        request
            .respond()
            .child("a", |request| {
                request
                    .respond()
                    .child("b", |request| {
                        request.respond().field("c", &1u32);
                    })
                    .field("d", &2u32);
            })
            .field("e", &3u32);
    })
}

fn at(path: &str, root: &dyn Inspect) -> String {
    Query::new(path).evaluate(root).now().to_string()
}

fn update_now(path: &str, value: &str, root: &dyn Inspect) -> Result<Value, Error> {
    let query = Query::new(path).with_update(value);
    query.evaluate(root).now().into_updated()
}

#[test]
fn a_path_selects_a_node() {
    let root = sample();
    assert_eq!(at("", &root), "{a: {b: {c: 1}, d: 2}, e: 3}");
    assert_eq!(at("a/b", &root), "{c: 1}");
    assert_eq!(at("//a///b/c/", &root), "1");
    assert_eq!(at("a/x", &root), "<error: not found>");
    assert_eq!(at("e/x", &root), "<error: not a directory>");
}

#[test]
fn depth_counts_directories_below_the_path() {
    let root = sample();
    let at = |path, depth| {
        Query::new(path)
            .depth(depth)
            .evaluate(&root)
            .now()
            .to_string()
    };
    assert_eq!(at("", 0), "{a: _, e: 3}");
    assert_eq!(at("", 1), "{a: {b: _, d: 2}, e: 3}");
    assert_eq!(at("a", 0), "{b: _, d: 2}");
    assert_eq!(at("a", u32::MAX), "{b: {c: 1}, d: 2}");
}

#[test]
fn only_what_is_asked_for_is_evaluated() {
    let root = adhoc(|request| {
        request
            .respond()
            .field("wanted", &1u32)
            .child("other", |_| panic!("nobody has asked"));
    });
    assert_eq!(at("wanted", &root), "1");
}

#[test]
fn the_first_entry_of_a_name_is_meant() {
    let root = adhoc(|request| {
        request.respond().field("x", &None::<u32>).field("x", &2u32);
    });
    assert_eq!(at("x", &root), "<error: not found>");
    assert_eq!(at("", &root), "{x: 2}");
}

#[test]
fn names_can_always_be_addressed() {
    let root = BTreeMap::from([("a/b", 1u32), ("", 2)]);
    assert_eq!(at("", &root), "{_: 2, a_b: 1}");
    assert_eq!(at("a_b", &root), "1");
    assert_eq!(at("_", &root), "2");
}

#[test]
fn merged_directories_are_one() {
    let inner = adhoc(|request| {
        request.respond().field("y", &2u32);
    });
    let root = adhoc(|request| {
        request
            .respond()
            .field("x", &1u32)
            .merge(&inner)
            .field("z", &3u32);
    });
    assert_eq!(at("", &root), "{x: 1, y: 2, z: 3}");
    assert_eq!(at("y", &root), "2");
    assert_eq!(at("z", &root), "3");
    assert_eq!(at("w", &root), "<error: not found>");
}

#[test]
fn a_dropped_request_is_unresolved() {
    assert_eq!(at("", &adhoc(|_| ())), "<error: no answer in time>");
}

#[test]
fn numbers_have_radix_and_unit() {
    let root = adhoc(|request| {
        request
            .respond()
            .hex("hex", &[0x10u64, 0xff])
            .unit("size", Unit::Bytes, &4096u64)
            .formatted("bits", Format::BINARY, &5u8)
            .formatted("text", Format::HEX, "16")
            .field("minus", &AsHex(-16i32))
            .debug("debug", &Some("x"));
    });
    assert_eq!(
        at("", &root),
        r#"{hex: {0: 0x10, 1: 0xff}, size: 4096 bytes, bits: 0b101, text: "16", minus: -0x10, debug: "Some(\"x\")"}"#
    );
}

#[test]
fn a_tree_has_a_line_per_value() {
    let root = adhoc(|request| {
        request
            .respond()
            .field("name", "a\u{1b}[2Jb")
            .child("empty", |request| _ = request.respond())
            .child("dir", |request| {
                request.respond().field("x\n", &1u8);
            });
    });
    let text = format!("{:#}", Query::new("").evaluate(&root).now());
    assert_eq!(text, "name: \"a\\u{1b}[2Jb\"\nempty: {}\ndir:\n  x\\n: 1\n");
}

#[test]
fn large_sizes_and_times_are_also_shown_for_people() {
    let lines = |unit, number: u64| {
        let root = adhoc(move |request| {
            request.respond().unit("x", unit, &number);
        });
        format!("{:#}", Query::new("").evaluate(&root).now())
    };
    assert_eq!(lines(Unit::Bytes, 512), "x: 512 bytes\n");
    assert_eq!(
        lines(Unit::Bytes, 67_108_864),
        "x: 67108864 bytes (64.0 MiB)\n"
    );
    assert_eq!(lines(Unit::Pages, 3), "x: 3 pages (12.0 KiB)\n");
    assert_eq!(lines(Unit::Nanoseconds, 999), "x: 999 ns\n");
    assert_eq!(
        lines(Unit::Nanoseconds, 7_119_376_040),
        "x: 7119376040 ns (7.1 s)\n"
    );
    assert_eq!(lines(Unit::ReferenceTicks, 25), "x: 25 100ns (2.5 us)\n");
    assert_eq!(lines(Unit::Milliseconds, 900), "x: 900 ms\n");
    assert_eq!(lines(Unit::Hertz, 1_000_000), "x: 1000000 Hz\n");
}

fn levels() -> impl Inspect {
    adhoc(|request| {
        let mut response = request.respond();
        response.field("unsaid", &1u32);
        response.sensitivity(Sensitivity::Safe);
        response.field("list", &[1u32, 2]);
        response.child("dir", |request| {
            request
                .respond()
                .field("unsaid", &1u32)
                .sensitivity(Sensitivity::Safe)
                .field("safe", &2u32);
        });
        response.sensitivity(Sensitivity::Sensitive);
        response.child("secret", |request| {
            request
                .respond()
                .sensitivity(Sensitivity::Safe)
                .field("safe", &3u32);
        });
    })
}

#[test]
fn only_safe_entries_below_safe_entries_are_shown_to_anybody() {
    let root = levels();
    let at = |path| {
        let query = Query::new(path).max_sensitivity(Sensitivity::Safe);
        query.evaluate(&root).now().to_string()
    };
    assert_eq!(at(""), "{list: {0: 1, 1: 2}, dir: {safe: 2}}");
    assert_eq!(at("unsaid"), "<error: not found>");
    assert_eq!(at("dir/unsaid"), "<error: not found>");
    assert_eq!(at("secret/safe"), "<error: not found>");
    assert_eq!(at("dir/safe"), "2");
}

#[test]
fn items_of_a_root_that_is_a_container_are_not_safe() {
    let query = Query::new("").max_sensitivity(Sensitivity::Safe);
    assert_eq!(query.evaluate(&[1u32]).now().to_string(), "{}");
}

#[test]
fn the_number_of_nodes_is_limited() {
    let items: Vec<u32> = (0..1000).collect();
    let limits = Limits {
        nodes: 3,
        bytes: 1000,
    };
    let node = Query::new("").limits(limits).evaluate(&items).now();
    let cut = "{0: 0, 1: 1, 2: 2, ...: <error: truncated: a limit of the query was reached>}";
    assert_eq!(node.to_string(), cut);
}

#[test]
fn the_number_of_bytes_is_limited() {
    let limits = Limits {
        nodes: 100,
        bytes: 20,
    };
    let items = ["x".repeat(100), "y".into()];
    let node = Query::new("").limits(limits).evaluate(&items).now();
    assert_eq!(node.get("0"), Some(&Node::Failed(Error::Truncated)));
    assert_eq!(node.get("1"), None);
    assert_eq!(node.get("..."), Some(&Node::Failed(Error::Truncated)));
}

#[test]
fn recursion_ends_at_the_deepest_level() {
    struct Endless;
    impl Inspect for Endless {
        fn inspect(&self, request: Request<'_>) {
            request.respond().field("x", self);
        }
    }
    let mut node = &Query::new("").evaluate(&Endless).now();
    let mut levels = 0;
    while let Some(next) = node.get("x") {
        node = next;
        levels += 1;
    }
    assert_eq!(node, &Node::Unevaluated);
    assert_eq!(levels, inspect::MAX_LEVELS + 1);
}

struct Setting(AtomicU32);

impl Inspect for Setting {
    fn inspect(&self, request: Request<'_>) {
        let current = self.0.load(Ordering::Relaxed);
        request.update(current, |text| {
            let value: u32 = text.parse()?;
            self.0.store(value, Ordering::Relaxed);
            Ok::<_, std::num::ParseIntError>(value)
        });
    }
}

#[test]
fn values_that_allow_it_can_be_changed() {
    let setting = Setting(AtomicU32::new(1));
    let root = adhoc(|request| {
        request
            .respond()
            .field("setting", &setting)
            .field("fixed", &2u32);
    });
    assert_eq!(at("", &root), "{setting: 1, fixed: 2}");
    assert_eq!(update_now("setting", "7", &root), Ok(Value::from(7u32)));
    assert_eq!(at("setting", &root), "7");
    assert_eq!(
        update_now("setting", "seven", &root),
        Err(Error::Refused("invalid digit found in string".into()))
    );
    assert_eq!(update_now("fixed", "1", &root), Err(Error::Immutable));
    assert_eq!(update_now("", "1", &root), Err(Error::Immutable));
    assert_eq!(update_now("nothing", "1", &root), Err(Error::NotFound));
    assert_eq!(update_now("fixed/x", "1", &root), Err(Error::NotADirectory));
}

#[test]
fn a_hidden_value_cannot_be_changed() {
    let setting = Setting(AtomicU32::new(1));
    let root = adhoc(|request| {
        request.respond().field("setting", &setting);
    });
    let query = Query::new("setting")
        .max_sensitivity(Sensitivity::Safe)
        .with_update("7");
    let result = query.evaluate(&root).now().into_updated();
    assert_eq!(result, Err(Error::NotFound));
    assert_eq!(setting.0.load(Ordering::Relaxed), 1);
}

#[test]
fn an_iterator_is_a_directory() {
    let root = adhoc(|request| {
        let items = (1..3).map(|index| (format!("item{index}"), AsDebug(index)));
        inspect::iter(items).inspect(request);
    });
    assert_eq!(at("", &root), r#"{item1: "1", item2: "2"}"#);
    assert_eq!(at("item2", &root), r#""2""#);
}

proptest! {
    #[test]
    fn any_path_is_answered(path in "[/abcdex.]{0,40}|\\PC{0,40}", depth: u32) {
        let root = sample();
        let node = Query::new(path.as_str()).depth(depth).evaluate(&root).now();
        let whole = Query::new("").evaluate(&root).now();
        // Slashes do not count, and a lookup in the whole tree finds the same.
        match whole.get(&path) {
            Some(found) if depth > 3 => prop_assert_eq!(&node, found),
            Some(_) => {}
            None => prop_assert!(matches!(
                node,
                Node::Failed(Error::NotFound | Error::NotADirectory)
            )),
        }
    }

    #[test]
    fn printed_text_never_has_control_characters(text in any::<String>()) {
        let root = BTreeMap::from([(text.clone(), Value::new(ValueKind::String(text)))]);
        let node = Query::new("").evaluate(&root).now();
        prop_assert!(!node.to_string().contains(char::is_control));
    }
}
