//! The device tree for the kernel in VTL2 and for usermode, which reads it from
//! `/sys/firmware/fdt`.

use alloc::format;
use alloc::vec::Vec;

use igvm_defs::dt::IGVM_DT_IGVM_TYPE_PROPERTY;
use loader_defs::memory_type::MemoryVtlType;
use vm_fdt::{Error, FdtReserveEntry, FdtWriter};

use super::devices;
use crate::host_dt::AllocationMode;
use crate::imported::ImportedRegion;
use crate::memory::NodeRange;
use crate::memory::map::MapEntry;
use crate::partition::PartitionInfo;
use crate::range::GpaRange;
use crate::sidecar::Sidecar;

/// Property with the `MemoryVtlType` of a range.
const MEMORY_TYPE_PROPERTY: &str = "openhcl,memory-type";

/// Property with the processors that Linux has beside its first one. It boots with that one
/// only, and PID 1 brings these up.
const LINUX_CPUS_PROPERTY: &str = "linux-cpus";

/// The processor architecture that the tree is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86_64.
    X64,
    /// aarch64.
    Arm64,
}

impl Arch {
    /// The one that this code runs on.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") {
        Self::Arm64
    } else {
        Self::X64
    };
}

/// Everything that the tree says.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// For which kernel.
    pub arch: Arch,
    /// The VM.
    pub partition: &'a PartitionInfo,
    /// VTL2's RAM.
    pub vtl2_ram: &'a [NodeRange],
    /// All memory.
    pub map: &'a [MapEntry],
    /// What the launch has imported, if known.
    pub imported: &'a [ImportedRegion],
    /// VTL2's MMIO.
    pub vtl2_mmio: &'a [GpaRange],
    /// Where VTL0's memory appears again.
    pub vtl0_alias_map: Option<u64>,
    /// When the shim began, in units of 100 ns.
    pub reftime_start: Option<u64>,
    /// When it was (nearly) done.
    pub reftime_end: Option<u64>,
    /// The time-stamp counter at `reftime_end`.
    pub tsc_end: Option<u64>,
    /// The sidecar, if it runs.
    pub sidecar: Option<&'a Sidecar>,
    /// Arm: the kernel's command line.
    pub command_line: &'a str,
    /// Arm: the initrd.
    pub initrd: GpaRange,
}

/// Writes the tree.
pub fn build(contents: &Contents<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new_with_mem_reserv(&reservations(contents.map)?)?;
    fdt.set_boot_cpuid_phys(contents.partition.boot_cpu);
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("model", "microsoft,openvmm")?;
    fdt.property_string("compatible", "microsoft,openvmm")?;
    let sidecar_times = contents.sidecar.and_then(|sidecar| sidecar.times).unzip();
    for (name, time) in [
        ("reftime_boot_start", contents.reftime_start),
        ("reftime_sidecar_start", sidecar_times.0),
        ("reftime_sidecar_end", sidecar_times.1),
        ("reftime_boot_end", contents.reftime_end),
        ("openhcl,tsc-boot-end", contents.tsc_end),
    ] {
        if let Some(time) = time {
            fdt.property_u64(name, time)?;
        }
    }
    let hypervisor = fdt.begin_node("hypervisor")?;
    fdt.property_string("compatible", "microsoft,hyperv")?;
    fdt.end_node(hypervisor)?;
    cpus(&mut fdt, contents)?;
    for ram in contents.vtl2_ram {
        let node = fdt.begin_node(&format!("memory@{:x}", ram.range.start()))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[ram.range.start(), ram.range.len()])?;
        fdt.property_u32("numa-node-id", ram.vnode)?;
        fdt.end_node(node)?;
    }
    match contents.arch {
        Arch::X64 => devices::x86_platform(&mut fdt, contents.partition)?,
        Arch::Arm64 => devices::arm_platform(&mut fdt, contents)?,
    }
    devices::vmbus(&mut fdt, contents)?;
    if let Some(sidecar) = contents.sidecar {
        devices::sidecar(&mut fdt, sidecar)?;
    }
    openhcl(&mut fdt, contents)?;
    fdt.end_node(root)?;
    fdt.finish()
}

