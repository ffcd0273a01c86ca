//! VTL2's address space: what each byte of its RAM is for.
//!
//! Every byte is free, used by the image (and RAM for the kernel afterwards), or
//! reserved for one purpose. Building goes through [`SpaceBuilder`], so that an
//! [`AddressSpace`] from which memory is allocated is always complete.

use alloc::vec::Vec;

use loader_defs::PAGE_SIZE;
use loader_defs::memory_type::MemoryVtlType;

use super::{MemoryError, NodeRange};
use crate::range::GpaRange;

const EVERYWHERE: GpaRange = match GpaRange::new(0, u64::MAX) {
    Some(range) => range,
    None => GpaRange::EMPTY,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Free,
    Image,
    Reserved(MemoryVtlType),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    range: GpaRange,
    vnode: u32,
    used: Use,
}

/// From which end an allocation is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Lowest address.
    LowMemory,
    /// Highest address.
    HighMemory,
}

/// A piece of VTL2's RAM and its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypedRange {
    /// Where.
    pub range: GpaRange,
    /// NUMA node.
    pub vnode: u32,
    /// What for.
    pub purpose: MemoryVtlType,
}

/// Collects the parts of the image.
#[derive(Debug)]
pub struct SpaceBuilder {
    entries: Vec<Entry>,
}

impl SpaceBuilder {
    /// All of VTL2's RAM, with the image's `used` part. `ram` is sorted and disjoint.
    pub fn new(ram: &[NodeRange], used: GpaRange) -> Self {
        let entries = ram
            .iter()
            .map(|r| Entry {
                range: r.range,
                vnode: r.vnode,
                used: Use::Free,
            })
            .collect();
        let mut builder = Self { entries };
        mark(&mut builder.entries, used, Use::Image);
        builder
    }

    /// Reserves a part of the image for a purpose; an empty range is nothing.
    pub fn reserve(
        &mut self,
        what: &'static str,
        range: GpaRange,
        purpose: MemoryVtlType,
    ) -> Result<(), MemoryError> {
        reserve(&mut self.entries, what, range, purpose)
    }

    /// The space, ready for allocations.
    pub fn finish(self) -> AddressSpace {
        AddressSpace {
            entries: self.entries,
        }
    }
}

/// VTL2's RAM, divided.
#[derive(Debug, Clone)]
pub struct AddressSpace {
    entries: Vec<Entry>,
}

impl AddressSpace {
    /// Takes free memory for a purpose; the size is rounded up to pages.
    pub fn allocate(
        &mut self,
        size: u64,
        purpose: MemoryVtlType,
        policy: Policy,
        vnode: Option<u32>,
    ) -> Option<GpaRange> {
        self.allocate_within(EVERYWHERE, size, purpose, policy, vnode)
    }

    /// The same, from a part of the address space that begins and ends with a page.
    pub fn allocate_within(
        &mut self,
        limits: GpaRange,
        size: u64,
        purpose: MemoryVtlType,
        policy: Policy,
        vnode: Option<u32>,
    ) -> Option<GpaRange> {
        let size = size
            .checked_next_multiple_of(PAGE_SIZE)
            .filter(|s| *s > 0)?;
        let mut free = self
            .entries
            .iter()
            .filter(|e| e.used == Use::Free && vnode.is_none_or(|v| v == e.vnode))
            .map(|e| e.range.intersection(&limits))
            .filter(|range| range.len() >= size);
        let range = match policy {
            Policy::LowMemory => GpaRange::new(free.next()?.start(), size)?,
            Policy::HighMemory => GpaRange::new(free.next_back()?.end() - size, size)?,
        };
        mark(&mut self.entries, range, Use::Reserved(purpose));
        Some(range)
    }

    /// Reserves a part of the image for a purpose.
    pub fn reserve(
        &mut self,
        what: &'static str,
        range: GpaRange,
        purpose: MemoryVtlType,
    ) -> Result<(), MemoryError> {
        reserve(&mut self.entries, what, range, purpose)
    }

    /// NUMA nodes that have memory here, sorted.
    pub fn vnodes(&self) -> Vec<u32> {
        let mut nodes: Vec<u32> = self.entries.iter().map(|e| e.vnode).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.entries.iter().map(|e| e.range.len()).sum()
    }

