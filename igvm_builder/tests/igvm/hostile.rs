//! Files from somebody else: refused by name or shown, never a panic.

use crate::synthetic::Parts;
use igvm_builder::diff::diff;
use igvm_builder::dump::describe;
use igvm_builder::map;
use igvm_builder::measure::measure;
use igvm_builder::view::Image;
use proptest::prelude::*;
use std::sync::LazyLock;

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| Parts::new().build().bytes);

/// Offset of a field of the fixed header, and end of the variable headers.
fn word(file: &[u8], at: usize) -> usize {
    u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes")) as usize
}

/// Makes the checksum right, so that the damage is reached.
fn seal(file: &mut [u8]) {
    let end = word(file, 8).saturating_add(word(file, 12)).min(file.len());
    file[20..24].fill(0);
    let checksum = crc32fast::hash(&file[..end]);
    file[20..24].copy_from_slice(&checksum.to_le_bytes());
}

/// Uses a file in every way.
fn use_all(bytes: &[u8]) {
    if let Ok(image) = Image::read(bytes) {
        let description = describe(&image);
        let _ = (description.to_string(), map::html(&description));
        let _ = measure(&image);
        let good = Image::read(&GOOD).expect("it is good");
        let _ = (diff(&image, &good, 4), diff(&good, &image, 4));
    }
}

#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let error = Image::read(bytes)
        .expect_err("the file is wrong")
        .to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
}

#[test]
fn wrong_files_are_refused_by_name() {
    let good = GOOD.as_slice();
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = good.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut file);
        file
    };

    refused(b"IGVM", &["length of the file", "4"]);
    refused(b"#!/bin/sh\necho this is no image\n", &["magic"]);
    refused(&good[..good.len() - 1], &["total_file_size"]);
    refused(&changed(4, &[9]), &["format_version", "9"]);
    refused(&changed(12, &[0xff; 4]), &["place of the variable headers"]);
    // The platform's type, behind the fixed header and the header of the entry.
    refused(
        &changed(24 + 8 + 5, &[2]),
        &["variable header 0", "platform_type", "SEV_SNP"],
    );
    let mut flipped = good.to_vec();
    flipped[40] ^= 1;
    assert!(Image::read(&flipped).is_err(), "the checksum is checked");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_headers_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..4),
    ) {
        let mut file = GOOD.clone();
        let (start, size) = (word(&file, 8), word(&file, 12));
        for (index, value) in words {
            let at = start + index.index(size / 8) * 8;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (index, value) in changes {
            // Most of the headers are page data; half of the damage goes to the others.
            let bytes = if value % 2 == 0 { size } else { size.min(700) };
            file[start + index.index(bytes)] = value;
        }
        seal(&mut file);
        use_all(&file);
    }

    #[test]
    fn damaged_contents_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..40),
    ) {
        let mut file = GOOD.clone();
        let start = word(&file, 8) + word(&file, 12);
        for (index, value) in changes {
            let at = start + index.index((file.len() - start) / 8 - 1) * 8;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        use_all(&file);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut file = GOOD[..24].to_vec();
        file.extend(bytes);
        let length = file.len() as u32;
        file[16..20].copy_from_slice(&length.to_le_bytes());
        file[12..16].copy_from_slice(&(length / 2).to_le_bytes());
        seal(&mut file);
        use_all(&file);
    }
}

/// The page of the shim's parameters decides how everything is named, so it gets damage of
/// its own.
#[test]
fn damaged_shim_parameters_never_panic() {
    let built = Parts::new().build();
    let params = built.layout.shim_params.start;
    let image = Image::read(&GOOD).expect("it is good");
    let page = image.page(params).expect("it is in the file").data;
    let at = GOOD
        .windows(page.len())
        .position(|window| window == page)
        .expect("it is in the file");

    for field in 0..24 {
        for value in [
            0,
            1,
            0xfff,
            1 << 40,
            i64::MAX as u64,
            i64::MIN as u64,
            u64::MAX,
        ] {
            let mut file = GOOD.clone();
            file[at + field * 8..at + field * 8 + 8].copy_from_slice(&value.to_le_bytes());
            use_all(&file);
        }
    }
}