// What the kernel must not use although it is VTL2's RAM.
fn reservations(map: &[MapEntry]) -> Result<Vec<FdtReserveEntry>, Error> {
    map.iter()
        .filter(|entry| {
            !matches!(
                entry.purpose,
                MemoryVtlType::VTL0
                    | MemoryVtlType::VTL2_RAM
                    | MemoryVtlType::VTL0_MMIO
                    | MemoryVtlType::VTL2_MMIO
            )
        })
        .map(|entry| FdtReserveEntry::new(entry.range.start(), entry.range.len()))
        .collect()
}

fn cpus(fdt: &mut FdtWriter, contents: &Contents<'_>) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    let is_arm = contents.arch == Arch::Arm64;
    fdt.property_u32("#address-cells", if is_arm { 2 } else { 1 })?;
    fdt.property_u32("#size-cells", 0)?;
    let several = contents.partition.cpus.len() > 1;
    for (index, cpu) in contents.partition.cpus.iter().enumerate() {
        let node = fdt.begin_node(&format!("cpu@{:x}", index + 1))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("numa-node-id", cpu.vnode)?;
        if is_arm {
            fdt.property_string("compatible", "arm,arm-v8")?;
            if several {
                fdt.property_string("enable-method", "psci")?;
            }
            fdt.property_u64("reg", cpu.hardware_id)?;
        } else {
            // Ids were translated by the hypervisor, as 32-bit values.
            fdt.property_u32("reg", cpu.hardware_id as u32)?;
        }
        // On arm the kernel brings the others up by PSCI.
        let status = if is_arm && index > 0 {
            "disabled"
        } else {
            "okay"
        };
        fdt.property_string("status", status)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)
}

// For usermode. The kernel ignores it: "memory-openhcl" is no device type it knows.
fn openhcl(fdt: &mut FdtWriter, contents: &Contents<'_>) -> Result<(), Error> {
    let partition = contents.partition;
    let openhcl = fdt.begin_node("openhcl")?;
    fdt.property_string(
        "isolation-type",
        &format!("{}", partition.trust.isolation()),
    )?;
    match partition.allocation_mode {
        AllocationMode::Host => fdt.property_string("memory-allocation-mode", "host")?,
        AllocationMode::Vtl2 {
            memory_size,
            mmio_size,
        } => {
            fdt.property_string("memory-allocation-mode", "vtl2")?;
            if let Some(size) = memory_size {
                fdt.property_u64("memory-size", size)?;
            }
            if let Some(size) = mmio_size {
                fdt.property_u64("mmio-size", size)?;
            }
        }
    }
    if let Some(address) = contents.vtl0_alias_map {
        fdt.property_u64("vtl0-alias-map", address)?;
    }
    if let Some(sidecar) = contents.sidecar {
        fdt.property_array_u32(LINUX_CPUS_PROPERTY, &sidecar.linux)?;
    }
    for entry in contents.map {
        let node = fdt.begin_node(&format!("memory@{:x}", entry.range.start()))?;
        fdt.property_string("device_type", "memory-openhcl")?;
        fdt.property_array_u64("reg", &[entry.range.start(), entry.range.len()])?;
        if let Some(vnode) = entry.vnode {
            fdt.property_u32("numa-node-id", vnode)?;
        }
        if let Some(igvm_type) = entry.igvm_type {
            fdt.property_u32(IGVM_DT_IGVM_TYPE_PROPERTY, u32::from(igvm_type.0))?;
        }
        fdt.property_u32(MEMORY_TYPE_PROPERTY, entry.purpose.0)?;
        fdt.end_node(node)?;
    }
    for region in contents.imported.iter().filter(|r| r.accepted) {
        let range = region.range;
        let node = fdt.begin_node(&format!("accepted-memory@{:x}", range.start()))?;
        fdt.property_array_u64("reg", &[range.start(), range.len()])?;
        fdt.end_node(node)?;
    }
    if !partition.entropy.is_empty() {
        let entropy = fdt.begin_node("entropy")?;
        fdt.property("reg", &partition.entropy)?;
        fdt.end_node(entropy)?;
    }
    fdt.end_node(openhcl)
}

#[cfg(test)]
mod tests;
