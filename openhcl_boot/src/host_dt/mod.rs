//! The host's device tree: untrusted input, read into plain values.
//!
//! What comes out is well-formed (types, sizes, alignment, limits), nothing more. It is
//! still the host's word, which is why it is called [`HostDeviceTree`] and cannot be used
//! for the boot: [`crate::partition::PartitionInfo`] is made from it by a constructor
//! that checks consistency and drops what an untrusted host may not say.
//!
//! Unknown nodes and properties are ignored, so that newer hosts can say more.

mod bus;
mod error;
#[cfg(test)]
pub(crate) mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use igvm_defs::MemoryMapEntryType;
use igvm_defs::dt::IGVM_DT_IGVM_TYPE_PROPERTY;

use crate::fdt::{Node, Property, ValidatedFdt};
use crate::range::GpaRange;

pub use bus::{Gic, IoApic, MAX_MMIO_RANGES, SbsaUart, SerialPort, Vmbus};
pub use error::HostDtError;

/// Memory ranges that are accepted.
pub const MAX_MEMORY_RANGES: usize = 1024;
/// Processors that are accepted.
pub const MAX_CPUS: usize = 2048;
/// Bytes of the host's command line.
pub const MAX_COMMAND_LINE: usize = 0x2000;
/// Bytes of entropy that are used; more is cut.
pub const MAX_ENTROPY: usize = 256;
/// VTL2 RAM ranges that are accepted.
pub const MAX_VTL2_RANGES: usize = 64;
/// NUMA nodes that are accepted.
pub const MAX_NUMA_NODES: usize = 64;
/// Serial ports that are accepted.
pub const MAX_SERIAL_PORTS: usize = 4;

/// A processor. The order of processors is the order of VP indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// Local APIC id, or MPIDR.
    pub hardware_id: u64,
    /// NUMA node.
    pub vnode: u32,
}

/// A range of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Where.
    pub range: GpaRange,
    /// NUMA node.
    pub vnode: u32,
    /// What the host means it for.
    pub igvm_type: MemoryMapEntryType,
}

impl Memory {
    /// It is the VM's to use. The rest is there, but somebody else's.
    pub fn is_ram(&self) -> bool {
        matches!(
            self.igvm_type,
            MemoryMapEntryType::MEMORY | MemoryMapEntryType::VTL2_PROTECTABLE
        )
    }
}

/// Who chooses VTL2's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocationMode {
    /// The host, by marking ranges.
    Host,
    /// The shim.
    Vtl2 {
        /// Bytes of RAM that the host wants VTL2 to take.
        memory_size: Option<u64>,
        /// Bytes of MMIO that VTL2 should have.
        mmio_size: Option<u64>,
    },
}

/// All that the host's tree says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDeviceTree {
    /// Hardware id of the boot processor.
    pub boot_cpu: u32,
    /// Processors in VP order.
    pub cpus: Vec<Cpu>,
    /// RAM, in the host's order.
    pub memory: Vec<Memory>,
    /// Who chooses VTL2's memory.
    pub allocation_mode: AllocationMode,
    /// Address bit at which VTL0's memory appears again.
    pub vtl0_alias_map: Option<u64>,
    /// Random bytes.
    pub entropy: ArrayVec<u8, MAX_ENTROPY>,
    /// The host keeps NVMe devices alive across servicing.
    pub nvme_keep_alive: bool,
    /// Pages that devices need for DMA.
    pub device_dma_pages: Option<u64>,
    /// `/chosen/bootargs`.
    pub command_line: String,
    /// VTL0's VMBus.
    pub vmbus_vtl0: Option<Vmbus>,
    /// VTL2's VMBus.
    pub vmbus_vtl2: Option<Vmbus>,
    /// 16550 ports; COM3 is VTL2's console.
    pub serial_ports: ArrayVec<SerialPort, MAX_SERIAL_PORTS>,
    /// I/O APIC with the ISA interrupts (our host says where it is; Hyper-V has none).
    pub io_apic: Option<IoApic>,
    /// Arm: interrupt controller.
    pub gic: Option<Gic>,
    /// Arm: console.
    pub sbsa_uart: Option<SbsaUart>,
    /// Arm: interrupt of the performance counters.
    pub pmu_gsiv: Option<u32>,
}

impl HostDeviceTree {
    /// Reads a blob; bytes behind its end are ignored.
    pub fn parse(memory: &[u8]) -> Result<Self, HostDtError> {
        let fdt = ValidatedFdt::new(memory)?;
        let root = fdt.root();
        let mut tree = Self {
            boot_cpu: fdt.boot_cpuid_phys(),
            cpus: Vec::new(),
            memory: Vec::new(),
            allocation_mode: AllocationMode::Host,
            vtl0_alias_map: None,
            entropy: ArrayVec::new(),
            nvme_keep_alive: false,
            device_dma_pages: None,
            command_line: String::new(),
            vmbus_vtl0: None,
            vmbus_vtl2: None,
            serial_ports: ArrayVec::new(),
            io_apic: None,
            gic: None,
            sbsa_uart: None,
            pmu_gsiv: None,
        };
        let mut has_openhcl = false;
        for node in root.children() {
            match node.base_name() {
                "cpus" => tree.parse_cpus(node)?,
                "memory" => tree.parse_memory(node)?,
                "openhcl" => {
                    has_openhcl = true;
                    tree.parse_openhcl(node)?;
                }
                "chosen" => tree.parse_chosen(node)?,
                _ => tree.parse_device(node)?,
            }
        }
        if !has_openhcl {
            return Err(HostDtError::MissingNode { node: "/openhcl" });
        }
        Ok(tree)
    }

