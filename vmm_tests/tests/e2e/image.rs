//! Broken images are refused by name, before anything of VTL2 runs.

use igvm_builder::placement;
use igvm_builder::placement::{Placement, place};
use igvm_defs::IGVM_FIXED_HEADER;
use igvm_defs::IGVM_VHS_PAGE_DATA;
use igvm_defs::IGVM_VHS_REQUIRED_MEMORY;
use igvm_defs::IGVM_VHS_SUPPORTED_PLATFORM;
use igvm_defs::IgvmPlatformType;
use igvm_defs::IgvmVariableHeaderType;
use igvm_loader::Options;
use qemu::ByteCount;
use qemu::Source;
use std::mem::offset_of;
use vmm_tests::Image;
use vmm_tests::Scenario;
use vmm_tests::TmkImage;
use vsm_host_defs::HOST_MEMORY_BASE;

/// Starts a machine with the image and returns why the host refuses it.
#[track_caller]
fn refusal(image: &Image) -> String {
    refusal_of_bytes(image.bytes())
}

#[track_caller]
fn refusal_of_bytes(bytes: &[u8]) -> String {
    let mut vm = Scenario::image_bytes(bytes).start();
    let reason = vm.expect_refusal();
    let vtl2 = vm.console(Source::Vtl2);
    assert!(vtl2.is_empty(), "VTL2 ran in spite of {reason:?}: {vtl2}");
    reason
}

/// All parts are in the reason.
#[track_caller]
fn assert_names(reason: &str, parts: &[&str]) {
    for part in parts {
        assert!(reason.contains(part), "{part:?} is not in {reason:?}");
    }
}

fn page_data(image: Image, nth: usize, change: impl FnOnce(&mut IGVM_VHS_PAGE_DATA)) -> Image {
    image.with_header(IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA, nth, change)
}

/// Asks the loader as `igvm check` does.
fn check(
    image: &[u8],
    vps: u32,
    memory: ByteCount,
    vtl2_memory: Option<ByteCount>,
) -> Result<Placement, String> {
    let machine = placement::Machine {
        vps,
        memory: memory.get(),
        options: Options {
            vtl2_memory: vtl2_memory.map(ByteCount::get),
            ..Options::default()
        },
    };
    place(image, &machine).map_err(|error| error.to_string())
}

#[test]
fn igvm_check_says_what_the_host_then_does() {
    let tmk = TmkImage::built();
    let release = Image::release().bytes().to_vec();
    let (gib, more) = (ByteCount::gib(1), Some(ByteCount::mib(128)));
    for (image, vps, memory, vtl2_memory) in [
        (release.clone(), 4, gib, None),
        (release, 16, gib, more),
        // With parameters of every kind, moved, and RAM above 4 GiB.
        (tmk.must_move().pack(), 2, ByteCount::gib(5), None),
    ] {
        let plan = check(&image, vps, memory, vtl2_memory).unwrap();
        let scenario = Scenario::image_bytes(&image).vps(vps).memory(memory);
        let mut vm = match vtl2_memory {
            Some(size) => scenario.with(|machine| machine.vtl2_memory(size)).start(),
            None => scenario.start(),
        };
        let expected = format!(
            "image loaded: {} KiB, VTL2 memory {}, moved by {:#x}, entry {:#x}, parameters {} bytes",
            plan.loaded_bytes >> 10,
            plan.vtl2_memory,
            plan.relocation_offset,
            plan.entry,
            plan.parameters.iter().map(|p| p.used).sum::<u64>()
        );
        vm.expect(Source::Host, &expected);
    }
}

#[test]
fn igvm_check_refuses_in_the_words_of_the_host() {
    let image = Image::release();
    let memory = ByteCount::mib(160);
    let refusal = check(image.bytes(), 1, memory, None).unwrap_err();
    let scenario = Scenario::image_bytes(image.bytes()).vps(1).memory(memory);
    assert_eq!(scenario.start().expect_refusal(), refusal);
}

#[test]
fn a_truncated_file_is_refused() {
    let image = Image::release();
    let length = image.bytes().len();
    for length in [16, length / 2, length - 1] {
        let reason = refusal(&image.clone().truncate(length));
        assert_names(&reason, &["fixed header", &format!("found {length:#x}")]);
    }
}

