//! Which CPUs are started, and whether what the shim wants is possible.

use core::fmt;
use loader_defs::PAGE_SIZE;
use sidecar_defs::CpuStatus;
use sidecar_defs::MAX_CPUS_PER_NODE;
use sidecar_defs::MAX_NODES;
use sidecar_defs::NodeParams;
use sidecar_defs::SidecarParams;
use thiserror::Error;

/// What is wrong with the shim's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParamsError {
    /// Nodes.
    #[error("{0} nodes, expected 1 to {MAX_NODES}")]
    Nodes(u32),
    /// CPUs.
    #[error("node {node} has {cpus} CPUs, expected 2 to {MAX_CPUS_PER_NODE}")]
    Cpus {
        /// Which node.
        node: usize,
        /// How many.
        cpus: u32,
    },
    /// Memory.
    #[error("memory of node {node} is at {address:#x}, expected whole pages other than the first")]
    Memory {
        /// Which node.
        node: usize,
        /// Where.
        address: u64,
    },
    /// VPs.
    #[error("node {node} begins with VP {vp}, which is beyond the last possible one")]
    Vps {
        /// Which node.
        node: usize,
        /// Its first VP.
        vp: u32,
    },
}

/// The nodes in use, which are as they should be.
pub fn nodes(params: &SidecarParams) -> Result<&[NodeParams], ParamsError> {
    let nodes = usize::try_from(params.node_count)
        .ok()
        .and_then(|count| params.nodes.get(..count))
        .filter(|nodes| !nodes.is_empty())
        .ok_or(ParamsError::Nodes(params.node_count))?;
    for (node, params) in nodes.iter().enumerate() {
        if !(2..=MAX_CPUS_PER_NODE).contains(&params.cpu_count) {
            return Err(ParamsError::Cpus {
                node,
                cpus: params.cpu_count,
            });
        }
        let address = params.memory_base;
        if address == 0 || !address.is_multiple_of(PAGE_SIZE) || address >> 52 != 0 {
            return Err(ParamsError::Memory { node, address });
        }
        if params.base_vp.checked_add(params.cpu_count).is_none() {
            return Err(ParamsError::Vps {
                node,
                vp: params.base_vp,
            });
        }
    }
    Ok(nodes)
}

/// What a CPU begins with: CPUs that are to be started count as running until they are idle.
pub fn first_status(params: &SidecarParams, node: &NodeParams, cpu: u32) -> CpuStatus {
    if cpu == 0 || params.is_excluded(node.base_vp + cpu) {
        CpuStatus::REMOVED
    } else {
        CpuStatus::RUN
    }
}

/// CPUs in words, such as "VP 3, 4, 5".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vps(
    /// A bit for each CPU of a node.
    pub u32,
    /// VP of its first CPU.
    pub u32,
);

impl fmt::Display for Vps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut vps = (0..32).filter(|cpu| self.0 >> cpu & 1 != 0);
        write!(f, "VP ")?;
        if let Some(cpu) = vps.next() {
            write!(f, "{}", self.1 + cpu)?;
        }
        vps.try_for_each(|cpu| write!(f, ", {}", self.1 + cpu))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn params(cpu_count: u32) -> SidecarParams {
        let mut params = SidecarParams::EMPTY;
        params.node_count = 1;
        params.nodes[0] = NodeParams {
            memory_base: 0x10_0000,
            base_vp: 4,
            cpu_count,
        };
        params
    }

    #[test]
    fn a_node_has_a_base_cpu_and_at_least_one_other() {
        assert!(nodes(&params(2)).is_ok() && nodes(&params(32)).is_ok());
        for cpus in [0, 1, 33] {
            let error = ParamsError::Cpus { node: 0, cpus };
            assert_eq!(nodes(&params(cpus)), Err(error));
        }
    }

    #[test]
    fn all_but_the_base_cpu_and_excluded_ones_are_started() {
        let mut params = params(4);
        params.exclude(6);
        let statuses = [0, 1, 2, 3].map(|cpu| first_status(&params, &params.nodes[0], cpu));
        let (removed, run) = (CpuStatus::REMOVED, CpuStatus::RUN);
        assert_eq!(statuses, [removed, run, removed, run]);
    }

    #[test]
    fn cpus_are_listed_by_vp() {
        assert_eq!(Vps(0b1010, 4).to_string(), "VP 5, 7");
    }

    proptest! {
        #[test]
        fn any_parameters_are_taken_or_refused(
            node_count: u32,
            memory_base: u64,
            base_vp: u32,
            cpu_count in 0..40_u32,
        ) {
            let mut params = SidecarParams::EMPTY;
            params.node_count = node_count % 80;
            params.nodes = [NodeParams { memory_base, base_vp, cpu_count }; MAX_NODES];
            if let Ok(nodes) = nodes(&params) {
                prop_assert!((1..=MAX_NODES).contains(&nodes.len()));
                for cpu in 0..nodes[0].cpu_count {
                    first_status(&params, &nodes[0], cpu);
                }
            }
        }
    }
}