    fn parse_cpus(&mut self, cpus: Node<'_>) -> Result<(), HostDtError> {
        let cells = require(cpus, "#address-cells")?;
        let wide = match cells.as_u32() {
            Some(1) => false,
            Some(2) => true,
            _ => return Err(HostDtError::property(cpus, cells, "1 or 2")),
        };
        for cpu in cpus.children() {
            let available = match cpu.property("status") {
                // The devicetree specification: no status means "okay".
                None => true,
                Some(status) => {
                    status
                        .as_str()
                        .ok_or_else(|| HostDtError::property(cpu, status, "a text"))?
                        == "okay"
                }
            };
            if !available {
                continue;
            }
            let reg = require(cpu, "reg")?;
            let hardware_id = if wide {
                reg.as_u64()
            } else {
                reg.as_u32().map(u64::from)
            }
            .ok_or_else(|| HostDtError::property(cpu, reg, "as many cells as #address-cells"))?;
            if self.cpus.len() == MAX_CPUS {
                return Err(HostDtError::TooMany {
                    what: "processors",
                    limit: MAX_CPUS,
                });
            }
            self.cpus.push(Cpu {
                hardware_id,
                vnode: vnode(cpu)?,
            });
        }
        Ok(())
    }

    fn parse_memory(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        let vnode = vnode(node)?;
        let igvm_type = match node.property(IGVM_DT_IGVM_TYPE_PROPERTY) {
            None => MemoryMapEntryType::MEMORY,
            Some(p) => {
                let value = p
                    .as_u32()
                    .and_then(|v| u16::try_from(v).ok())
                    .ok_or_else(|| HostDtError::property(node, p, "a memory map entry type"))?;
                MemoryMapEntryType(value)
            }
        };
        let reg = require(node, "reg")?;
        for range in address_ranges(node, reg)? {
            if !range.is_page_aligned() {
                return Err(HostDtError::Alignment {
                    node: node.name().into(),
                    range,
                });
            }
            if range.is_empty() {
                continue;
            }
            if self.memory.len() == MAX_MEMORY_RANGES {
                return Err(HostDtError::TooMany {
                    what: "memory ranges",
                    limit: MAX_MEMORY_RANGES,
                });
            }
            self.memory.push(Memory {
                range,
                vnode,
                igvm_type,
            });
        }
        Ok(())
    }

    fn parse_openhcl(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        let optional_u64 = |name| {
            node.property(name)
                .map(|p| {
                    p.as_u64()
                        .ok_or_else(|| HostDtError::property(node, p, "a 64-bit number"))
                })
                .transpose()
        };
        let mode = require(node, "memory-allocation-mode")?;
        self.allocation_mode = match mode.as_str() {
            Some("host") => AllocationMode::Host,
            Some("vtl2") => AllocationMode::Vtl2 {
                memory_size: optional_u64("memory-size")?,
                mmio_size: optional_u64("mmio-size")?,
            },
            _ => return Err(HostDtError::property(node, mode, "\"host\" or \"vtl2\"")),
        };
        self.vtl0_alias_map = optional_u64("vtl0-alias-map")?;
        for child in node.children() {
            match child.base_name() {
                "entropy" => {
                    let reg = require(child, "reg")?.value;
                    let used = &reg[..reg.len().min(MAX_ENTROPY)];
                    self.entropy = used.iter().copied().collect();
                }
                "keep-alive" => {
                    let types = require(child, "device-types")?;
                    self.nvme_keep_alive = types.as_str() == Some("nvme");
                }
                "device-dma" => {
                    let pages = require(child, "total-pages")?;
                    self.device_dma_pages = Some(pages.as_u64().ok_or_else(|| {
                        HostDtError::property(child, pages, "a 64-bit number of pages")
                    })?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn parse_chosen(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        let Some(bootargs) = node.property("bootargs") else {
            return Ok(());
        };
        let text = bootargs
            .as_str()
            .filter(|t| t.len() <= MAX_COMMAND_LINE)
            .ok_or_else(|| {
                HostDtError::property(node, bootargs, "UTF-8 text of at most 8192 bytes")
            })?;
        self.command_line = text.into();
        Ok(())
    }
}

fn require<'a>(node: Node<'a>, name: &'static str) -> Result<Property<'a>, HostDtError> {
    node.property(name)
        .ok_or_else(|| HostDtError::MissingProperty {
            node: node.name().into(),
            property: name,
        })
}

fn require_u32(node: Node<'_>, name: &'static str) -> Result<u32, HostDtError> {
    let property = require(node, name)?;
    property
        .as_u32()
        .ok_or_else(|| HostDtError::property(node, property, "a 32-bit number"))
}

fn vnode(node: Node<'_>) -> Result<u32, HostDtError> {
    require_u32(node, "numa-node-id")
}

// A list of (u64 base, u64 length).
fn address_ranges<'a>(
    node: Node<'a>,
    property: Property<'a>,
) -> Result<impl Iterator<Item = GpaRange>, HostDtError> {
    let error = || HostDtError::property(node, property, "pairs of 64-bit base and length");
    let numbers = property.as_u64_list().ok_or_else(error)?;
    if numbers.len() % 2 != 0 {
        return Err(error());
    }
    let mut ranges = Vec::with_capacity(numbers.len() / 2);
    let mut numbers = numbers;
    while let (Some(base), Some(length)) = (numbers.next(), numbers.next()) {
        ranges.push(GpaRange::new(base, length).ok_or_else(error)?);
    }
    Ok(ranges.into_iter())
}
