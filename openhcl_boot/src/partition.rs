//! What the shim believes about its VM: the host's tree, checked and filtered.

use alloc::string::String;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use igvm_defs::MemoryMapEntryType;
use thiserror::Error;

use crate::host_dt::{
    AllocationMode, Cpu, Gic, HostDeviceTree, IoApic, MAX_ENTROPY, MAX_NUMA_NODES,
    MAX_SERIAL_PORTS, MAX_VTL2_RANGES, Memory, SbsaUart, SerialPort, Vmbus,
};
use crate::isolation::Trust;
use crate::range::{GpaRange, find_overlap};

/// Base port of COM3, VTL2's console.
const COM3_PORT: u16 = minimal_rt::serial::COM3;

/// Kinds of host input that can be dropped.
const MAX_DROPPED: usize = 8;

/// Why the VM that the host describes cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PartitionError {
    /// No processors.
    #[error("host describes no available processor, expected at least one")]
    NoCpus,
    /// Two processors with one id.
    #[error("hardware id {hardware_id:#x} belongs to two processors")]
    DuplicateCpu {
        /// The id.
        hardware_id: u64,
    },
    /// The boot processor is none of the processors.
    #[error("boot processor {boot_cpu:#x} is not among the processors")]
    BootCpu {
        /// Its id.
        boot_cpu: u32,
    },
    /// Ranges that must be disjoint are not.
    #[error("{what} {first} overlaps {second}")]
    Overlap {
        /// What they are.
        what: &'static str,
        /// One.
        first: GpaRange,
        /// The other.
        second: GpaRange,
    },
    /// More than the shim can hold.
    #[error("{found} {what}, expected at most {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are accepted.
        limit: usize,
    },
}

/// A consistent description of the VM. Fields that an untrusted host has no say in are
/// empty on isolated VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionInfo {
    /// How far the host is trusted.
    pub trust: Trust,
    /// Hardware id of the boot processor.
    pub boot_cpu: u32,
    /// Processors in VP order.
    pub cpus: Vec<Cpu>,
    /// RAM, sorted.
    pub memory: Vec<Memory>,
    /// Who chooses VTL2's memory.
    pub allocation_mode: AllocationMode,
    /// VTL0's VMBus and MMIO.
    pub vmbus_vtl0: Option<Vmbus>,
    /// VTL2's VMBus and MMIO.
    pub vmbus_vtl2: Option<Vmbus>,
    /// Random bytes. An untrusted host may know them; they are mixed in, never counted.
    pub entropy: ArrayVec<u8, MAX_ENTROPY>,
    /// Where VTL0's memory appears again.
    pub vtl0_alias_map: Option<u64>,
    /// The host keeps NVMe devices alive.
    pub nvme_keep_alive: bool,
    /// Pages that devices need for DMA.
    pub device_dma_pages: Option<u64>,
    /// The host's command line.
    pub command_line: String,
    /// 16550 ports.
    pub serial_ports: ArrayVec<SerialPort, MAX_SERIAL_PORTS>,
    /// I/O APIC.
    pub io_apic: Option<IoApic>,
    /// Arm: interrupt controller.
    pub gic: Option<Gic>,
    /// Arm: console.
    pub sbsa_uart: Option<SbsaUart>,
    /// Arm: interrupt of the performance counters.
    pub pmu_gsiv: Option<u32>,
    /// Names of what the isolation filter took away.
    pub dropped: ArrayVec<&'static str, MAX_DROPPED>,
}

