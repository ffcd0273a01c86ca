//! Which RAM is VTL2's.

use alloc::vec::Vec;

use super::{MemoryError, NodeRange};
use crate::host_dt::AllocationMode;
use crate::partition::PartitionInfo;
use crate::range::GpaRange;

/// VTL2's memory comes in pieces of 8 pages: one byte of a bitmap of VTL permissions.
const GRANULARITY: u64 = 32 << 10;

/// Chooses VTL2's RAM: sorted, disjoint, and covering `image`, the memory that the image
/// was built for. `imported` is everything that the launch has put into memory, `None` if
/// that is not known.
pub fn select(
    partition: &PartitionInfo,
    image: GpaRange,
    imported: Option<&[GpaRange]>,
) -> Result<Vec<NodeRange>, MemoryError> {
    let mut ram = match partition.allocation_mode {
        AllocationMode::Host if partition.trust.is_isolated() => isolated(partition, image),
        AllocationMode::Host => host_choice(partition, image),
        AllocationMode::Vtl2 { memory_size, .. } => {
            let imported = imported.ok_or(MemoryError::Relocated)?;
            own_choice(partition, image, imported, memory_size)?
        }
    };
    ram.sort_unstable_by_key(|r| r.range);
    check_covered(&ram, image)?;
    Ok(ram)
}

fn host_choice(partition: &PartitionInfo, image: GpaRange) -> Vec<NodeRange> {
    let ram: Vec<NodeRange> = partition
        .vtl2_protectable()
        .map(|m| NodeRange {
            range: m.range,
            vnode: m.vnode,
        })
        .collect();
    if ram.is_empty() {
        // A host that marks nothing has loaded the image where it was built for.
        return [NodeRange {
            range: image,
            vnode: 0,
        }]
        .into();
    }
    ram
}

// One range, so that the host cannot scatter VTL2 over places that it has prepared.
fn isolated(partition: &PartitionInfo, image: GpaRange) -> Vec<NodeRange> {
    let marked: u64 = partition.vtl2_protectable().map(|m| m.range.len()).sum();
    let vnode = partition
        .memory
        .iter()
        .find(|m| m.range.contains_address(image.start()))
        .map_or(0, |m| m.vnode);
    let range = GpaRange::new(image.start(), marked.max(image.len())).unwrap_or(image);
    [NodeRange { range, vnode }].into()
}

fn own_choice(
    partition: &PartitionInfo,
    image: GpaRange,
    imported: &[GpaRange],
    memory_size: Option<u64>,
) -> Result<Vec<NodeRange>, MemoryError> {
    let size = memory_size.unwrap_or(image.len());
    if size < image.len() {
        return Err(MemoryError::TooSmall {
            found: size,
            expected: image.len(),
        });
    }
    let usable = || partition.memory.iter().filter(|m| m.is_ram());
    let mut nodes: Vec<u32> = usable().map(|m| m.vnode).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let share = size
        .div_ceil(nodes.len().max(1) as u64)
        .checked_next_multiple_of(GRANULARITY)
        .ok_or(MemoryError::NodeTooSmall {
            vnode: 0,
            missing: size,
        })?;

    let mut ram = Vec::new();
    for vnode in nodes {
        let mut missing = share;
        for memory in usable().filter(|m| m.vnode == vnode) {
            let range = memory.range.intersection(&image);
            if !range.is_empty() {
                missing = missing.saturating_sub(range.len());
                ram.push(NodeRange { range, vnode });
            }
        }
        let own = usable().filter(|m| m.vnode == vnode).map(|m| m.range);
        let mut free: Vec<GpaRange> = own.collect();
        for taken in imported.iter().chain([&image]) {
            free = free
                .iter()
                .flat_map(|range| range.without(taken))
                .filter(|range| !range.is_empty())
                .collect();
        }
        // From the top, because low memory is what the guest's firmware needs.
        free.sort_unstable();
        for range in free.into_iter().rev() {
            if missing == 0 {
                break;
            }
            let start = range.end() - missing.min(range.len());
            let start = (start & !(GRANULARITY - 1)).max(range.start());
            if let Some(range) = GpaRange::from_bounds(start, range.end()) {
                missing = missing.saturating_sub(range.len());
                ram.push(NodeRange { range, vnode });
            }
        }
        if missing > 0 {
            return Err(MemoryError::NodeTooSmall { vnode, missing });
        }
    }
    Ok(ram)
}