    /// The division in order of addresses; neighbours of one kind are one range. What is
    /// free or holds the image is RAM for the kernel.
    pub fn typed_ranges(&self) -> Vec<TypedRange> {
        let mut ranges: Vec<TypedRange> = Vec::new();
        for entry in &self.entries {
            let purpose = match entry.used {
                Use::Free | Use::Image => MemoryVtlType::VTL2_RAM,
                Use::Reserved(purpose) => purpose,
            };
            if let Some(last) = ranges.last_mut()
                && last.range.end() == entry.range.start()
                && last.purpose == purpose
                && last.vnode == entry.vnode
                && let Some(range) = GpaRange::from_bounds(last.range.start(), entry.range.end())
            {
                last.range = range;
                continue;
            }
            ranges.push(TypedRange {
                range: entry.range,
                vnode: entry.vnode,
                purpose,
            });
        }
        ranges
    }
}

/// Takes the GPA pool: from the top of node 0, or evenly from all nodes when it does not
/// fit there or `split` asks for it.
pub fn allocate_pool(
    space: &mut AddressSpace,
    pages: u64,
    split: bool,
) -> Result<Vec<GpaRange>, MemoryError> {
    let error = MemoryError::Pool { pages };
    let size = pages.checked_mul(PAGE_SIZE).ok_or(error)?;
    if size == 0 {
        return Ok(Vec::new());
    }
    let mut take = |size, vnode| {
        space.allocate(
            size,
            MemoryVtlType::VTL2_GPA_POOL,
            Policy::HighMemory,
            Some(vnode),
        )
    };
    if !split && let Some(range) = take(size, 0) {
        return Ok([range].into());
    }
    let nodes = space.vnodes();
    let share = pages / nodes.len().max(1) as u64;
    let mut take = |size, vnode| {
        space.allocate(
            size,
            MemoryVtlType::VTL2_GPA_POOL,
            Policy::HighMemory,
            Some(vnode),
        )
    };
    let mut ranges = Vec::new();
    let mut left = pages;
    for (i, &vnode) in nodes.iter().enumerate() {
        let pages = if i + 1 == nodes.len() { left } else { share };
        left -= pages;
        if pages > 0 {
            ranges.push(take(pages * PAGE_SIZE, vnode).ok_or(error)?);
        }
    }
    Ok(ranges)
}

fn reserve(
    entries: &mut Vec<Entry>,
    what: &'static str,
    range: GpaRange,
    purpose: MemoryVtlType,
) -> Result<(), MemoryError> {
    let available: u64 = entries
        .iter()
        .filter(|e| !matches!(e.used, Use::Reserved(_)))
        .map(|e| e.range.intersection(&range).len())
        .sum();
    if available != range.len() || !range.is_page_aligned() {
        return Err(MemoryError::Reserved { what, range });
    }
    mark(entries, range, Use::Reserved(purpose));
    Ok(())
}

fn mark(entries: &mut Vec<Entry>, range: GpaRange, used: Use) {
    split_at(entries, range);
    for entry in entries {
        if range.contains(&entry.range) {
            entry.used = used;
        }
    }
}

