//! Images that carry a guest.

use crate::synthetic::{Parts, pattern};
use igvm_builder::component::{Component, GpaRange};
use igvm_builder::dump::describe;
use igvm_builder::guest::{GuestFiles, fits};
use igvm_builder::manifest::Guest;
use igvm_builder::view::Image;
use igvm_builder::{Manifest, map};
use std::path::Path;

const MIB: u64 = 1 << 20;

#[track_caller]
fn refused(parts: &Parts, words: &[&str]) {
    let error = parts.try_build().expect_err("the guest is wrong");
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is missing in {error:?}");
    }
}

fn bytes_of(image: &Image, range: GpaRange) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (gpa, page) in image.pages_in(range) {
        bytes.resize((gpa - range.start) as usize, 0);
        bytes.extend_from_slice(page.data);
    }
    bytes
}

#[test]
fn guest_is_in_the_initrd_that_the_shim_gives_to_linux() {
    let parts = Parts::new().with_guest("console=ttyS0 quiet");
    let image = parts.image();

    let initrd = image.place(Component::Initrd).expect("it has an initrd");
    let guest = image.place(Component::Guest).expect("it has a guest");

    assert_eq!(initrd.end, guest.start);
    let (_, params) = image.shim.expect("it has a shim");
    assert_eq!(
        guest.end - initrd.start,
        params.initrd_size.next_multiple_of(4096)
    );
    let all = bytes_of(
        &image,
        GpaRange {
            end: guest.end,
            ..initrd
        },
    );
    let all = &all[..params.initrd_size as usize];
    assert_eq!(crc32fast::hash(all), params.initrd_crc);
    assert_eq!(all[..parts.initrd.len()], parts.initrd);
    let segment = &all[(guest.start - initrd.start) as usize..];
    let files: Vec<_> = initramfs::entries(segment)
        .map(|entry| entry.expect("it is well-formed"))
        .map(|entry| (String::from_utf8_lossy(entry.name).into_owned(), entry.data))
        .collect();
    let (kernel, guest_initrd) = parts.guest.expect("it has one");
    assert_eq!(
        files,
        [
            ("guest".to_owned(), &[][..]),
            ("guest/kernel".to_owned(), &kernel),
            (
                "guest/initrd".to_owned(),
                &guest_initrd.expect("it has one")
            ),
            ("guest/cmdline".to_owned(), b"console=ttyS0 quiet"),
        ]
    );
}

#[test]
fn tools_show_the_guest() {
    let image = Parts::new().with_guest("console=ttyS0").image();
    let description = describe(&image);

    let text = description.to_string();

    for word in [
        "guest's files",
        "/guest/kernel",
        "/guest/initrd",
        "\"console=ttyS0\"",
    ] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    assert!(map::text(&description).contains("guest"));
    let json = serde_json::json!(description);
    assert_eq!(json["guest"][2]["path"], "/guest/cmdline");
    assert_eq!(json["guest"][2]["text"], "console=ttyS0");
    assert!(describe(&Parts::new().image()).guest.is_empty());
}

#[test]
fn same_guest_gives_the_same_bytes() {
    let build = || Parts::new().with_guest("a").build().bytes;
    assert!(build() == build());
    assert!(build() != Parts::new().with_guest("b").build().bytes);
}

#[test]
fn small_guest_has_room_and_a_large_one_adds_memory() {
    let memory = |initrd: usize| {
        let mut parts = Parts::new().with_guest("");
        if let Some((_, guest_initrd)) = &mut parts.guest {
            *guest_initrd = Some(pattern(initrd, 1));
        }
        parts.build().layout.memory.size()
    };
    assert_eq!(memory(17 << 20), 64 * MIB);
    assert_eq!(memory(30 << 20), 64 * MIB + 26 * MIB);
}

#[test]
fn what_could_not_boot_is_refused() {
    let with = |change: fn(&mut Parts)| {
        let mut parts = Parts::new().with_guest("");
        change(&mut parts);
        parts
    };
    let kernel = |parts: &mut Parts, kernel: &[u8]| {
        parts.guest = Some((kernel.to_vec(), Some(vec![1])));
    };
    refused(
        &with(|parts| parts.guest = Some((b"#!/bin/sh\n".to_vec(), Some(vec![1])))),
        &["guest kernel"],
    );
    let mut empty = Parts::new().with_guest("");
    kernel(&mut empty, b"");
    refused(&empty, &["guest kernel"]);
    refused(
        &with(|parts| {
            let kernel = parts.kernel.clone();
            parts.guest = Some((kernel, Some(Vec::new())));
        }),
        &["guest initrd is empty"],
    );
    let long = Parts::new().with_guest(&"x".repeat(5000));
    refused(&long, &["command line has 5000 bytes"]);
}

#[test]
fn manifest_and_files_must_agree() {
    let mut without = Parts::new().with_guest("");
    without.guest = None;
    refused(&without, &["a kernel and an initrd", "no kernel"]);
    let mut unwanted = Parts::new();
    unwanted.guest = Some((unwanted.kernel.clone(), None));
    refused(&unwanted, &["no kernel", "a kernel and no initrd"]);
}

#[test]
fn caller_can_choose_the_guest_of_a_manifest_that_has_one() {
    let parse = |parts: &Parts| Manifest::parse(&parts.manifest, Path::new("test.toml"));
    let other = |command_line: &str| Guest {
        initrd: false,
        command_line: command_line.into(),
    };
    let manifest = parse(&Parts::new().with_guest("old")).expect("it is right");
    let changed = manifest
        .clone()
        .with_guest(other("new"))
        .expect("it is right");
    assert_eq!(changed.guest, Some(other("new")));

    let error = manifest.with_guest(other("a\nb")).expect_err("two lines");
    assert!(error.to_string().contains("one line"), "{error}");
    let none = parse(&Parts::new()).expect("it is right");
    let error = none.with_guest(other("")).expect_err("it has no guest");
    assert!(error.to_string().contains("vtl0.image"), "{error}");
}

#[test]
fn guest_that_the_memory_cannot_hold_is_told() {
    let parts = Parts::new().with_guest("");
    let (kernel, initrd) = parts.guest.expect("it has one");
    let initrd = initrd.expect("it has one");
    let large = vec![1; 8 << 20];
    // The kernel is linked to 16 MiB.
    let ram = |mib: u64| [(0, 0x9_f000), (MIB, mib * MIB)];

    let fits = |initrd: &[u8], mib| {
        let files = GuestFiles {
            kernel: &kernel,
            initrd: Some(initrd),
        };
        fits(&files, "", &ram(mib))
    };

    fits(&initrd, 32).expect("there is room");
    let error = fits(&initrd, 8).expect_err("no room for the kernel");
    assert!(error.to_string().contains("kernel"), "{error}");
    let error = fits(&large, 20).expect_err("no room for the initrd");
    assert!(
        error.to_string().contains("initrd of 8388608 bytes"),
        "{error}"
    );
}
