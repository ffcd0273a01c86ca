//! What the host tells the image: the content of every IGVM parameter.
//!
//! All of it is made from [`MachineInfo`] at planning time, so that a parameter that does
//! not fit is found before memory is touched. A table that the firmware does not have is
//! empty here: its place in the parameter area then stays zero, which readers take for
//! "no table".

mod device_tree;

use crate::platform::Cpu;
use crate::platform::MachineInfo;
use crate::platform::MemoryRange;
use crate::platform::PAGE_SIZE;
use crate::platform::RamRange;
use crate::platform::acpi;
use alloc::vec::Vec;
use igvm_defs::IGVM_VHS_MEMORY_MAP_ENTRY;
use igvm_defs::IGVM_VHS_MEMORY_RANGE;
use igvm_defs::IGVM_VHS_MMIO_RANGES;
use igvm_defs::IgvmEnvironmentInfo;
use igvm_defs::MemoryMapEntryType;
use zerocopy::IntoBytes;

/// The facts that parameters are made from.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// The machine.
    pub machine: &'a MachineInfo,
    /// CPUs that run VPs, in the order of VP indexes.
    pub vps: &'a [Cpu],
    /// RAM of VTL2.
    pub vtl2_memory: MemoryRange,
    /// Command line for the image.
    pub bootargs: &'a str,
}

impl Parameters<'_> {
    /// Number of VPs, u32.
    pub fn vp_count(&self) -> Vec<u8> {
        (self.vps.len() as u32).to_le_bytes().to_vec()
    }

    /// `IgvmEnvironmentInfo`: all memory is the guest's own from the start.
    pub fn environment_info(&self) -> Vec<u8> {
        let info = IgvmEnvironmentInfo::new().with_memory_is_shared(false);
        info.into_bits().to_le_bytes().to_vec()
    }

    /// MADT in which only CPUs that run VPs are enabled.
    pub fn madt(&self) -> Vec<u8> {
        self.without_other_cpus(&self.machine.tables.madt)
    }

    /// SRAT in which only CPUs that run VPs are enabled.
    pub fn srat(&self) -> Vec<u8> {
        let table = self.machine.tables.srat.as_deref();
        self.without_other_cpus(table.unwrap_or_default())
    }

    /// SLIT as it is.
    pub fn slit(&self) -> Vec<u8> {
        self.machine.tables.slit.clone().unwrap_or_default()
    }

    /// PPTT as it is.
    pub fn pptt(&self) -> Vec<u8> {
        self.machine.tables.pptt.clone().unwrap_or_default()
    }

    /// `IGVM_VHS_MMIO_RANGES`: room for devices below and above 4 GiB.
    pub fn mmio_ranges(&self) -> Vec<u8> {
        let mmio_ranges = self.machine.mmio.map(|range| IGVM_VHS_MEMORY_RANGE {
            starting_gpa_page_number: range.start() / PAGE_SIZE,
            number_of_pages: range.size() / PAGE_SIZE,
        });
        IGVM_VHS_MMIO_RANGES { mmio_ranges }.as_bytes().to_vec()
    }

    /// `IGVM_VHS_MEMORY_MAP_ENTRY` for every run of RAM, ended by an empty one.
    pub fn memory_map(&self) -> Vec<u8> {
        let entry = |range: MemoryRange, entry_type| IGVM_VHS_MEMORY_MAP_ENTRY {
            starting_gpa_page_number: range.start() / PAGE_SIZE,
            number_of_pages: range.size() / PAGE_SIZE,
            entry_type,
            flags: 0,
            reserved: 0,
        };
        let end = entry(MemoryRange::new(0, 0), MemoryMapEntryType::MEMORY);
        let entries: Vec<IGVM_VHS_MEMORY_MAP_ENTRY> = self
            .memory()
            .map(|(ram, memory_type)| entry(ram.range, memory_type))
            .chain([end])
            .collect();
        entries.as_bytes().to_vec()
    }

    /// The command line and a final zero.
    pub fn command_line(&self) -> Vec<u8> {
        let mut text = self.bootargs.as_bytes().to_vec();
        text.push(0);
        text
    }

    /// RAM, cut where VTL2's begins and ends, in ascending order.
    fn memory(&self) -> impl Iterator<Item = (RamRange, MemoryMapEntryType)> {
        let vtl2 = self.vtl2_memory;
        self.machine.ram.iter().flat_map(move |ram| {
            let cut = |start, end, memory_type| {
                let range = ram.range.intersection(MemoryRange::new(start, end));
                (RamRange { range, ..*ram }, memory_type)
            };
            [
                cut(0, vtl2.start(), MemoryMapEntryType::MEMORY),
                cut(
                    vtl2.start(),
                    vtl2.end(),
                    MemoryMapEntryType::VTL2_PROTECTABLE,
                ),
                cut(vtl2.end(), u64::MAX, MemoryMapEntryType::MEMORY),
            ]
            .into_iter()
            .filter(|(ram, _)| !ram.range.is_empty())
        })
    }

    fn without_other_cpus(&self, table: &[u8]) -> Vec<u8> {
        let mut table = table.to_vec();
        for cpu in &self.machine.cpus {
            if !self.vps.contains(cpu) {
                acpi::disable_cpu(&mut table, cpu.apic_id);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests;