// Makes the bounds of `range` bounds of entries.
fn split_at(entries: &mut Vec<Entry>, range: GpaRange) {
    if range.is_empty() {
        return;
    }
    let mut result = Vec::with_capacity(entries.len() + 2);
    for entry in entries.drain(..) {
        let inside = entry.range.intersection(&range);
        if inside.is_empty() {
            result.push(entry);
            continue;
        }
        let [below, above] = entry.range.without(&inside);
        for part in [below, inside, above] {
            if !part.is_empty() {
                result.push(Entry {
                    range: part,
                    ..entry
                });
            }
        }
    }
    *entries = result;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first_page: u64, pages: u64) -> GpaRange {
        GpaRange::new(first_page * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
    }

    fn ram(nodes: &[(u64, u64, u32)]) -> Vec<NodeRange> {
        nodes
            .iter()
            .map(|&(first, pages, vnode)| NodeRange {
                range: range(first, pages),
                vnode,
            })
            .collect()
    }

    const POOL: MemoryVtlType = MemoryVtlType::VTL2_GPA_POOL;
    const CONFIG: MemoryVtlType = MemoryVtlType::VTL2_CONFIG;
    const RAM: MemoryVtlType = MemoryVtlType::VTL2_RAM;

    #[test]
    fn parts_are_reported_in_order_and_merged() {
        let mut builder = SpaceBuilder::new(&ram(&[(0, 100, 0)]), range(10, 50));
        builder.reserve("config", range(20, 5), CONFIG).unwrap();
        let space = builder.finish();
        let found: Vec<_> = space
            .typed_ranges()
            .iter()
            .map(|t| (t.range, t.purpose))
            .collect();
        assert_eq!(
            found,
            [
                (range(0, 20), RAM),
                (range(20, 5), CONFIG),
                (range(25, 75), RAM)
            ]
        );
    }

    #[test]
    fn overlapping_or_outlying_parts_are_refused() {
        let mut builder = SpaceBuilder::new(&ram(&[(0, 100, 0)]), range(10, 50));
        builder.reserve("config", range(20, 5), CONFIG).unwrap();
        let overlap = builder.reserve("log", range(24, 2), CONFIG);
        assert_eq!(
            overlap,
            Err(MemoryError::Reserved {
                what: "log",
                range: range(24, 2)
            })
        );
        assert!(builder.reserve("far", range(99, 2), CONFIG).is_err());
    }

    #[test]
    fn allocation_takes_the_chosen_end_and_never_the_image() {
        let mut space = SpaceBuilder::new(&ram(&[(0, 100, 0)]), range(10, 50)).finish();
        let mut take = |pages: u64, policy| space.allocate(pages * PAGE_SIZE, POOL, policy, None);
        assert_eq!(take(4, Policy::LowMemory), Some(range(0, 4)));
        assert_eq!(take(4, Policy::HighMemory), Some(range(96, 4)));
        assert_eq!(take(36, Policy::LowMemory), Some(range(60, 36)));
        assert_eq!(take(7, Policy::HighMemory), None);
        assert_eq!(take(6, Policy::HighMemory), Some(range(4, 6)));
    }

    #[test]
    fn allocation_stays_within_limits() {
        let nodes = ram(&[(0, 50, 0), (50, 50, 1)]);
        let mut space = SpaceBuilder::new(&nodes, range(10, 10)).finish();
        let mut take = |limits, pages: u64, policy, vnode| {
            space.allocate_within(limits, pages * PAGE_SIZE, POOL, policy, vnode)
        };
        let limits = range(15, 45);
        assert_eq!(take(limits, 4, Policy::LowMemory, None), Some(range(20, 4)));
        assert_eq!(
            take(limits, 4, Policy::HighMemory, None),
            Some(range(56, 4))
        );
        assert_eq!(
            take(limits, 4, Policy::LowMemory, Some(1)),
            Some(range(50, 4))
        );
        assert_eq!(take(limits, 3, Policy::LowMemory, Some(1)), None);
        assert_eq!(take(range(10, 8), 1, Policy::LowMemory, None), None);
    }

    #[test]
    fn the_pool_comes_from_node_0_or_from_all() {
        let nodes = ram(&[(0, 100, 0), (100, 100, 1)]);
        let space = || SpaceBuilder::new(&nodes, range(0, 10)).finish();
        assert_eq!(
            allocate_pool(&mut space(), 20, false),
            Ok([range(80, 20)].into())
        );
        assert_eq!(
            allocate_pool(&mut space(), 21, true),
            Ok([range(90, 10), range(189, 11)].into())
        );
        assert_eq!(
            allocate_pool(&mut space(), 150, false),
            Ok([range(25, 75), range(125, 75)].into()),
            "too large for node 0"
        );
        assert_eq!(
            allocate_pool(&mut space(), 200, false),
            Err(MemoryError::Pool { pages: 200 })
        );
        assert!(allocate_pool(&mut space(), u64::MAX, false).is_err());
        assert_eq!(allocate_pool(&mut space(), 0, true), Ok([].into()));
    }

    proptest! {
        #[test]
        fn every_byte_keeps_exactly_one_purpose(
            requests in proptest::collection::vec((1u64..20, any::<bool>(), 0u32..3), 0..20),
        ) {
            let nodes = ram(&[(0, 64, 0), (64, 64, 1), (200, 64, 2)]);
            let mut space = SpaceBuilder::new(&nodes, range(5, 20)).finish();
            let mut taken: Vec<GpaRange> = Vec::new();
            for (pages, high, vnode) in requests {
                let policy = if high { Policy::HighMemory } else { Policy::LowMemory };
                if let Some(got) = space.allocate(pages * PAGE_SIZE, POOL, policy, Some(vnode)) {
                    prop_assert!(!got.overlaps(&range(5, 20)));
                    prop_assert!(taken.iter().all(|t| !t.overlaps(&got)));
                    taken.push(got);
                }
            }
            let typed = space.typed_ranges();
            prop_assert_eq!(typed.iter().map(|t| t.range.len()).sum::<u64>(), 192 * PAGE_SIZE);
            prop_assert!(typed.windows(2).all(|w| w[0].range.end() <= w[1].range.start()));
            let pool: u64 = typed.iter().filter(|t| t.purpose == POOL).map(|t| t.range.len()).sum();
            prop_assert_eq!(pool, taken.iter().map(GpaRange::len).sum::<u64>());
        }
    }
}
