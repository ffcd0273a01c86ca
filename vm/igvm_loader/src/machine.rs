//! The machine, as far as an image may know it.

use crate::{MemoryRange, normalize};
use alloc::vec::Vec;

/// A CPU of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu {
    /// Its local APIC id.
    pub apic_id: u32,
    /// Its NUMA node.
    pub node: u32,
}

/// A run of RAM on one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RamRange {
    /// Where; page aligned.
    pub range: MemoryRange,
    /// The node.
    pub node: u32,
}

/// An IOAPIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u32,
    /// First global system interrupt.
    pub gsi_base: u32,
}

/// The machine, as far as an image may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineInfo {
    /// CPUs that run VPs, in the order of VP indexes, which is that of APIC ids.
    pub vps: Vec<Cpu>,
    /// RAM without the host's own, page aligned, sorted, disjoint.
    pub ram: Vec<RamRange>,
    /// The host's own memory.
    pub own: Vec<MemoryRange>,
    /// Memory that nothing may be loaded to.
    pub busy: Vec<MemoryRange>,
    /// IOAPICs.
    pub io_apics: Vec<IoApic>,
    /// Room for devices below and above 4 GiB.
    pub mmio: [MemoryRange; 2],
    /// Tables that are handed on; only CPUs that run VPs are enabled in them.
    pub tables: AcpiTables,
    /// Random bytes.
    pub entropy: Vec<u8>,
    /// A 16550 answers at 0x3e8.
    pub com3: bool,
}

/// The tables, as the firmware made them. Only the MADT must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcpiTables {
    /// Multiple APIC description table.
    pub madt: Vec<u8>,
    /// System resource affinity table.
    pub srat: Option<Vec<u8>>,
    /// System locality information table.
    pub slit: Option<Vec<u8>>,
    /// Processor properties topology table.
    pub pptt: Option<Vec<u8>>,
}

impl MachineInfo {
    /// RAM as runs of addresses, whatever the node.
    pub fn ram_runs(&self) -> Vec<MemoryRange> {
        let mut runs = self.ram.iter().map(|ram| ram.range).collect();
        normalize(&mut runs);
        runs
    }
}