#[test]
fn a_flipped_bit_in_any_header_is_refused() {
    let image = Image::release();
    let headers = image.headers();
    let middle = headers.start + headers.len() / 2;
    for (offset, bit, name) in [
        (offset_of!(IGVM_FIXED_HEADER, magic), 0, "magic number"),
        (
            offset_of!(IGVM_FIXED_HEADER, format_version),
            4,
            "format version",
        ),
        (
            offset_of!(IGVM_FIXED_HEADER, total_file_size),
            3,
            "file size",
        ),
        (offset_of!(IGVM_FIXED_HEADER, checksum), 7, "CRC-32"),
        (headers.start, 0, "CRC-32"),
        (middle, 5, "CRC-32"),
        (headers.end - 1, 7, "CRC-32"),
    ] {
        let reason = refusal(&image.clone().flip_bit(offset, bit));
        assert_names(&reason, &["fixed header", name]);
    }
}

#[test]
fn a_file_that_is_no_image_is_refused() {
    let reason = refusal_of_bytes(&[0x5a; 100_000]);
    assert_names(&reason, &["magic number", "0x5a5a5a5a"]);
}

#[test]
fn pages_that_overlap_are_refused() {
    let image = Image::release();
    let taken = image.page(0).unwrap().gpa;
    let reason = refusal(&page_data(image, 1, |page| page.gpa = taken));
    assert_names(&reason, &["(PageData)", "overlap"]);
}

#[test]
fn a_page_whose_data_is_not_in_the_file_is_refused() {
    let image = Image::release();
    let length = u32::try_from(image.bytes().len()).unwrap();
    let reason = refusal(&page_data(image, 0, |page| page.file_offset = length - 1));
    assert_names(&reason, &["(PageData)", "file data"]);
}

#[test]
fn a_page_at_an_odd_address_is_refused() {
    let reason = refusal(&page_data(Image::release(), 3, |page| page.gpa += 8));
    assert_names(&reason, &["directive", "(PageData)", "not aligned"]);
}

#[test]
fn a_page_in_the_memory_of_the_host_is_refused() {
    let reason = refusal(&page_data(Image::release(), 0, |page| {
        page.gpa = HOST_MEMORY_BASE;
    }));
    assert_names(&reason, &["(PageData)", "memory of the host"]);
}

#[test]
fn a_page_where_no_memory_is_is_refused() {
    // Far above RAM, outside of what may be relocated.
    let reason = refusal(&page_data(Image::release(), 0, |page| page.gpa = 1 << 40));
    assert_names(&reason, &["(PageData)", "not RAM"]);
}

#[test]
fn an_image_that_needs_more_memory_than_there_is_is_refused() {
    let image = Image::release().with_header::<IGVM_VHS_REQUIRED_MEMORY>(
        IgvmVariableHeaderType::IGVM_VHT_REQUIRED_MEMORY,
        0,
        |memory| memory.number_of_bytes = 2 << 30,
    );
    let reason = refusal(&image);
    assert_names(&reason, &["no place for the image", "0x80000000"]);
}

#[test]
fn an_image_for_another_platform_is_refused() {
    for (platform, name) in [
        (IgvmPlatformType::SEV_SNP, "SEV_SNP"),
        (IgvmPlatformType::TDX, "TDX"),
        (IgvmPlatformType::NATIVE, "NATIVE"),
    ] {
        let image = Image::release().with_header::<IGVM_VHS_SUPPORTED_PLATFORM>(
            IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM,
            0,
            |header| header.platform_type = platform,
        );
        let reason = refusal(&image);
        assert_names(&reason, &["(SupportedPlatform)", name, "VSM_ISOLATION"]);
    }
}

#[test]
fn an_image_whose_highest_vtl_is_not_that_of_its_parts_is_refused() {
    let with_highest = |vtl| {
        Image::release().with_header::<IGVM_VHS_SUPPORTED_PLATFORM>(
            IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM,
            0,
            |header| header.highest_vtl = vtl,
        )
    };
    for vtl in [1, 3] {
        let reason = refusal(&with_highest(vtl));
        assert_names(&reason, &["(SupportedPlatform)", "highest VTL"]);
    }
    // An image may have VTL 0 alone, but this one is for VTL2.
    let reason = refusal(&with_highest(0));
    assert_names(&reason, &["VTL, found 2, expected 0"]);
}

#[test]
fn a_directive_that_the_host_does_not_know_is_refused() {
    let image =
        Image::release().with_header_type(IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA, 0, 0x3ff);
    assert_names(&refusal(&image), &["type 0x3ff", "does not know"]);
}
