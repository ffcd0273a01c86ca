//! The memory of the whole VM, as the kernel and usermode are told.

use alloc::vec::Vec;

use igvm_defs::MemoryMapEntryType;
use loader_defs::linux::{E820_RAM, E820_RESERVED, E820Entry};
use loader_defs::memory_type::MemoryVtlType;

use super::mmio::Mmio;
use super::space::TypedRange;
use crate::host_dt::Memory;
use crate::range::GpaRange;

/// A piece of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// Where.
    pub range: GpaRange,
    /// NUMA node; `None` for device memory.
    pub vnode: Option<u32>,
    /// What the host means it for; `None` for device memory.
    pub igvm_type: Option<MemoryMapEntryType>,
    /// Who uses it, and what for.
    pub purpose: MemoryVtlType,
}

/// All RAM and MMIO, sorted: VTL2's pieces with their purpose, the rest is VTL0's.
pub fn partition_map(memory: &[Memory], vtl2: &[TypedRange], mmio: &Mmio) -> Vec<MapEntry> {
    let mut map = Vec::with_capacity(memory.len() + vtl2.len());
    for ram in memory.iter().filter(|m| m.is_ram()) {
        let entry = |range, purpose| MapEntry {
            range,
            vnode: Some(ram.vnode),
            igvm_type: Some(ram.igvm_type),
            purpose,
        };
        let mut rest = ram.range;
        // Both lists are sorted, so what lies before a piece of VTL2 belongs to VTL0.
        for piece in vtl2 {
            let inside = piece.range.intersection(&ram.range);
            if inside.is_empty() {
                continue;
            }
            let [below, above] = rest.without(&inside);
            if !below.is_empty() {
                map.push(entry(below, MemoryVtlType::VTL0));
            }
            map.push(entry(inside, piece.purpose));
            rest = above;
        }
        if !rest.is_empty() {
            map.push(entry(rest, MemoryVtlType::VTL0));
        }
    }
    // Without marks from the host, VTL2 lies where the image was loaded, and that may be
    // memory that the host does not list.
    for piece in vtl2 {
        for range in unlisted(piece.range, memory) {
            map.push(MapEntry {
                range,
                vnode: Some(piece.vnode),
                igvm_type: Some(MemoryMapEntryType::VTL2_PROTECTABLE),
                purpose: piece.purpose,
            });
        }
    }
    let mut add = |ranges: &[GpaRange], purpose| {
        for &range in ranges {
            map.push(MapEntry {
                range,
                vnode: None,
                igvm_type: None,
                purpose,
            });
        }
    };
    add(&mmio.vtl0, MemoryVtlType::VTL0_MMIO);
    add(&mmio.vtl2, MemoryVtlType::VTL2_MMIO);
    map.sort_unstable_by_key(|e| e.range);
    map
}

// What of `range` is in no memory range of the (sorted) list.
fn unlisted(range: GpaRange, memory: &[Memory]) -> Vec<GpaRange> {
    let mut parts = Vec::new();
    let mut rest = range;
    for ram in memory.iter().filter(|m| m.is_ram()) {
        if ram.range.overlaps(&rest) {
            let [below, above] = rest.without(&ram.range);
            parts.push(below);
            rest = above;
        }
    }
    parts.push(rest);
    parts.retain(|part| !part.is_empty());
    parts
}

