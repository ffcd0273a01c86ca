//! Which processors Linux boots, and which the sidecar kernel has.
//!
//! Processors of one NUMA node that follow each other are cut into equal chunks of at most
//! [`MAX_CPUS_PER_NODE`]. The first processor of a chunk runs Linux, from where the worker
//! looks after the others; those are the sidecar's, unless they are *excluded*: a restored
//! state can say that a device's interrupts go to them. A chunk in which that leaves nothing
//! for the sidecar is Linux' alone. NUMA nodes without processors never come up here, because
//! chunks are made of processors.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use sidecar_defs::{MAX_CPUS_PER_NODE, MAX_EXCLUDED_VPS, MAX_NODES};

use super::Off;

/// Processors that follow each other on one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// VP index of the first, which runs Linux.
    pub base_vp: u32,
    /// How many, with the first.
    pub cpu_count: u32,
    /// Their NUMA node.
    pub vnode: u32,
}

impl Chunk {
    /// The VPs that the sidecar could have.
    fn others(&self) -> impl Iterator<Item = u32> + use<> {
        self.base_vp + 1..self.base_vp + self.cpu_count
    }
}

/// Who has which processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The chunks that have processors for the sidecar.
    pub nodes: ArrayVec<Chunk, MAX_NODES>,
    /// Processors of these that Linux has although they are not the first, in order.
    pub excluded: Vec<u32>,
    /// All processors of Linux but the first of all, in order.
    pub linux: Vec<u32>,
}

/// Splits processors, whose NUMA nodes are `vnodes` in VP order.
pub fn split(vnodes: impl IntoIterator<Item = u32>, mut excluded: Vec<u32>) -> Result<Split, Off> {
    excluded.sort_unstable();
    excluded.dedup();
    let is_excluded = |vp: &u32| excluded.binary_search(vp).is_ok();
    let mut split = Split {
        nodes: ArrayVec::new(),
        excluded: Vec::new(),
        linux: Vec::new(),
    };
    let mut has_others = false;
    let mut found = 0;
    for chunk in chunks(vnodes) {
        has_others |= chunk.cpu_count > 1;
        split.linux.push(chunk.base_vp);
        split.linux.extend(chunk.others().filter(is_excluded));
        if chunk.others().all(|vp| is_excluded(&vp)) {
            continue;
        }
        split.excluded.extend(chunk.others().filter(is_excluded));
        found += 1;
        // What is too much is told below, with its number.
        let _ = split.nodes.try_push(chunk);
    }
    split.linux.retain(|vp| *vp != 0);
    if !has_others {
        return Err(Off::OneCpuPerNode);
    }
    if found == 0 {
        return Err(Off::AllExcluded);
    }
    if found > MAX_NODES {
        return Err(Off::TooManyNodes { found });
    }
    match split.excluded.last() {
        Some(&vp) if vp as usize >= MAX_EXCLUDED_VPS => Err(Off::ExcludedVp { vp }),
        _ => Ok(split),
    }
}

