//! Files that must be refused, each with its message; and files spoilt at random.

use super::image::*;
use crate::*;
use igvm::IgvmDirectiveHeader;
use igvm_defs::IgvmVariableHeaderType as T;
use std::string::String;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

pub(super) fn refusal(file: &[u8]) -> String {
    match plan(file, &small_machine(), &Options::default()) {
        Ok(_) => "no error".into(),
        Err(error) => error.to_string(),
    }
}

fn assert_refused(file: &[u8], message: &str) {
    let error = refusal(file);
    assert!(
        error.contains(message),
        "found {error:?}, expected {message:?}"
    );
}

/// The valid image with some bytes of one header replaced.
fn patched(kind: T, n: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    image().raw().patch(kind, n, at, bytes).bytes()
}

#[test]
fn a_wrong_fixed_header_is_refused() {
    let good = image().bytes();
    let spoil = |at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let size = good.len();
    for (file, message) in [
        (
            Vec::new(),
            "fixed header: file size, found 0, expected 0x18".into(),
        ),
        (
            spoil(0, 7),
            "fixed header: magic number, found 7, expected 0x4d564749".into(),
        ),
        (
            spoil(4, 3),
            "fixed header: format version, found 3, expected 1 or 2".into(),
        ),
        (spoil(8, 16), "header offset, found 0x10".into()),
        (spoil(8, 28), "header offset, found 0x1c".into()),
        (
            spoil(12, u32::MAX),
            "header size, found 0xffffffff, expected at most".into(),
        ),
        (
            good[..size - 1].to_vec(),
            std::format!("file size, found {:#x}, expected {size:#x}", size - 1),
        ),
        (
            spoil(20, 0x1234),
            "header CRC-32, found 0x1234, expected 0x".into(),
        ),
    ] {
        assert_refused(&file, &message);
    }
    let mut arm = good;
    arm.splice(24..24, [1, 0, 0, 0, 0, 16, 0, 0]);
    arm[4] = 2;
    assert_refused(&arm, "architecture, found 1, expected 0 (x64)");
}

#[test]
fn a_file_for_another_platform_is_refused_by_name() {
    let kind = T::IGVM_VHT_SUPPORTED_PLATFORM;
    let place = "platform header 0 (SupportedPlatform): ";
    for (at, bytes, message) in [
        (5, vec![2], "not of this platform, found SEV_SNP"),
        (
            5,
            vec![3],
            "not of this platform, found TDX, expected VSM_ISOLATION with highest VTL 0 or 2",
        ),
        (4, vec![1], "highest VTL, found 1, expected 0 or 2"),
        (6, vec![9, 0], "platform version, found 9, expected 1"),
        (8, vec![1], "shared GPA boundary, found 1, expected 0"),
        (0, vec![3], "compatibility mask, found 3"),
    ] {
        assert_refused(
            &patched(kind, 0, at, &bytes),
            &std::format!("{place}{message}"),
        );
    }
    let mut none = image().raw();
    none.headers.remove(0);
    none.headers.retain(|(kind, _)| *kind > 0x300);
    assert_refused(
        &none.bytes(),
        "file: not of this platform, found no platform header",
    );
}

#[test]
fn wrong_page_data_is_refused() {
    let kind = T::IGVM_VHT_PAGE_DATA;
    for (n, at, bytes, message) in [
        (
            1,
            0,
            vec![1],
            "directive 2 (PageData): GPA is not aligned, found 0x8000001, expected a multiple of 0x1000",
        ),
        (
            2,
            0,
            BASE.to_le_bytes().to_vec(),
            "directive 3 (PageData): overlap, found [0x8000000, 0x8001000), expected nothing of",
        ),
        (
            2,
            0,
            (GIB).to_le_bytes().to_vec(),
            "directive 3 (PageData): memory that is not RAM, found [0x40000000",
        ),
        (
            2,
            0,
            (1u64 << 60).to_le_bytes().to_vec(),
            "directive 3 (PageData): range, found [0x1000000000000000",
        ),
        (
            2,
            12,
            vec![0xff; 4],
            "directive 3 (PageData): file data, found [0xffffffff, 0x100000fff)",
        ),
        (
            2,
            12,
            vec![1, 0, 0, 0],
            "directive 3 (PageData): file data, found [0x1, 0x1001)",
        ),
        (
            2,
            16,
            vec![1],
            "directive 3 (PageData): GPA is not aligned, found 0x8001000, expected a multiple of 0x200000",
        ),
        (
            2,
            16,
            vec![0x80],
            "directive 3 (PageData): reserved field, found 0x10, expected 0",
        ),
        (
            2,
            20,
            vec![2],
            "directive 3 (PageData): page data type, found 2, expected 0",
        ),
        (2, 22, vec![2], "directive 3 (PageData): reserved field"),
    ] {
        assert_refused(&patched(kind, n, at, &bytes), message);
    }
}