/// The memory map of the kernel in VTL2. VTL2's RAM is RAM; everything else that is memory,
/// the host's own included, is reserved and not absent, because the kernel would take a
/// gap for a place where PCI devices can be put.
pub fn e820(map: &[MapEntry], memory: &[Memory]) -> Vec<E820Entry> {
    let typed = map.iter().filter_map(|entry| match entry.purpose {
        MemoryVtlType::VTL2_RAM => Some((entry.range, E820_RAM)),
        MemoryVtlType::VTL0_MMIO | MemoryVtlType::VTL2_MMIO => None,
        _ => Some((entry.range, E820_RESERVED)),
    });
    let others = memory.iter().filter(|m| !m.is_ram());
    let mut ranges: Vec<(GpaRange, u32)> = typed
        .chain(others.map(|m| (m.range, E820_RESERVED)))
        .collect();
    ranges.sort_unstable();
    let mut entries: Vec<E820Entry> = Vec::new();
    for (range, typ) in ranges {
        if let Some(last) = entries.last_mut()
            && last.typ == typ
            && last.addr.wrapping_add(last.size) == range.start()
        {
            last.size += range.len();
            continue;
        }
        entries.push(E820Entry {
            addr: range.start(),
            size: range.len(),
            typ,
        });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(start: u64, length: u64) -> GpaRange {
        GpaRange::new(start * MIB, length * MIB).unwrap()
    }

    fn ram(start: u64, length: u64, vnode: u32) -> Memory {
        Memory {
            range: range(start, length),
            vnode,
            igvm_type: MemoryMapEntryType::MEMORY,
        }
    }

    fn piece(start: u64, length: u64, purpose: MemoryVtlType) -> TypedRange {
        TypedRange {
            range: range(start, length),
            vnode: 0,
            purpose,
        }
    }

    fn sample() -> Vec<MapEntry> {
        let mmio = Mmio {
            vtl0: [range(4000, 16)].into(),
            vtl2: [range(5000, 16)].into(),
        };
        partition_map(
            &[ram(0, 100, 0), ram(100, 100, 1), ram(4096, 100, 1)],
            &[
                piece(90, 5, MemoryVtlType::VTL2_RAM),
                piece(95, 5, MemoryVtlType::VTL2_CONFIG),
                piece(100, 10, MemoryVtlType::VTL2_RAM),
            ],
            &mmio,
        )
    }

    #[test]
    fn all_memory_appears_once_in_order() {
        let found: Vec<_> = sample()
            .iter()
            .map(|e| (e.range, e.vnode, e.purpose))
            .collect();
        assert_eq!(
            found,
            [
                (range(0, 90), Some(0), MemoryVtlType::VTL0),
                (range(90, 5), Some(0), MemoryVtlType::VTL2_RAM),
                (range(95, 5), Some(0), MemoryVtlType::VTL2_CONFIG),
                (range(100, 10), Some(1), MemoryVtlType::VTL2_RAM),
                (range(110, 90), Some(1), MemoryVtlType::VTL0),
                (range(4000, 16), None, MemoryVtlType::VTL0_MMIO),
                (range(4096, 100), Some(1), MemoryVtlType::VTL0),
                (range(5000, 16), None, MemoryVtlType::VTL2_MMIO),
            ]
        );
    }

    #[test]
    fn vtl2_memory_that_the_host_does_not_list_is_added() {
        let vtl2 = [piece(90, 30, MemoryVtlType::VTL2_RAM)];
        let map = partition_map(&[ram(0, 100, 0), ram(110, 5, 0)], &vtl2, &Mmio::default());
        let vtl2: Vec<_> = map
            .iter()
            .filter(|e| e.purpose == MemoryVtlType::VTL2_RAM)
            .map(|e| e.range)
            .collect();
        assert_eq!(
            vtl2,
            [range(90, 10), range(100, 10), range(110, 5), range(115, 5)]
        );
    }

    #[test]
    fn the_kernel_sees_vtl2_ram_and_reserved_rest() {
        let found: Vec<(u64, u64, u32)> = e820(&sample(), &[])
            .iter()
            .map(|e| (e.addr / MIB, e.size / MIB, e.typ))
            .collect();
        assert_eq!(
            found,
            [
                (0, 90, E820_RESERVED),
                (90, 5, E820_RAM),
                (95, 5, E820_RESERVED),
                (100, 10, E820_RAM),
                (110, 90, E820_RESERVED),
                (4096, 100, E820_RESERVED),
            ]
        );
    }
    #[test]
    fn memory_of_the_host_is_reserved_and_nobodys() {
        let host = Memory {
            igvm_type: MemoryMapEntryType::PLATFORM_RESERVED,
            ..ram(100, 16, 0)
        };
        let memory = [ram(0, 100, 0), host, ram(120, 80, 0)];
        let vtl2 = [piece(120, 10, MemoryVtlType::VTL2_RAM)];
        let map = partition_map(&memory, &vtl2, &Mmio::default());
        assert!(map.iter().all(|e| !e.range.overlaps(&host.range)));
        let found: Vec<(u64, u64, u32)> = e820(&map, &memory)
            .iter()
            .map(|e| (e.addr / MIB, e.size / MIB, e.typ))
            .collect();
        assert_eq!(
            found,
            [
                (0, 116, E820_RESERVED),
                (120, 10, E820_RAM),
                (130, 70, E820_RESERVED),
            ]
        );
    }
}
