//! What machine this is: CPUs, RAM with its NUMA nodes, interrupt controllers.
//!
//! The sources are the PVH start information and the ACPI tables. The firmware below is
//! part of the machine and as such trusted, but its tables are still bytes with lengths
//! in them: every read goes through [`PhysMemory`], every length is checked against the
//! table that contains it, and checksums must be right.

pub mod acpi;
pub mod pvh;

use acpi::AcpiError;
use alloc::vec;
use alloc::vec::Vec;
use igvm_loader::{MachineInfo, MemoryRange, RamRange, normalize, subtract};
use pvh::{MemoryKind, MemoryMapEntry};
use thiserror::Error;

/// End of the addresses below which a PC has its devices of old.
const FOUR_GIB: u64 = 1 << 32;
/// Where the chipset's own registers begin (IOAPIC, HPET, local APIC, flash).
const CHIPSET_MMIO: u64 = 0xfec0_0000;

/// Where a PC has option ROMs and firmware, all of which can be RAM.
pub const BIOS_AREA: MemoryRange = MemoryRange::new(0xc_0000, 0x10_0000);
/// Where a PC's firmware has its data (EBDA), which is RAM anyway.
pub const BIOS_DATA: MemoryRange = MemoryRange::new(0x9_f000, 0xa_0000);

/// Reads physical memory.
pub trait PhysMemory {
    /// Fills `out` from `address`, or says that the memory cannot be read.
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable>;
}

/// Physical memory that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("cannot read {size} bytes at physical address {address:#x}, expected RAM")]
pub struct Unreadable {
    /// First byte.
    pub address: u64,
    /// Number of bytes.
    pub size: usize,
}

/// What the processor and the start-up code know of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Firmware<'a> {
    /// The firmware's memory map.
    pub memory_map: &'a [MemoryMapEntry],
    /// Address of the ACPI RSDP.
    pub rsdp: u64,
    /// Memory that the host keeps for ever.
    pub own: &'a [MemoryRange],
    /// Memory that is read until the image is loaded (the IGVM file itself).
    pub busy: &'a [MemoryRange],
    /// The CPU that runs this.
    pub bsp_apic_id: u32,
    /// It gets no VP.
    pub park: bool,
    /// CPUID 0x80000008, EAX bits 0 to 7.
    pub physical_address_bits: u8,
    /// Random bytes for the image.
    pub entropy: &'a [u8],
    /// A 16550 answers at 0x3e8.
    pub com3: bool,
}

/// Why the machine cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlatformError {
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The memory map has no RAM that is left for a VTL.
    #[error("memory map: found no RAM beside the host's own, expected at least one page")]
    NoRam,
    /// The MADT does not list the CPU that runs this.
    #[error("MADT: found no enabled CPU with APIC id {apic_id}, expected the CPU that runs now")]
    BspMissing {
        /// APIC id of the running CPU.
        apic_id: u32,
    },
}

/// Learns the machine.
pub fn discover(
    memory: &impl PhysMemory,
    firmware: &Firmware<'_>,
) -> Result<MachineInfo, PlatformError> {
    let mut tables = acpi::read_tables(memory, firmware.rsdp)?;
    let mut topology = acpi::topology(&tables)?;
    let apic_id = firmware.bsp_apic_id;
    if !topology.cpus.iter().any(|cpu| cpu.apic_id == apic_id) {
        return Err(PlatformError::BspMissing { apic_id });
    }
    if firmware.park {
        topology.cpus.retain(|cpu| cpu.apic_id != apic_id);
        acpi::disable_cpu(&mut tables, apic_id);
    }
    let ram = usable_ram(firmware);
    if ram.is_empty() {
        return Err(PlatformError::NoRam);
    }
    Ok(MachineInfo {
        vps: topology.cpus,
        ram: split_by_node(ram, &topology.memory),
        own: firmware.own.to_vec(),
        busy: firmware.busy.to_vec(),
        io_apics: topology.io_apics,
        mmio: mmio_gaps(firmware),
        tables,
        entropy: firmware.entropy.to_vec(),
        com3: firmware.com3,
    })
}

/// Says in a memory map that [`BIOS_AREA`] and [`BIOS_DATA`] are RAM.
pub fn add_bios_area(map: &mut Vec<MemoryMapEntry>) {
    let areas = [BIOS_DATA, BIOS_AREA];
    let mut all = Vec::new();
    for entry in map.drain(..) {
        let mut rest = vec![entry.range];
        areas.into_iter().for_each(|area| subtract(&mut rest, area));
        let kind = entry.kind;
        all.extend(rest.into_iter().map(|range| MemoryMapEntry { range, kind }));
    }
    all.extend(areas.map(|range| MemoryMapEntry {
        range,
        kind: MemoryKind::RAM,
    }));
    *map = all;
}

/// Whole pages of RAM that neither the firmware nor the host wants.
fn usable_ram(firmware: &Firmware<'_>) -> Vec<MemoryRange> {
    let is_ram = |entry: &&MemoryMapEntry| entry.kind == MemoryKind::RAM;
    let map = firmware.memory_map.iter();
    let mut ram = map
        .clone()
        .filter(is_ram)
        .map(|entry| entry.range.whole_pages())
        .collect();
    let taken = map.filter(|entry| !is_ram(entry)).map(|entry| entry.range);
    for taken in taken.chain(firmware.own.iter().copied()) {
        subtract(&mut ram, taken);
    }
    let mut ram = ram.into_iter().map(MemoryRange::whole_pages).collect();
    normalize(&mut ram);
    ram
}

/// Cuts RAM where the node changes.
fn split_by_node(mut unassigned: Vec<MemoryRange>, nodes: &[RamRange]) -> Vec<RamRange> {
    let mut ram = Vec::new();
    for &RamRange { range, node } in nodes {
        let parts = unassigned
            .iter()
            .map(|part| part.intersection(range.whole_pages()));
        let parts = parts.filter(|range| !range.is_empty());
        ram.extend(parts.map(|range| RamRange { range, node }));
        subtract(&mut unassigned, range.whole_pages());
    }
    ram.extend(
        unassigned
            .into_iter()
            .map(|range| RamRange { range, node: 0 }),
    );
    ram.sort_unstable();
    ram
}

/// Room for devices: below the chipset's registers, and above all RAM.
fn mmio_gaps(firmware: &Firmware<'_>) -> [MemoryRange; 2] {
    let is_ram = |entry: &&MemoryMapEntry| entry.kind == MemoryKind::RAM;
    let map = firmware.memory_map.iter();
    let ram_end = map.clone().filter(is_ram).map(|entry| entry.range.end());
    let ram_end = ram_end.fold(FOUR_GIB, u64::max);
    let limit = 1 << firmware.physical_address_bits.min(52);
    let below = MemoryRange::new(1 << 20, CHIPSET_MMIO);
    [below, MemoryRange::new(ram_end, limit)].map(|gap| {
        let mut holes = vec![gap];
        map.clone()
            .for_each(|entry| subtract(&mut holes, entry.range));
        let holes = holes.into_iter().map(MemoryRange::whole_pages);
        holes
            .max_by_key(|hole| hole.size())
            .unwrap_or(MemoryRange::new(0, 0))
    })
}

#[cfg(test)]
pub(crate) mod tests;