#[test]
fn pages_over_firmware_and_memory_in_use_are_refused() {
    let file = image().bytes();
    let mut machine = small_machine();
    machine.busy = vec![MemoryRange::new(LOW_PAGE, LOW_PAGE + 1)];
    let error = plan(&file, &machine, &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "directive 1 (PageData): memory that is in use while the image is loaded, found [0x3000, \
         0x3001), expected other memory"
    );
    machine.busy.clear();
    machine.ram.remove(0);
    let error = plan(&file, &machine, &Options::default()).unwrap_err();
    assert_eq!(
        (error.reason, error.place),
        (Reason::NotRam, Place::Directive(1, T::IGVM_VHT_PAGE_DATA))
    );
}

#[test]
fn a_page_over_a_parameter_area_is_refused() {
    let mut image = image();
    image.directives.push(page(DEVICE_TREE + 0x1000, vec![1]));
    let index = image.directives.len() - 1;
    let insert = image
        .index_of(|d| matches!(d, IgvmDirectiveHeader::ParameterInsert(i) if i.gpa == DEVICE_TREE));
    assert_refused(
        &image.bytes(),
        &std::format!(
            "directive {index} (PageData): overlap, found [0x8021000, 0x8022000), expected \
             nothing of [0x8020000, 0x8024000), which directive {insert} (ParameterInsert) has"
        ),
    );
}

#[test]
fn wrong_parameters_are_refused() {
    let (area, insert) = (T::IGVM_VHT_PARAMETER_AREA, T::IGVM_VHT_PARAMETER_INSERT);
    let tree = T::IGVM_VHT_DEVICE_TREE;
    for (kind, n, at, bytes, message) in [
        (
            area,
            1,
            8,
            vec![0],
            "(ParameterArea): parameter area, found 0, expected every index once",
        ),
        (
            area,
            1,
            0,
            vec![1],
            "(ParameterArea): size is not aligned, found 0x1001",
        ),
        (
            area,
            9,
            0,
            vec![0; 8],
            "(ParameterArea): size, found 0, expected at least one page",
        ),
        (area, 1, 12, vec![0xff; 4], "(ParameterArea): file data"),
        (
            tree,
            0,
            0,
            vec![7],
            "(DeviceTree): parameter area, found 7, expected an index that is declared before and not yet inserted",
        ),
        (
            tree,
            0,
            0,
            vec![99],
            "(DeviceTree): parameter area, found 0x63, expected an index",
        ),
        (
            tree,
            0,
            4,
            vec![0, 0x40],
            "(DeviceTree): offset in the parameter area, found 0x4000, expected at most 0x3fff",
        ),
        (
            tree,
            0,
            4,
            vec![0xf0, 0x3f],
            "(DeviceTree): parameter does not fit into its area",
        ),
        (
            T::IGVM_VHT_MADT,
            0,
            4,
            vec![0xff, 0x0f],
            "(Madt): parameter does not fit",
        ),
        (
            insert,
            0,
            0,
            vec![1],
            "(ParameterInsert): GPA is not aligned",
        ),
        (
            insert,
            1,
            12,
            vec![0],
            "(ParameterInsert): parameter area, found 0, expected an index",
        ),
        (
            insert,
            1,
            0,
            (PAGE_TABLES + 4096).to_le_bytes().to_vec(),
            "(ParameterInsert): parameter insert inside the page tables",
        ),
    ] {
        assert_refused(&patched(kind, n, at, &bytes), message);
    }
}

