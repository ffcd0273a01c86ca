//! Entry state and parameter areas.

use super::Context;
use crate::abi::{
    AREA_FILL, ENTRY_PATTERNS, IMAGE_CODE_SELECTOR, IMAGE_DATA_SELECTOR, IMAGE_GDT_ENTRIES,
    PAGE_SIZE, TmkInfo,
};
use crate::ensure;
use crate::machine::entry::EntryState;
use crate::machine::probe::{MSR_EFER, rdmsr};
use crate::machine::{descriptors, memory};
use crate::report::{CheckResult, Failure};
use core::ops::Range;

/// PAT at reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// PAT.
const MSR_PAT: u32 = 0x277;
/// CR0: paging, numeric error, protection.
const CR0_EXPECTED: u64 = 0x8000_0021;
/// CR0 bits that a processor or host may keep set: extension type, cache bits.
const CR0_TOLERATED: u64 = 0x6000_0010;
/// CR4: physical address extension, machine check.
const CR4_EXPECTED: u64 = 0x60;
/// EFER: long mode enabled and active, no-execute.
const EFER_EXPECTED: u64 = 0xd00;

/// Registers at entry that only survive until the payload loads its own tables.
pub(super) struct EntryRegisters {
    cr0: u64,
    cr4: u64,
    efer: Option<u64>,
    pat: Option<u64>,
    selectors: (u16, u16, u16),
    gdtr: (u64, u16),
}

/// Reads them. Must run first.
pub(super) fn entry_registers() -> EntryRegisters {
    let (cr0, cr4) = memory::cr0_cr4();
    EntryRegisters {
        cr0,
        cr4,
        // The exception handler is not there yet: only registers whose reading is known
        // not to fault, because the kernel reads them at the same point.
        efer: rdmsr(MSR_EFER).ok(),
        pat: rdmsr(MSR_PAT).ok(),
        selectors: descriptors::selectors(),
        gdtr: descriptors::gdtr(),
    }
}

/// Every page of the range is mapped to itself by the image's own tables, and nothing
/// behind it or where it was before it was moved.
pub(super) fn check_page_tables(
    info: &TmkInfo,
    image_base: u64,
    image: &Range<u64>,
) -> CheckResult {
    let start = image_base + info.page_tables_offset;
    let tables = start..image.end;
    ensure!(
        memory::cr3() == start,
        "CR3 is {:#x}, expected {start:#x}",
        memory::cr3()
    );
    let mut address = image.start;
    while address < image.end {
        let found = memory::translate(address, &tables);
        let identical = found.is_some_and(|(target, size)| address & !(size - 1) == target);
        ensure!(identical, "{address:#x} is mapped to {found:x?}");
        address += PAGE_SIZE;
    }
    // Where the image would be if it had not been moved.
    let built = info.built_base - info.base_in_range;
    if !image.contains(&built) {
        let left = memory::translate(built, &tables);
        ensure!(left.is_none(), "{built:#x} is still mapped: {left:x?}");
    }
    let behind = memory::translate(image.end, &tables);
    ensure!(behind.is_none(), "{:#x} is mapped too", image.end);
    Ok(())
}

/// Checks them and the parameters.
pub(super) fn run(
    c: &mut Context<'_>,
    info: &TmkInfo,
    image_base: u64,
    state: &EntryState,
    found: &EntryRegisters,
    mapped: &Result<(), Failure>,
) {
    c.reporter.check("params.image_is_where_it_may_be", || {
        ensure!(
            info.relocatable == 1 || image_base == info.built_base,
            "base {image_base:#x}, built for {:#x}",
            info.built_base
        );
        Ok(())
    });
    c.reporter.note(format_args!(
        "image built for {:#x}, loaded at {image_base:#x}, relocated {}",
        info.built_base,
        image_base != info.built_base
    ));
    c.reporter.check("params.registers_are_set", || {
        ensure!(
            state.patterns == ENTRY_PATTERNS,
            "rbp r8-r12 rsp are {:x?}",
            state.patterns
        );
        ensure!(state.rflags == 2, "rflags {:#x}", state.rflags);
        Ok(())
    });
    c.reporter.check("params.mode_is_set", || {
        let EntryRegisters { cr0, cr4, .. } = *found;
        ensure!(
            cr0 & !CR0_TOLERATED == CR0_EXPECTED,
            "cr0 {cr0:#x}, expected {CR0_EXPECTED:#x}"
        );
        ensure!(
            cr4 == CR4_EXPECTED,
            "cr4 {cr4:#x}, expected {CR4_EXPECTED:#x}"
        );
        ensure!(
            found.efer == Some(EFER_EXPECTED),
            "efer {:x?}, expected {EFER_EXPECTED:#x}",
            found.efer
        );
        ensure!(found.pat == Some(PAT_RESET), "pat {:x?}", found.pat);
        Ok(())
    });
    c.reporter.check("params.segments_are_set", || {
        let expected = (
            IMAGE_CODE_SELECTOR,
            IMAGE_DATA_SELECTOR,
            IMAGE_DATA_SELECTOR,
        );
        ensure!(
            found.selectors == expected,
            "cs ds ss {:x?}, expected {expected:x?}",
            found.selectors
        );
        let (base, limit) = found.gdtr;
        ensure!(
            c.parameters.image.contains(&base) && usize::from(limit) == IMAGE_GDT_ENTRIES * 8 - 1,
            "gdt {base:#x} limit {limit:#x}"
        );
        Ok(())
    });
    c.reporter
        .result("params.page_tables_map_the_image", *mapped);
    c.reporter.check("params.empty_page_data_is_zero", || {
        let address = image_base + info.zero_page_offset;
        // SAFETY: the packer has reserved this page in the image.
        #[expect(unsafe_code, reason = "a page that the host placed")]
        let page = unsafe { memory::image_bytes(address, PAGE_SIZE) };
        ensure!(page.iter().all(|byte| *byte == 0), "it has other bytes");
        Ok(())
    });
    c.reporter.check("params.initial_data_is_kept", || {
        let last = c.parameters.command_line.last();
        ensure!(
            last == Some(&AREA_FILL),
            "last byte of the command line area is {last:x?}"
        );
        Ok(())
    });
    c.parameters.check(&mut c.reporter);
}
