//! `#[derive(Inspect)]`.

use inspect::Inspect;
use inspect::Query;
use inspect::Response;
use inspect::Sensitivity;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

fn shown(root: &dyn Inspect) -> String {
    Query::new("").evaluate(root).now().to_string()
}

#[derive(Inspect)]
struct Inner {
    value: u32,
}

#[derive(Debug)]
struct Opaque;

#[derive(Inspect)]
struct All<'a, T> {
    plain: u32,
    #[inspect(hex, rename = "other")]
    hex: u64,
    #[inspect(binary)]
    bits: u8,
    #[inspect(unit = "bytes", counter)]
    size: u64,
    #[inspect(skip)]
    _skipped: Opaque,
    #[inspect(debug)]
    debug: Opaque,
    #[inspect(display)]
    display: std::net::Ipv4Addr,
    #[inspect(with = "|x: &Opaque| format!(\"{x:?}!\")")]
    with: Opaque,
    #[inspect(flatten)]
    flat: Inner,
    inner: Arc<Mutex<Inner>>,
    time: Duration,
    text: &'a str,
    generic: T,
    nothing: Option<u32>,
    r#type: bool,
}

#[test]
fn a_structure_is_a_directory() {
    let all = All {
        plain: 1,
        hex: 16,
        bits: 2,
        size: 3,
        _skipped: Opaque,
        debug: Opaque,
        display: [127, 0, 0, 1].into(),
        with: Opaque,
        flat: Inner { value: 4 },
        inner: Arc::new(Mutex::new(Inner { value: 5 })),
        time: Duration::from_micros(6),
        text: "seven",
        generic: 8u8,
        nothing: None,
        r#type: true,
    };
    assert_eq!(
        shown(&all),
        "{plain: 1, other: 0x10, bits: 0b10, size: 3 bytes, debug: \"Opaque\", \
         display: \"127.0.0.1\", with: \"Opaque!\", value: 4, inner: {value: 5}, \
         time: 6000 ns, text: \"seven\", generic: 8, type: true}"
    );
    assert_eq!(Query::new("value").evaluate(&all).now().as_u64(), Some(4));
}

#[derive(Inspect)]
struct Tuple(u32, #[inspect(skip)] (), u32);

#[derive(Inspect)]
#[inspect(transparent)]
struct Address(#[inspect(hex)] u64);

#[derive(Inspect)]
struct Unit;

#[test]
fn tuples_and_transparent_types() {
    assert_eq!(shown(&Tuple(1, (), 2)), "{0: 1, 2: 2}");
    assert_eq!(shown(&Address(255)), "0xff");
    assert_eq!(shown(&Unit), "{}");
}

#[derive(Inspect)]
enum State {
    WaitingForStart,
    #[inspect(rename = "up")]
    Started,
}

#[derive(Inspect)]
enum Shape {
    Nothing,
    Circle { radius: u32 },
    Pair(u32, u32),
}

#[expect(dead_code, reason = "must compile")]
#[derive(Inspect)]
enum Never {}

#[test]
fn enumerations() {
    assert_eq!(shown(&State::WaitingForStart), "\"waiting_for_start\"");
    assert_eq!(shown(&State::Started), "\"up\"");
    assert_eq!(shown(&Shape::Nothing), "{variant: \"nothing\"}");
    let circle = Shape::Circle { radius: 2 };
    assert_eq!(shown(&circle), "{variant: \"circle\", radius: 2}");
    assert_eq!(shown(&Shape::Pair(1, 2)), "{variant: \"pair\", 0: 1, 1: 2}");
}

#[derive(Debug, Inspect)]
#[inspect(debug)]
struct Text<T> {
    _x: T,
}

#[derive(Inspect)]
#[inspect(safe, extra = "Self::more")]
struct Mixed {
    open: u32,
    #[inspect(sensitive)]
    secret: u32,
}

impl Mixed {
    fn more(&self, response: &mut Response<'_>) {
        response.field("sum", &(self.open + self.secret));
    }
}

#[test]
fn whole_types_as_text() {
    assert_eq!(shown(&Text { _x: 1 }), "\"Text { _x: 1 }\"");
}

#[test]
fn fields_follow_the_type_unless_they_say_otherwise() {
    let mixed = Mixed { open: 1, secret: 2 };
    assert_eq!(shown(&mixed), "{open: 1, secret: 2, sum: 3}");
    let node = Query::new("")
        .max_sensitivity(Sensitivity::Safe)
        .evaluate(&mixed)
        .now();
    // `extra` says itself who may see its entries.
    assert_eq!(node.to_string(), "{open: 1}");
}