#[test]
fn a_wrong_vp_context_is_refused() {
    let mut none = image().raw();
    none.headers.last_mut().unwrap().0 = 0x8000_03f0;
    assert_refused(
        &none.bytes(),
        "found none, expected a VpContext directive for VP 0",
    );
    let mut image = image();
    let last = image.directives.last().cloned();
    image.directives.extend(last);
    assert_refused(
        &image.bytes(),
        "(VpContext): overlap, found a second VP context, expected one",
    );
    let context = T::IGVM_VHT_VP_CONTEXT;
    assert_refused(
        &patched(context, 0, 16, &[1]),
        "(VpContext): VP index, found 1, expected 0",
    );
    assert_refused(
        &patched(context, 0, 0, &[1]),
        "(VpContext): GPA, found 1, expected 0",
    );
    assert_refused(&patched(context, 0, 12, &[0; 4]), "(VpContext): file data");
}

#[test]
fn registers_that_the_processor_would_not_take_are_refused() {
    use igvm::registers::X86Register as R;
    let with = |register: R| {
        let mut image = image();
        let Some(IgvmDirectiveHeader::X64VbsVpContext { registers, .. }) =
            image.directives.last_mut()
        else {
            panic!("the context is the last directive");
        };
        let same = |r: &R| std::mem::discriminant(r) == std::mem::discriminant(&register);
        match registers.iter_mut().find(|r| same(r)) {
            Some(slot) => *slot = register,
            None => registers.push(register),
        }
        image.bytes()
    };
    for (register, message) in [
        (
            R::Cr0(0x21),
            "(VpContext): registers, found EFER is 0xd00, expected LMA",
        ),
        (R::Cr0(1 << 32 | 0x8000_0021), "bits 0x100000000 are set"),
        (R::Cr4(0x40), "CR4 is 0x40, expected PAE with LMA"),
        (R::Efer(0x1d00), "EFER is 0x1d00: bits 0x1000 are set"),
        (
            R::Rip(1 << 47),
            "RIP is 0x800000000000, expected a canonical address",
        ),
        (
            R::Rip(0x1000),
            "register RIP, found 0x1000, expected something within [0x8000000, 0x8400000)",
        ),
    ] {
        assert_refused(&with(register), message);
    }
    assert_eq!(refusal(&with(R::R12(5))), "no error");
    // By bytes what the crate cannot write: another VTL and an unknown name.
    let raw = image().raw();
    let offset = raw.clone().header(T::IGVM_VHT_VP_CONTEXT, 0)[12..16].to_vec();
    let offset = u32::from_le_bytes(offset.try_into().unwrap()) as usize;
    let list = offset - (raw.bytes().len() - raw.data.len());
    for (at, bytes, message) in [
        (4, vec![0], "VTL of a register, found 0, expected 2"),
        (
            5,
            vec![9, 0, 9, 0],
            "register HvRegisterName(589833), found",
        ),
        (9, vec![1], "reserved field"),
        (0, vec![0xff; 4], "file data, found"),
    ] {
        let mut raw = raw.clone();
        raw.data[list + at..list + at + bytes.len()].copy_from_slice(&bytes);
        assert_refused(&raw.bytes(), message);
    }
}

#[test]
fn wrong_regions_are_refused() {
    let region = T::IGVM_VHT_RELOCATABLE_REGION;
    let tables = T::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION;
    for (kind, at, bytes, message) in [
        (
            region,
            4,
            vec![1],
            "initialization header 0 (RelocatableRegion): VP index, found 1",
        ),
        (region, 6, vec![0], "VTL, found 0, expected 2"),
        (region, 7, vec![0x80], "reserved field, found 0x80"),
        (
            region,
            8,
            vec![1],
            "alignment, found 0x200001, expected a power of two from 0x1000",
        ),
        (
            region,
            16,
            vec![0, 0x10],
            "region GPA is not aligned, found 0x8001000",
        ),
        (region, 24, vec![1], "size is not aligned"),
        (
            region,
            24,
            vec![0, 0, 0x20],
            "(PageTableRelocationRegion): overlap, found [0x8100000",
        ),
        (
            region,
            24,
            vec![0, 0, 0x07],
            "range that is partly in a relocatable region",
        ),
        (
            tables,
            7,
            vec![1],
            "initialization header 1 (PageTableRelocationRegion): reserved field",
        ),
        (
            tables,
            24,
            vec![0, 0x90],
            "used size, found 0x9000, expected at most 0x8000",
        ),
    ] {
        let mut file = patched(kind, 0, at, &bytes);
        if message.contains("partly") {
            // A 64 KiB area at 0x8020000 against a region that ends inside of it.
            file = image().raw().patch(region, 0, 24, &[0, 0x20, 0x02]).bytes();
        }
        assert_refused(&file, message);
    }
}