impl PartitionInfo {
    /// Checks the tree, and drops what the host may not say.
    pub fn new(tree: HostDeviceTree, trust: Trust) -> Result<Self, PartitionError> {
        check_cpus(&tree)?;
        let HostDeviceTree {
            boot_cpu,
            cpus,
            mut memory,
            allocation_mode,
            vtl0_alias_map,
            entropy,
            nvme_keep_alive,
            device_dma_pages,
            command_line,
            vmbus_vtl0,
            vmbus_vtl2,
            serial_ports,
            io_apic,
            gic,
            sbsa_uart,
            pmu_gsiv,
        } = tree;
        memory.sort_unstable_by_key(|m| m.range);
        check_memory(&memory, vmbus_vtl0.as_ref(), vmbus_vtl2.as_ref())?;
        let mut partition = Self {
            trust,
            boot_cpu,
            cpus,
            memory,
            allocation_mode,
            vmbus_vtl0,
            vmbus_vtl2,
            entropy,
            vtl0_alias_map,
            nvme_keep_alive,
            device_dma_pages,
            command_line,
            serial_ports,
            io_apic,
            gic,
            sbsa_uart,
            pmu_gsiv,
            dropped: ArrayVec::new(),
        };
        if !trust.host_is_trusted() {
            partition.drop_untrusted_input();
        }
        Ok(partition)
    }

    /// VTL2's console.
    pub fn com3(&self) -> Option<SerialPort> {
        self.serial_ports
            .iter()
            .copied()
            .find(|p| p.base == COM3_PORT)
    }

    /// VTL2's RAM as the host has marked it.
    pub fn vtl2_protectable(&self) -> impl Iterator<Item = &Memory> {
        self.memory.iter().filter(|m| is_protectable(m))
    }

    // The isolation filter. What stays describes the machine, and a lie in it can only
    // stop the VM; what goes could make it leak or weaken it.
    fn drop_untrusted_input(&mut self) {
        let mut dropped = ArrayVec::new();
        // Bootargs can turn on debug interfaces or switch mitigations off.
        if !core::mem::take(&mut self.command_line).is_empty() {
            dropped.push("command line");
        }
        // A console carries log text out of the VM.
        if !core::mem::take(&mut self.serial_ports).is_empty() {
            dropped.push("serial ports");
        }
        if self.sbsa_uart.take().is_some() {
            dropped.push("SBSA UART");
        }
        // An alias would be a second, unprotected path to VTL0's memory.
        if self.vtl0_alias_map.take().is_some() {
            dropped.push("VTL0 alias map");
        }
        // Devices that run while VTL2 is replaced write to memory that nobody guards.
        if core::mem::take(&mut self.nvme_keep_alive) {
            dropped.push("NVMe keep-alive");
        }
        if self.device_dma_pages.take().is_some() {
            dropped.push("device DMA hint");
        }
        // Interrupts of emulated devices, whose registers the host controls.
        if self.io_apic.take().is_some() {
            dropped.push("I/O APIC");
        }
        self.dropped = dropped;
    }
}

fn check_cpus(tree: &HostDeviceTree) -> Result<(), PartitionError> {
    if tree.cpus.is_empty() {
        return Err(PartitionError::NoCpus);
    }
    let mut ids: Vec<u64> = tree.cpus.iter().map(|c| c.hardware_id).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(PartitionError::DuplicateCpu {
            hardware_id: pair[0],
        });
    }
    if ids.binary_search(&u64::from(tree.boot_cpu)).is_err() {
        return Err(PartitionError::BootCpu {
            boot_cpu: tree.boot_cpu,
        });
    }
    let cpu_nodes = tree.cpus.iter().map(|c| c.vnode);
    let mut nodes: Vec<u32> = cpu_nodes
        .chain(tree.memory.iter().map(|m| m.vnode))
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    at_most("NUMA nodes", nodes.len(), MAX_NUMA_NODES)
}

fn check_memory(
    memory: &[Memory],
    vtl0: Option<&Vmbus>,
    vtl2: Option<&Vmbus>,
) -> Result<(), PartitionError> {
    let mut ranges: Vec<GpaRange> = memory.iter().map(|m| m.range).collect();
    disjoint("RAM", &mut ranges)?;
    let mut mmio = |what, bus: Option<&Vmbus>| {
        ranges.extend(
            bus.into_iter()
                .flat_map(|b| &b.mmio)
                .filter(|r| !r.is_empty()),
        );
        disjoint(what, &mut ranges)
    };
    mmio("MMIO of VTL0", vtl0)?;
    mmio("MMIO of VTL2", vtl2)?;
    let protectable = memory.iter().filter(|m| is_protectable(m)).count();
    at_most("VTL2 RAM ranges", protectable, MAX_VTL2_RANGES)
}

