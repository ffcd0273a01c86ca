//! The zero page and its memory map.

use super::LoadError;
use crate::memory::{Free, whole_pages};
use alloc::vec::Vec;
use loader_defs::linux::{
    BIOS_AREA_END, BootParams, COMMAND_LINE_MAX, E820_ACPI, E820_MAX_ENTRIES_ZEROPAGE, E820_RAM,
    E820_RESERVED, E820Entry, LEGACY_HOLE_START, LoadFlags, SetupHeader,
};
use loader_defs::range::GpaRange;
use zerocopy::{FromZeros, IntoBytes};

/// What the zero page says.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// The header of the kernel, if it has one.
    pub(super) header: Option<SetupHeader>,
    /// Address of the command line.
    pub(super) command_line: u64,
    /// The initrd.
    pub(super) initrd: Option<GpaRange>,
    /// Address of the RSDP, or 0.
    pub(super) rsdp: u64,
    /// E820.
    pub(super) memory_map: &'a [E820Entry],
}

/// The zero page.
pub(super) fn build(contents: &Contents<'_>) -> Result<Vec<u8>, LoadError> {
    let mut params = BootParams::new_zeroed();
    if let Some(header) = contents.header {
        params.hdr = header;
        // Nobody chains boot data in front of us.
        params.hdr.setup_data = 0;
    } else {
        params.hdr.cmdline_size = COMMAND_LINE_MAX;
    }
    let version = params.hdr.version;
    params.set_loader();
    if contents.header.is_some() {
        params.hdr.version = version;
    }
    params.hdr.loadflags = LoadFlags::from_bits(params.hdr.loadflags)
        .with_loaded_high(true)
        .with_can_use_heap(false)
        .into_bits();
    params.set_command_line(contents.command_line);
    if let Some(initrd) = contents.initrd {
        params.set_initrd(initrd.start(), initrd.len());
    }
    // Kernels that do not know this field take it for padding.
    params.acpi_rsdp_addr = contents.rsdp;
    if !params.set_memory_map(contents.memory_map).is_empty() {
        return Err(LoadError::MemoryMap {
            found: contents.memory_map.len(),
            max: E820_MAX_ENTRIES_ZEROPAGE,
        });
    }
    Ok(params.as_bytes().to_vec())
}

/// E820: what the guest may use without the legacy hole, what is reserved, and the ACPI
/// tables. Ascending and disjoint.
pub(super) fn memory_map(
    usable: &Free,
    reserved: &[GpaRange],
    acpi: Option<GpaRange>,
) -> Vec<E820Entry> {
    let legacy = GpaRange::from_bounds(LEGACY_HOLE_START, BIOS_AREA_END).unwrap_or(GpaRange::EMPTY);
    let mut ram = usable.clone();
    ram.remove(legacy);
    let acpi = acpi.map(whole_pages);
    if let Some(acpi) = acpi {
        ram.remove(acpi);
    }
    let entry = |typ: u32| {
        move |range: &GpaRange| E820Entry {
            addr: range.start(),
            size: range.len(),
            typ,
        }
    };
    let mut map: Vec<_> = ram.ranges().iter().map(entry(E820_RAM)).collect();
    map.extend(reserved.iter().map(entry(E820_RESERVED)));
    map.extend(acpi.iter().map(entry(E820_ACPI)));
    map.sort_by_key(|entry| entry.addr);
    map
}
