//! What the paravisor reports about its machine.

use serde::Deserialize;

/// The machine as the paravisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Topology {
    /// APIC ids in VP order.
    pub vps: Vec<u32>,
    /// RAM of VTL0 and VTL2 together.
    pub memory_bytes: u64,
    /// RAM of VTL2.
    pub vtl2_memory_bytes: u64,
    /// RAM of VTL0.
    pub vtl0_memory_bytes: u64,
    /// Isolation of the VM.
    pub isolation: String,
    /// The kernel's command line.
    pub command_line: String,
}

/// VTL2's use of memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Memory {
    /// All of VTL2's RAM.
    pub vtl2_bytes: u64,
    /// What the kernel manages.
    pub total_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// All that is not free, what the kernel does not manage included.
    pub footprint_bytes: u64,
}