/// Cuts processors into chunks.
fn chunks(vnodes: impl IntoIterator<Item = u32>) -> impl Iterator<Item = Chunk> {
    let mut groups: Vec<Chunk> = Vec::new();
    for (vp, vnode) in (0..).zip(vnodes) {
        match groups.last_mut() {
            Some(group) if group.vnode == vnode => group.cpu_count += 1,
            _ => groups.push(Chunk {
                base_vp: vp,
                cpu_count: 1,
                vnode,
            }),
        }
    }
    groups.into_iter().flat_map(|group| {
        let parts = group.cpu_count.div_ceil(MAX_CPUS_PER_NODE);
        // The first parts have one more when it does not come out even.
        let begin = move |part: u32| {
            let (least, rest) = (group.cpu_count / parts, group.cpu_count % parts);
            group.base_vp + part * least + part.min(rest)
        };
        (0..parts).map(move |part| Chunk {
            base_vp: begin(part),
            cpu_count: begin(part + 1) - begin(part),
            vnode: group.vnode,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::iter::repeat_n;
    use proptest::prelude::*;

    /// `(VPs, NUMA node)` in VP order.
    fn vnodes(groups: &[(usize, u32)]) -> Vec<u32> {
        let groups = groups.iter().map(|&(vps, vnode)| repeat_n(vnode, vps));
        groups.flatten().collect()
    }

    fn split_groups(groups: &[(usize, u32)], excluded: &[u32]) -> Result<Split, Off> {
        split(vnodes(groups), excluded.to_vec())
    }

    /// First VP and size of each node.
    fn nodes(groups: &[(usize, u32)], excluded: &[u32]) -> Vec<(u32, u32)> {
        let split = split_groups(groups, excluded).unwrap();
        split
            .nodes
            .iter()
            .map(|n| (n.base_vp, n.cpu_count))
            .collect()
    }

    #[test]
    fn a_small_vm_is_one_node() {
        let split = split_groups(&[(4, 0)], &[]).unwrap();
        assert_eq!(
            split.nodes[..],
            [Chunk {
                base_vp: 0,
                cpu_count: 4,
                vnode: 0
            }]
        );
        assert!(split.linux.is_empty() && split.excluded.is_empty());
    }

    #[test]
    fn large_groups_are_cut_into_equal_parts() {
        assert_eq!(nodes(&[(32, 0)], &[]), [(0, 32)]);
        assert_eq!(nodes(&[(33, 0)], &[]), [(0, 17), (17, 16)]);
        assert_eq!(nodes(&[(64, 0)], &[]), [(0, 32), (32, 32)]);
        assert_eq!(
            nodes(&[(100, 0)], &[]),
            [(0, 25), (25, 25), (50, 25), (75, 25)]
        );
        assert_eq!(nodes(&[(65, 0)], &[]), [(0, 22), (22, 22), (44, 21)]);
    }

    #[test]
    fn numa_nodes_are_not_mixed_and_their_numbers_do_not_matter() {
        let split = split_groups(&[(2, 7), (3, 0), (2, 7)], &[]).unwrap();
        let found: Vec<_> = split.nodes.iter().map(|n| (n.base_vp, n.vnode)).collect();
        assert_eq!(found, [(0, 7), (2, 0), (5, 7)]);
        assert_eq!(split.linux, [2, 5]);
    }

    #[test]
    fn a_processor_that_is_alone_on_its_node_is_linux() {
        let split = split_groups(&[(1, 0), (2, 1), (1, 2)], &[]).unwrap();
        assert_eq!(split.nodes.len(), 1);
        assert_eq!(split.linux, [1, 3]);
        assert_eq!(split_groups(&[(1, 0)], &[]), Err(Off::OneCpuPerNode));
        assert_eq!(
            split_groups(&[(1, 0), (1, 1), (1, 0)], &[]),
            Err(Off::OneCpuPerNode)
        );
        assert_eq!(split_groups(&[], &[]), Err(Off::OneCpuPerNode));
    }

    #[test]
    fn excluded_processors_are_linux() {
        let split = split_groups(&[(4, 0), (4, 1)], &[6, 2, 6, 99]).unwrap();
        assert_eq!(split.linux, [2, 4, 6]);
        assert_eq!(split.excluded, [2, 6]);
        assert_eq!(split.nodes.len(), 2);
    }

    #[test]
    fn a_node_whose_processors_are_all_excluded_is_none() {
        let split = split_groups(&[(3, 0), (3, 1)], &[1, 2]).unwrap();
        assert_eq!(split.nodes[0].base_vp, 3);
        assert_eq!(split.linux, [1, 2, 3]);
        assert!(split.excluded.is_empty(), "they are in no node");
        let all = split_groups(&[(3, 0), (2, 1)], &[1, 2, 4]);
        assert_eq!(all, Err(Off::AllExcluded));
    }

    #[test]
    fn an_excluded_base_is_linux_anyway() {
        let split = split_groups(&[(2, 0), (2, 1)], &[0, 2]).unwrap();
        assert_eq!((split.nodes.len(), &split.linux[..]), (2, &[2][..]));
        assert!(split.excluded.is_empty());
    }

    #[test]
    fn what_the_parameters_have_no_room_for_is_told() {
        let pairs: Vec<(usize, u32)> = (0..61).map(|node| (2, node)).collect();
        assert_eq!(
            split_groups(&pairs, &[]),
            Err(Off::TooManyNodes { found: 61 })
        );
        assert!(split_groups(&pairs[..60], &[]).is_ok());
        // Nodes that are none do not count.
        assert!(split_groups(&pairs, &[1]).is_ok());
        let many = [(1100, 0)];
        assert_eq!(
            split_groups(&many, &[1050]),
            Err(Off::ExcludedVp { vp: 1050 })
        );
        assert!(split_groups(&many, &[1020]).is_ok());
    }

    proptest! {
        #[test]
        fn every_processor_has_one_place(
            vnodes in prop::collection::vec((1usize..80, 0u32..4), 0..12),
            excluded in prop::collection::vec(0u32..600, 0..40),
        ) {
            let vnodes = super::tests::vnodes(&vnodes);
            let Ok(split) = split(vnodes.iter().copied(), excluded.clone()) else {
                return Ok(());
            };
            let mut owners = std::vec![0; vnodes.len()];
            owners[0] += 1;
            for &vp in &split.linux {
                owners[vp as usize] += 1;
            }
            for node in &split.nodes {
                prop_assert!((2..=MAX_CPUS_PER_NODE).contains(&node.cpu_count));
                let vps = node.base_vp..node.base_vp + node.cpu_count;
                prop_assert!(vps.clone().all(|vp| vnodes[vp as usize] == node.vnode));
                prop_assert!(node.base_vp == 0 || split.linux.contains(&node.base_vp));
                let mut some = false;
                for vp in node.others().filter(|vp| !split.excluded.contains(vp)) {
                    owners[vp as usize] += 1;
                    some = true;
                    prop_assert!(!excluded.contains(&vp));
                }
                prop_assert!(some);
            }
            prop_assert!(owners.iter().all(|count| *count == 1), "{owners:?}");
            prop_assert!(split.linux.is_sorted());
        }
    }
}
