//! NUMA nodes: how many VPs each has.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// The most nodes that a machine can have; the boot shim takes no more.
pub const MAX_NUMA_NODES: usize = 64;

/// The number of VPs of each node, in the order of the nodes; reads and prints as `4,4,0`.
///
/// VPs are numbered through. A node may have none: it is memory only. Memory is divided
/// evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNodes(Vec<u32>);

/// Why a text is not a [`NumaNodes`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NumaNodesError {
    /// Not a list of numbers.
    #[error("NUMA nodes {text:?}: expected numbers of VPs like \"4,4,0\": {source}")]
    Number {
        /// What was given.
        text: String,
        /// Why.
        source: ParseIntError,
    },
    /// Too few or too many.
    #[error("{found} NUMA nodes: expected 1 to {MAX_NUMA_NODES}")]
    Count {
        /// What was asked for.
        found: usize,
    },
}

impl NumaNodes {
    /// Nodes with so many VPs.
    pub fn new(vps: impl Into<Vec<u32>>) -> Result<Self, NumaNodesError> {
        let vps = vps.into();
        match (1..=MAX_NUMA_NODES).contains(&vps.len()) {
            true => Ok(Self(vps)),
            false => Err(NumaNodesError::Count { found: vps.len() }),
        }
    }

    /// VPs of all nodes.
    pub fn vps(&self) -> u32 {
        self.0.iter().copied().fold(0, u32::saturating_add)
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The vCPUs of each node as first and number, if `parked` vCPUs come before the first
    /// VP. Those are on the node of the first VP, where no other can be disturbed.
    pub(crate) fn vcpus(&self, parked: u32) -> Vec<(u32, u32)> {
        let mut next = 0;
        let mut before = parked;
        let ranges = self.0.iter().map(|&vps| {
            let count = match vps {
                0 => 0,
                vps => vps + std::mem::take(&mut before),
            };
            let first = next;
            next += count;
            (first, count)
        });
        ranges.collect()
    }

    /// The part of each node of so many MiB; the first gets the remainder.
    pub(crate) fn memory_mib(&self, mib: u64) -> Vec<u64> {
        let count = self.0.len() as u64;
        let mut parts = vec![mib / count; self.0.len()];
        parts[0] += mib % count;
        parts
    }
}

impl fmt::Display for NumaNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, vps) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{vps}")?;
        }
        Ok(())
    }
}

impl FromStr for NumaNodes {
    type Err = NumaNodesError;

    fn from_str(text: &str) -> Result<Self, NumaNodesError> {
        let numbers = text.split(',').map(str::parse);
        let vps: Vec<u32> =
            numbers
                .collect::<Result<_, _>>()
                .map_err(|source| NumaNodesError::Number {
                    text: text.to_owned(),
                    source,
                })?;
        Self::new(vps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> NumaNodes {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_read_is_printed() {
        for text in ["1", "4,4,0", "0,3"] {
            assert_eq!(nodes(text).to_string(), text);
        }
        assert_eq!((nodes("4,4,0").vps(), nodes("4,4,0").count()), (8, 3));
    }

    #[test]
    fn what_is_no_list_of_nodes_is_refused() {
        for text in ["", "4,", "a", "-1", "4;4", "4294967296"] {
            let refused = text.parse::<NumaNodes>();
            assert!(
                matches!(refused, Err(NumaNodesError::Number { .. })),
                "{text:?}"
            );
        }
        let many = vec![1; MAX_NUMA_NODES + 1];
        assert_eq!(
            NumaNodes::new(many),
            Err(NumaNodesError::Count { found: 65 })
        );
        assert_eq!(NumaNodes::new([]), Err(NumaNodesError::Count { found: 0 }));
    }

    #[test]
    fn the_parked_vcpu_is_on_the_node_of_the_first_vp() {
        assert_eq!(nodes("2,0,3").vcpus(1), [(0, 3), (3, 0), (3, 3)]);
        assert_eq!(nodes("0,3").vcpus(1), [(0, 0), (0, 4)]);
        assert_eq!(nodes("2,3").vcpus(0), [(0, 2), (2, 3)]);
    }

    #[test]
    fn memory_is_divided_without_a_rest() {
        assert_eq!(nodes("2,0,3").memory_mib(1024), [342, 341, 341]);
        assert_eq!(nodes("2").memory_mib(7), [7]);
    }
}
