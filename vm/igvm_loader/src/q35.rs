//! The machine that QEMU's `q35` is under `vsm_host`, for those who are not on it: its
//! memory map as the firmware reports it, and who is where in it.

use crate::{
    AcpiTables, Cpu, IoApic, MachineInfo, MemoryRange, PAGE_SIZE, RamRange, normalize, subtract,
};
use alloc::vec;
use alloc::vec::Vec;
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};

const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// RAM below the firmware's area of old.
const LOW_RAM_END: u64 = 0x9_f000;
/// Machines with more RAM have `SPLIT_RAM` of it below 4 GiB.
const MAX_LOW_RAM: u64 = 0xb000_0000;
const SPLIT_RAM: u64 = 0x8000_0000;
/// The firmware's at the end of the RAM below 4 GiB, and how far QEMU keeps files from it.
const FIRMWARE_RAM: u64 = 0x2_0000;
const ACPI_ROOM: u64 = 0x2_8000;
/// PCI configuration space.
const PCI_CONFIG: MemoryRange = MemoryRange::new(0xb000_0000, 0xc000_0000);
const IO_APIC: u32 = 0xfec0_0000;
/// End of what devices get above RAM.
const DEVICES_END: u64 = 0xfd_0000_0000;
/// A MADT without CPUs, and what each adds.
const MADT_SIZE: usize = 112;
const MADT_CPU_SIZE: usize = 8;
const ENTROPY_SIZE: usize = 64;

/// RAM as the firmware reports it, the host's included.
pub fn ram(memory: u64) -> Vec<MemoryRange> {
    let (low, high) = split(memory);
    let mut ram = vec![
        MemoryRange::new(0, LOW_RAM_END),
        MemoryRange::new(MIB, low.saturating_sub(FIRMWARE_RAM)),
        MemoryRange::new(FOUR_GIB, FOUR_GIB.saturating_add(high)),
    ];
    normalize(&mut ram);
    ram
}

/// A machine with `memory` bytes of RAM and an image of `image` bytes, whose CPUs have the
/// APIC ids from `first_vp` on. The tables of the firmware have their size and no content.
pub fn machine(first_vp: u32, vps: u32, memory: u64, image: u64) -> MachineInfo {
    let (low, high) = split(memory);
    let own = MemoryRange::new(HOST_MEMORY_BASE, HOST_MEMORY_BASE + HOST_MEMORY_SIZE);
    let mut ram = ram(memory);
    subtract(&mut ram, own);
    let image_end = low.saturating_sub(ACPI_ROOM + 1);
    let image_start = image_end.saturating_sub(image) / PAGE_SIZE * PAGE_SIZE;
    let below = MemoryRange::new(low, PCI_CONFIG.start());
    let above = MemoryRange::new(PCI_CONFIG.end(), IO_APIC.into());
    let last_vp = first_vp.saturating_add(vps);
    MachineInfo {
        vps: (first_vp..last_vp)
            .map(|apic_id| Cpu { apic_id, node: 0 })
            .collect(),
        ram: ram
            .into_iter()
            .map(|range| RamRange { range, node: 0 })
            .collect(),
        own: vec![own],
        busy: vec![MemoryRange::new(
            image_start,
            image_start.saturating_add(image),
        )],
        io_apics: vec![IoApic {
            address: IO_APIC,
            gsi_base: 0,
        }],
        mmio: [
            if below.size() > above.size() {
                below
            } else {
                above
            },
            MemoryRange::new(FOUR_GIB.saturating_add(high), DEVICES_END),
        ],
        tables: AcpiTables {
            madt: vec![0; MADT_SIZE + MADT_CPU_SIZE * last_vp as usize],
            ..AcpiTables::default()
        },
        entropy: vec![0; ENTROPY_SIZE],
        com3: true,
    }
}

/// RAM below and above 4 GiB.
fn split(memory: u64) -> (u64, u64) {
    let low = if memory < MAX_LOW_RAM {
        memory
    } else {
        SPLIT_RAM
    };
    (low, memory - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_where_qemu_splits_it() {
        let ends = |memory| ram(memory).iter().map(|r| r.end()).collect::<Vec<_>>();
        assert_eq!(ends(512 * MIB), [LOW_RAM_END, 0x1ffe_0000]);
        assert_eq!(ends(2815 * MIB), [LOW_RAM_END, 0xaffe_0000 - MIB]);
        let split = [LOW_RAM_END, 0x7ffe_0000, FOUR_GIB + 768 * MIB];
        assert_eq!(ends(2816 * MIB), split);
    }

    #[test]
    fn no_size_panics() {
        for memory in [0, 1, MIB, u64::MAX] {
            for image in [0, 1, u64::MAX] {
                machine(1, 0, memory, image);
            }
        }
    }

    #[test]
    fn the_image_is_in_use_below_the_firmware() {
        let machine = machine(1, 2, 512 * MIB, 0x1234);
        assert_eq!(machine.busy, [MemoryRange::new(0x1ffd_6000, 0x1ffd_7234)]);
        assert_eq!(machine.vps.iter().map(|cpu| cpu.apic_id).max(), Some(2));
    }
}