fn check_covered(ram: &[NodeRange], image: GpaRange) -> Result<(), MemoryError> {
    let mut reached = image.start();
    for NodeRange { range, .. } in ram {
        if range.contains_address(reached) {
            reached = range.end();
        }
    }
    if reached >= image.end() {
        return Ok(());
    }
    let next = ram.iter().map(|r| r.range.start()).find(|s| *s > reached);
    let end = next.unwrap_or(image.end()).min(image.end());
    Err(MemoryError::ImageNotCovered {
        image,
        missing: GpaRange::from_bounds(reached, end).unwrap_or(image),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_dt::HostDeviceTree;
    use crate::host_dt::tests::{HostTree, MIB};
    use crate::isolation::{Isolation, Trust};
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn image() -> GpaRange {
        range(128 * MIB, 64 * MIB)
    }

    fn range(start: u64, length: u64) -> GpaRange {
        GpaRange::new(start, length).unwrap()
    }

    fn run(
        tree: &HostTree,
        isolation: Isolation,
        imported: Option<&[GpaRange]>,
    ) -> Result<Vec<NodeRange>, MemoryError> {
        let host = HostDeviceTree::parse(&tree.build()).unwrap();
        let partition = PartitionInfo::new(host, Trust::new(isolation, false)).unwrap();
        select(&partition, image(), imported)
    }

    fn vtl2_mode(memory: Vec<(u64, u64, u32, u16)>, size: Option<u64>) -> HostTree {
        let mut tree = HostTree::plain();
        tree.mode = "vtl2";
        tree.memory_size = size;
        tree.memory = memory;
        tree
    }

    #[test]
    fn in_host_mode_the_marked_ranges_are_used() {
        let mut tree = HostTree::plain();
        tree.memory.push((4 * GIB, 256 * MIB, 0, 3));
        let ram = run(&tree, Isolation::None, None).unwrap();
        assert_eq!(ram.len(), 2);
        assert_eq!(ram[1].range, range(4 * GIB, 256 * MIB));
    }

    #[test]
    fn without_marks_the_image_keeps_to_its_own_range() {
        let mut tree = HostTree::plain();
        tree.memory = [(0, GIB, 0, 0)].into();
        let ram = run(&tree, Isolation::None, None).unwrap();
        assert_eq!(ram[0].range, image());
    }

    #[test]
    fn marks_that_miss_the_image_are_refused() {
        let mut tree = HostTree::plain();
        tree.memory[1].1 = 32 * MIB;
        assert_eq!(
            run(&tree, Isolation::None, None),
            Err(MemoryError::ImageNotCovered {
                image: image(),
                missing: range(160 * MIB, 32 * MIB)
            })
        );
    }

    #[test]
    fn isolated_vms_get_one_range_at_the_image() {
        let mut tree = HostTree::plain();
        tree.memory.push((4 * GIB, 256 * MIB, 0, 3));
        let ram = run(&tree, Isolation::Vbs, None).unwrap();
        assert_eq!(ram.len(), 1);
        assert_eq!(ram[0].range, range(128 * MIB, 320 * MIB));
    }

    #[test]
    fn in_vtl2_mode_each_node_gives_its_share_from_the_top() {
        let tree = vtl2_mode(
            [(0, GIB, 0, 0), (4 * GIB, GIB, 1, 0)].into(),
            Some(256 * MIB),
        );
        // The launch has also filled the top of node 1.
        let imported = [range(5 * GIB - MIB, MIB)];
        let ram = run(&tree, Isolation::None, Some(&imported)).unwrap();
        assert_eq!(
            ram,
            [
                NodeRange {
                    range: image(),
                    vnode: 0
                },
                NodeRange {
                    range: range(GIB - 64 * MIB, 64 * MIB),
                    vnode: 0
                },
                NodeRange {
                    range: range(5 * GIB - 129 * MIB, 128 * MIB),
                    vnode: 1
                },
            ]
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let all = |size| vtl2_mode([(0, GIB, 0, 0)].into(), Some(size));
        assert!(matches!(
            run(&all(MIB), Isolation::None, Some(&[])),
            Err(MemoryError::TooSmall { .. })
        ));
        assert_eq!(
            run(&all(2 * GIB), Isolation::None, Some(&[])),
            Err(MemoryError::NodeTooSmall {
                vnode: 0,
                missing: GIB
            })
        );
        assert!(run(&all(u64::MAX), Isolation::None, Some(&[])).is_err());
        assert_eq!(
            run(&all(64 * MIB), Isolation::None, None),
            Err(MemoryError::Relocated)
        );
    }

    proptest! {
        #[test]
        fn own_choices_are_disjoint_large_enough_and_in_ram(
            size in 64u64..600,
            imported in proptest::collection::vec((200u64..1000, 1u64..8), 0..6),
        ) {
            let tree = vtl2_mode([(0, GIB, 0, 0)].into(), Some(size * MIB));
            let imported: Vec<GpaRange> = imported
                .iter()
                .map(|&(start, length)| range(start * MIB + 4096, length * 4096))
                .collect();
            let ram = run(&tree, Isolation::None, Some(&imported)).unwrap();
            let total: u64 = ram.iter().map(|r| r.range.len()).sum();
            prop_assert!(total >= size * MIB);
            for pair in ram.windows(2) {
                prop_assert!(!pair[0].range.overlaps(&pair[1].range));
            }
            for NodeRange { range, .. } in ram {
                prop_assert!(range.end() <= GIB);
                prop_assert!(range == image() || !imported.iter().any(|i| i.overlaps(&range)));
            }
        }
    }
}
