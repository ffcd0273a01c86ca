//! What the host tells the image: the content of every IGVM parameter.
//!
//! All of it is made from [`MachineInfo`] at planning time, so that a parameter that does
//! not fit is found before memory is touched. A table that the firmware does not have is
//! empty here: its place in the parameter area then stays zero, which readers take for
//! "no table".

mod device_tree;

use crate::{MachineInfo, MemoryRange, PAGE_SIZE, RamRange};
use alloc::vec::Vec;
use igvm_defs::{
    IGVM_VHS_MEMORY_MAP_ENTRY, IGVM_VHS_MEMORY_RANGE, IGVM_VHS_MMIO_RANGES, IgvmEnvironmentInfo,
    MemoryMapEntryType,
};
use zerocopy::IntoBytes;

/// The facts that parameters are made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameters<'a> {
    /// The machine.
    pub(crate) machine: &'a MachineInfo,
    /// RAM of VTL2.
    pub(crate) vtl2_memory: MemoryRange,
    /// Command line for the image.
    pub(crate) bootargs: &'a str,
}

impl Parameters<'_> {
    /// Number of VPs, u32.
    pub(crate) fn vp_count(&self) -> Vec<u8> {
        (self.machine.vps.len() as u32).to_le_bytes().to_vec()
    }

    /// `IgvmEnvironmentInfo`: all memory is the guest's own from the start.
    pub(crate) fn environment_info(&self) -> Vec<u8> {
        let info = IgvmEnvironmentInfo::new().with_memory_is_shared(false);
        info.into_bits().to_le_bytes().to_vec()
    }

    /// MADT as it is.
    pub(crate) fn madt(&self) -> Vec<u8> {
        self.machine.tables.madt.clone()
    }

    /// SRAT as it is.
    pub(crate) fn srat(&self) -> Vec<u8> {
        self.machine.tables.srat.clone().unwrap_or_default()
    }

    /// SLIT as it is.
    pub(crate) fn slit(&self) -> Vec<u8> {
        self.machine.tables.slit.clone().unwrap_or_default()
    }

    /// PPTT as it is.
    pub(crate) fn pptt(&self) -> Vec<u8> {
        self.machine.tables.pptt.clone().unwrap_or_default()
    }

    /// `IGVM_VHS_MMIO_RANGES`: room for devices below and above 4 GiB.
    pub(crate) fn mmio_ranges(&self) -> Vec<u8> {
        let mmio_ranges = self.machine.mmio.map(|range| IGVM_VHS_MEMORY_RANGE {
            starting_gpa_page_number: range.start() / PAGE_SIZE,
            number_of_pages: range.size() / PAGE_SIZE,
        });
        IGVM_VHS_MMIO_RANGES { mmio_ranges }.as_bytes().to_vec()
    }

    /// `IGVM_VHS_MEMORY_MAP_ENTRY` for every run of RAM, ended by an empty one.
    pub(crate) fn memory_map(&self) -> Vec<u8> {
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
            .into_iter()
            .map(|(ram, memory_type)| entry(ram.range, memory_type))
            .chain([end])
            .collect();
        entries.as_bytes().to_vec()
    }

    /// The command line and a final zero.
    pub(crate) fn command_line(&self) -> Vec<u8> {
        let mut text = self.bootargs.as_bytes().to_vec();
        text.push(0);
        text
    }

    /// RAM, cut where VTL2's begins and ends, and the host's memory, which is reserved and
    /// not absent, so that nobody takes it for room; in ascending order.
    fn memory(&self) -> Vec<(RamRange, MemoryMapEntryType)> {
        use MemoryMapEntryType as T;
        let vtl2 = self.vtl2_memory;
        let ram = self.machine.ram.iter().flat_map(|ram| {
            let cut = |start, end, memory_type| {
                let range = ram.range.intersection(MemoryRange::new(start, end));
                (RamRange { range, ..*ram }, memory_type)
            };
            [
                cut(0, vtl2.start(), T::MEMORY),
                cut(vtl2.start(), vtl2.end(), T::VTL2_PROTECTABLE),
                cut(vtl2.end(), u64::MAX, T::MEMORY),
            ]
        });
        let own = self.machine.own.iter();
        let own = own.map(|&range| (RamRange { range, node: 0 }, T::PLATFORM_RESERVED));
        let mut memory: Vec<_> = ram.chain(own).collect();
        memory.retain(|(ram, _)| !ram.range.is_empty());
        memory.sort_unstable_by_key(|(ram, _)| ram.range);
        memory
    }
}

#[cfg(test)]
mod tests;