fn is_protectable(memory: &Memory) -> bool {
    memory.igvm_type == MemoryMapEntryType::VTL2_PROTECTABLE
}

fn disjoint(what: &'static str, ranges: &mut [GpaRange]) -> Result<(), PartitionError> {
    match find_overlap(ranges) {
        None => Ok(()),
        Some((first, second)) => Err(PartitionError::Overlap {
            what,
            first,
            second,
        }),
    }
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), PartitionError> {
    if found <= limit {
        Ok(())
    } else {
        Err(PartitionError::TooMany { what, found, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_dt::tests::{HostTree, MIB};
    use crate::isolation::Isolation;

    const TRUSTED: Trust = Trust::new(Isolation::None, false);
    const ISOLATED: Trust = Trust::new(Isolation::Vbs, false);

    fn partition(tree: &HostTree, trust: Trust) -> Result<PartitionInfo, PartitionError> {
        PartitionInfo::new(HostDeviceTree::parse(&tree.build()).unwrap(), trust)
    }

    #[test]
    fn a_trusted_host_has_its_say() {
        let info = partition(&HostTree::full(), TRUSTED).unwrap();
        assert_eq!(info.command_line, "debug");
        assert_eq!(info.com3().unwrap().current_speed, 115_200);
        assert!(info.nvme_keep_alive && info.vtl0_alias_map.is_some());
        assert!(info.io_apic.is_some() && info.device_dma_pages == Some(64));
        assert!(info.dropped.is_empty());
    }

    #[test]
    fn an_untrusted_host_only_describes_the_machine() {
        let trusted = partition(&HostTree::full(), TRUSTED).unwrap();
        let info = partition(&HostTree::full(), ISOLATED).unwrap();
        assert_eq!(info.command_line, "");
        assert!(info.com3().is_none() && info.serial_ports.is_empty());
        assert!(!info.nvme_keep_alive && info.vtl0_alias_map.is_none());
        assert!(info.io_apic.is_none() && info.device_dma_pages.is_none());
        assert_eq!(info.dropped.len(), 6, "{:?}", info.dropped);
        assert_eq!((&info.cpus, &info.memory), (&trusted.cpus, &trusted.memory));
        assert_eq!(info.entropy, trusted.entropy);
    }

    #[test]
    fn measured_debug_lets_the_host_speak_on_isolated_vms() {
        let debug = Trust::new(Isolation::Vbs, true);
        assert!(
            partition(&HostTree::full(), debug)
                .unwrap()
                .dropped
                .is_empty()
        );
    }

    #[test]
    fn impossible_machines_are_refused() {
        let error = |change: fn(&mut HostTree)| {
            let mut tree = HostTree::full();
            change(&mut tree);
            partition(&tree, TRUSTED).unwrap_err()
        };
        assert_eq!(error(|t| t.cpus.clear()), PartitionError::NoCpus);
        assert_eq!(
            error(|t| t.cpus[1].0 = t.cpus[0].0),
            PartitionError::DuplicateCpu { hardware_id: 1 }
        );
        assert_eq!(
            error(|t| t.boot_cpu = 99),
            PartitionError::BootCpu { boot_cpu: 99 }
        );
        assert!(matches!(
            error(|t| t.memory[1].0 = 100 * MIB),
            PartitionError::Overlap { what: "RAM", .. }
        ));
        assert!(matches!(
            error(|t| t.vmbus.push((0, &[(64 * MIB, MIB)]))),
            PartitionError::Overlap {
                what: "MMIO of VTL0",
                ..
            }
        ));
        assert!(matches!(
            error(|t| {
                t.vmbus.push((0, &[(0xf800_0000, MIB)]));
                t.vmbus.push((2, &[(0xf800_0000, MIB)]));
            }),
            PartitionError::Overlap {
                what: "MMIO of VTL2",
                ..
            }
        ));
        assert!(matches!(
            error(|t| t.cpus = (0..65).map(|i| (i + 1, i)).collect()),
            PartitionError::TooMany {
                what: "NUMA nodes",
                found: 65,
                ..
            }
        ));
    }
}
