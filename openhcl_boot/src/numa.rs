//! NUMA nodes of the VM: which have processors, which have memory.
//!
//! A node need not have both, nodes need not be numbered without gaps, and the processors of
//! a node need not have consecutive ids. Nothing in the shim counts on it.

use alloc::collections::BTreeMap;
use core::fmt;

use crate::partition::PartitionInfo;

/// What a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Processors.
    pub cpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
}

/// The nodes by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNodes(BTreeMap<u32, NumaNode>);

impl NumaNodes {
    /// The nodes that the host names.
    pub fn of(partition: &PartitionInfo) -> Self {
        let mut nodes: BTreeMap<u32, NumaNode> = BTreeMap::new();
        for cpu in &partition.cpus {
            nodes.entry(cpu.vnode).or_default().cpus += 1;
        }
        for memory in partition.memory.iter().filter(|m| m.is_ram()) {
            nodes.entry(memory.vnode).or_default().memory += memory.range.len();
        }
        Self(nodes)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for NumaNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NUMA nodes (VPs, MiB):")?;
        for (number, node) in &self.0 {
            write!(f, " {number} ({}, {})", node.cpus, node.memory >> 20)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_dt::HostDeviceTree;
    use crate::host_dt::tests::{HostTree, MIB};
    use crate::isolation::{Isolation, Trust};
    use alloc::string::ToString;

    #[test]
    fn nodes_without_processors_or_memory_and_gaps_are_nodes() {
        let mut tree = HostTree::plain();
        tree.cpus = [(1, 0), (2, 0), (9, 7)].into();
        tree.memory = [(0, 256 * MIB, 0, 0), (256 * MIB, 64 * MIB, 3, 0)].into();
        let host = HostDeviceTree::parse(&tree.build()).unwrap();
        let trust = Trust::new(Isolation::None, false);
        let nodes = NumaNodes::of(&PartitionInfo::new(host, trust).unwrap());
        assert_eq!(nodes.count(), 3);
        assert_eq!(
            nodes.to_string(),
            "NUMA nodes (VPs, MiB): 0 (2, 256) 3 (0, 64) 7 (1, 0)"
        );
    }
}