#[test]
fn vtl2_memory_must_be_given_and_contiguous() {
    let mut image = image();
    image.directives.push(required(300 * MIB, MIB));
    assert_refused(
        &image.bytes(),
        "VTL2 memory, found [0x12c00000, 0x12d00000), expected one contiguous range",
    );
    image.initializations.clear();
    image.directives.pop();
    image.directives.remove(0);
    assert_refused(
        &image.bytes(),
        "VTL2 memory, found none, expected one contiguous range",
    );
    let kind = T::IGVM_VHT_REQUIRED_MEMORY;
    assert_refused(&patched(kind, 0, 12, &[1]), "size is not aligned");
    assert_refused(&patched(kind, 0, 20, &[1]), "reserved field");
    // Required, but not for VTL2 and not there.
    let mut other = super::image::image();
    other.directives.push(IgvmDirectiveHeader::RequiredMemory {
        gpa: 600 * MIB,
        compatibility_mask: VSM,
        number_of_bytes: 4096,
        vtl2_protectable: false,
    });
    assert_refused(
        &other.bytes(),
        "memory that is not RAM, found [0x25800000, 0x25801000), expected something",
    );
}

#[test]
fn headers_in_the_wrong_form_or_place_are_refused() {
    let mut raw = image().raw();
    let first = raw.headers.remove(1);
    raw.headers.push(first);
    assert_refused(
        &raw.bytes(),
        "directive 45 (RelocatableRegion): header out of order, found 0x102, expected a header of this section",
    );
    for (kind, message) in [
        (
            0x3f0,
            "directive 0 (type 0x3f0): header type that the host does not know and may not skip, found 0x3f0",
        ),
        (
            0x250,
            "initialization header 2 (type 0x250): header type that the host does not know",
        ),
        (0x110, "initialization header 2 (type 0x110): header type"),
        (
            0x30b,
            "directive 0 (SnpIdBlock): length of the header, found 0x18, expected",
        ),
    ] {
        let mut raw = image().raw();
        let header = raw
            .headers
            .iter_mut()
            .find(|(kind, _)| *kind == 0x305)
            .unwrap();
        header.0 = kind;
        let error = refusal(&raw.bytes());
        assert!(error.contains(message), "{error}");
    }
    let mut raw = image().raw();
    raw.header(T::IGVM_VHT_PAGE_DATA, 0).push(0);
    assert_refused(
        &raw.bytes(),
        "directive 1 (PageData): length of the header, found 0x19, expected 0x18",
    );
    let mut padded = image().bytes();
    let raw = RawImage::parse(&padded);
    // The VP context is 20 bytes long; behind it is padding.
    let headers = padded.len() - raw.data.len();
    padded[headers - 1] = 1;
    fix_checksum(&mut padded);
    assert_refused(
        &padded,
        "(VpContext): padding, found other bytes, expected zeros",
    );
    let mut cut = image().bytes();
    let size = (headers - 24 - 8) as u32;
    cut[12..16].copy_from_slice(&size.to_le_bytes());
    fix_checksum(&mut cut);
    assert_refused(
        &cut,
        "(VpContext): length of the header, found 0x14, expected at most 0x10",
    );
}

#[test]
fn a_file_truncated_anywhere_is_refused() {
    let file = image().bytes();
    for length in (0..file.len()).filter(|n| *n < 2048 || n % 509 == 0) {
        let mut file = file[..length].to_vec();
        assert_ne!(refusal(&file), "no error");
        // The same with sizes and checksum as if that were the whole file.
        if length >= 24 {
            file[16..20].copy_from_slice(&(length as u32).to_le_bytes());
            fix_checksum(&mut file);
            assert_ne!(refusal(&file), "no error");
        }
    }
}

#[test]
fn more_than_the_host_can_keep_is_refused() {
    let mut raw = image().raw();
    // Ahead of the pages, whose file offsets are wrong now.
    let text = (0x107, b"version".to_vec());
    raw.headers.splice(1..1, vec![text; 5000]);
    assert_refused(
        &raw.bytes(),
        "too many headers, found 0x1001, expected at most 0x1000",
    );
}
