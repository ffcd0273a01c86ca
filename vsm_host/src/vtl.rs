//! Virtual trust levels: which there are, and what memory each of them sees.

use crate::clock::{HPET_BASE, HPET_SIZE};
use crate::nested::{NestedTables, Table};
use crate::partition::apic;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use igvm_loader::{MemoryRange, normalize, subtract};
use page_table::{Attributes, LeafSize, Region};
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};

/// Tables for the parts of the guest's map that get protections of their own; the host's
/// memory sets the limit. One table refines 2 MiB.
const SPARE_TABLES: usize = 512;

/// Arrays that are indexed by [`Vtl::index`] have this length.
pub const VTL_COUNT: usize = 3;

/// A VTL that the partition has: 0 (the guest) or 2 (the paravisor).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtl(u8);

impl Vtl {
    /// The guest.
    pub const GUEST: Self = Self(0);
    /// The paravisor.
    pub const PARAVISOR: Self = Self(2);
    /// All VTLs of the partition.
    pub const ALL: [Self; 2] = [Self::GUEST, Self::PARAVISOR];

    /// The VTL with this number, if the partition has it.
    pub fn new(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|vtl| vtl.0 == number)
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its place in an array.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Vtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VTL{}", self.0)
    }
}

/// The memory that a VTL sees; by its nested page table and for the host's own checks.
pub struct VtlSpace {
    /// RAM, sorted and joined: what a hypercall may point to.
    pub ram: Vec<MemoryRange>,
    /// Root of the nested page table.
    pub nested_cr3: u64,
    /// The nested page table itself.
    pub(crate) tables: NestedTables,
}

/// What the machine has, as seen by the host.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// All RAM but the host's.
    pub ram: &'a [MemoryRange],
    /// The part of it that is VTL2's alone.
    pub vtl2_ram: MemoryRange,
    /// First address that does not exist.
    pub address_limit: u64,
    /// Largest leaf of a nested page table.
    pub max_leaf: LeafSize,
}

impl VtlSpace {
    /// No memory at all.
    fn empty() -> Self {
        Self {
            ram: Vec::new(),
            nested_cr3: 0,
            tables: NestedTables::empty(),
        }
    }

    /// The spaces of all VTLs, by [`Vtl::index`]; numbers that are no VTL have an empty one.
    pub fn all(
        machine: &Machine<'_>,
        physical_address: impl Fn(&[Table]) -> u64,
    ) -> Result<[Self; VTL_COUNT], page_table::Error> {
        let mut spaces = core::array::from_fn(|_| Self::empty());
        for vtl in Vtl::ALL {
            spaces[vtl.index()] = Self::new(vtl, machine, &physical_address)?;
        }
        Ok(spaces)
    }

    /// The space of `vtl`. `physical_address` tells where tables are in memory.
    pub fn new(
        vtl: Vtl,
        machine: &Machine<'_>,
        physical_address: impl FnOnce(&[Table]) -> u64,
    ) -> Result<Self, page_table::Error> {
        let (ram, mapped) = layout(vtl, machine);
        let region =
            |range: &MemoryRange, attributes| Region::new(range.start(), range.end(), attributes);
        let mut regions: Vec<Region> = mapped
            .iter()
            .map(|range| region(range, Attributes::USER))
            .collect();
        if vtl == Vtl::PARAVISOR {
            let read_only = Attributes {
                write: false,
                ..Attributes::USER
            };
            regions.extend(apic::pages().iter().map(|page| region(page, read_only)));
            regions.sort_unstable_by_key(|region| region.start);
        }
        // Nobody restricts the paravisor.
        let spare = if vtl == Vtl::PARAVISOR {
            0
        } else {
            SPARE_TABLES
        };
        let tables = NestedTables::new(&regions, machine.max_leaf, spare, physical_address)?;
        Ok(Self {
            ram,
            nested_cr3: tables.root(),
            tables,
        })
    }
}

/// RAM of a VTL, and what it reads and writes. The paravisor has the whole machine, its
/// devices included, but neither the host nor the host's clock, and of the interrupt
/// controllers only their registers, which are added by the caller. The guest sees RAM
/// that is nobody else's.
fn layout(vtl: Vtl, machine: &Machine<'_>) -> (Vec<MemoryRange>, Vec<MemoryRange>) {
    let host = MemoryRange::new(HOST_MEMORY_BASE, HOST_MEMORY_BASE + HOST_MEMORY_SIZE);
    let mut ram = machine.ram.to_vec();
    normalize(&mut ram);
    subtract(&mut ram, host);
    if vtl == Vtl::PARAVISOR {
        let mut mapped = vec![MemoryRange::new(0, machine.address_limit)];
        subtract(&mut mapped, host);
        let hpet = MemoryRange::new(HPET_BASE, HPET_BASE + HPET_SIZE);
        // Interrupt controllers are read directly but written by the host.
        for range in apic::pages().into_iter().chain([hpet, apic::MESSAGES]) {
            subtract(&mut mapped, range);
        }
        (ram, mapped)
    } else {
        subtract(&mut ram, machine.vtl2_ram);
        (ram.clone(), ram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn machine(ram: &[MemoryRange]) -> Machine<'_> {
        Machine {
            ram,
            vtl2_ram: MemoryRange::new(128 * MIB, 192 * MIB),
            address_limit: 1 << 40,
            max_leaf: LeafSize::Size1G,
        }
    }

    #[test]
    fn no_vtl_sees_the_host() {
        let ram = [
            MemoryRange::new(0, 0xa0000),
            MemoryRange::new(MIB, 2 * GIB),
            MemoryRange::new(4 * GIB, 6 * GIB),
        ];
        let host = MemoryRange::new(HOST_MEMORY_BASE, HOST_MEMORY_BASE + HOST_MEMORY_SIZE);
        for vtl in Vtl::ALL {
            let (ram, mapped) = layout(vtl, &machine(&ram));
            for range in ram.iter().chain(&mapped) {
                assert!(!range.overlaps(host), "{vtl}: {range}");
                for device in [
                    HPET_BASE,
                    0xfec0_0000,
                    0xfee0_0000,
                    0xfee0_1000,
                    0xfeef_f000,
                ] {
                    assert!(!range.contains(device), "{vtl}: {range}");
                }
            }
            assert!(ram.iter().all(|r| mapped.iter().any(|m| m.covers(*r))));
        }
    }

    #[test]
    fn the_guest_sees_neither_the_paravisor_nor_devices() {
        let ram = [MemoryRange::new(0, 2 * GIB)];
        let (_, mapped) = layout(Vtl::GUEST, &machine(&ram));
        assert_eq!(
            mapped,
            [
                MemoryRange::new(0, HOST_MEMORY_BASE),
                MemoryRange::new(192 * MIB, 2 * GIB)
            ]
        );
    }

    #[test]
    fn the_tables_of_a_terabyte_are_few() {
        let ram = [MemoryRange::new(0, 2 * GIB)];
        let space = VtlSpace::new(Vtl::PARAVISOR, &machine(&ram), |_| HOST_MEMORY_BASE).unwrap();
        // Root, two of the third level, and those that the holes and the APIC need.
        assert!(space.tables.count() <= 8, "{}", space.tables.count());
        assert_eq!(space.nested_cr3, HOST_MEMORY_BASE);
    }

    #[test]
    fn only_two_vtls_exist() {
        assert_eq!(Vtl::new(1), None);
        assert_eq!(Vtl::new(2), Some(Vtl::PARAVISOR));
        assert_eq!(Vtl::new(15), None);
    }
}
