//! The sidecar: a second kernel for processors that Linux does not boot.
//!
//! The shim decides who has which processor ([`split`]), gives the sidecar kernel its memory
//! ([`Plan::new`]) and calls it on the first processor ([`Plan::start`]). When that returns,
//! all other processors of the sidecar wait for commands, and Linux learns from its device
//! tree which ones are its own.
//!
//! Every way in which this does not happen has a reason ([`Off`], [`Failure`]); then Linux
//! boots all processors.

pub mod split;

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use loader_defs::memory_type::MemoryVtlType;
use sidecar_defs::{
    ErrorText, MAX_EXCLUDED_VPS, MAX_NODES, NodeParams, SidecarParams, node_memory_size,
};
use thiserror::Error;

use crate::boot::{Machine, VTL2};
use crate::linux::device_tree::Arch;
use crate::memory::MemoryError;
use crate::memory::space::{AddressSpace, Policy};
use crate::options::SidecarOptions;
use crate::params::ShimParams;
use crate::partition::PartitionInfo;
use split::{Chunk, Split, split};

/// Why nothing was even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Off {
    /// There is one for x86_64 only.
    #[error("there is none for this architecture")]
    Architecture,
    /// The image has none.
    #[error("the image has no sidecar kernel")]
    NotInImage,
    /// Somebody does not want it.
    #[error("OPENHCL_SIDECAR says so")]
    Option,
    /// On an isolated VM processors start in ways that it does not know.
    #[error("the VM is isolated")]
    Isolated,
    /// It runs VTL0 from VTL2.
    #[error("the shim runs in VTL{0}, expected VTL2")]
    Vtl(u8),
    /// Linux numbers the boot processor 0.
    #[error("the boot processor is not VP 0")]
    BootCpu,
    /// Where there are several processors, each is alone on its NUMA node.
    #[error("no two VPs in sequence are on one NUMA node")]
    OneCpuPerNode,
    /// The restored state wants all of them in Linux.
    #[error("all VPs are to be in Linux")]
    AllExcluded,
    /// The restored state wants one in Linux, which cannot be told.
    #[error("VP {vp} is to be in Linux, expected only such below {MAX_EXCLUDED_VPS}")]
    ExcludedVp {
        /// Which.
        vp: u32,
    },
    /// More nodes than the sidecar kernel takes.
    #[error("{found} nodes, expected at most {MAX_NODES}")]
    TooManyNodes {
        /// How many there would be.
        found: usize,
    },
    /// VTL2 is too small.
    #[error("no {size} bytes in one piece for the node of VP {base_vp}")]
    NoMemory {
        /// What the node needs.
        size: u64,
        /// First VP of the node.
        base_vp: u32,
    },
    /// The kernel is where something else is.
    #[error(transparent)]
    Image(#[from] MemoryError),
}

impl Off {
    /// Nobody would have expected it: somebody has built an image with a sidecar for a VM
    /// like this one, and will wonder.
    pub fn is_surprising(&self) -> bool {
        !matches!(
            self,
            Self::Architecture
                | Self::NotInImage
                | Self::Option
                | Self::Isolated
                | Self::OneCpuPerNode
        )
    }
}

/// The sidecar kernel has not started.
#[derive(Debug, Clone, Copy, Error)]
#[error("its kernel does not start: {}", text.as_str())]
pub struct Failure {
    /// CPUs that run it all the same, and use its memory.
    pub started: u32,
    /// It has begun to start CPUs: some may be on their way out, in its memory.
    pub begun: bool,
    /// What it says.
    pub text: ErrorText,
}

/// What the shim decides by.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The processor architecture.
    pub arch: Arch,
    /// The VTL of the shim.
    pub vtl: u8,
    /// What is in the image.
    pub params: &'a ShimParams,
    /// What is wanted.
    pub options: SidecarOptions,
    /// The VM.
    pub partition: &'a PartitionInfo,
    /// VPs that must be in Linux.
    pub excluded: &'a [u32],
}

/// A node, for which there is memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its processors.
    pub cpus: Chunk,
    /// GPA of its memory.
    pub memory_base: u64,
}

/// A sidecar that can be started.
#[derive(Debug)]
pub struct Plan {
    entry: u64,
    log: bool,
    nodes: ArrayVec<Node, MAX_NODES>,
    excluded: Vec<u32>,
    linux: Vec<u32>,
}

/// A sidecar that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Its nodes.
    pub nodes: ArrayVec<Node, MAX_NODES>,
    /// Processors of Linux but the first of all, in order.
    pub linux: Vec<u32>,
    /// Processors in the sidecar.
    pub started: u32,
    /// Reference times before and after the call, in units of 100 ns.
    pub times: Option<(u64, u64)>,
}

impl Plan {
    /// Splits the processors and takes memory for the sidecar's. If it cannot be, `space`
    /// stays as it is.
    pub fn new(circumstances: &Circumstances<'_>, space: &mut AddressSpace) -> Result<Self, Off> {
        let Circumstances {
            params, partition, ..
        } = *circumstances;
        check(circumstances)?;
        let vnodes = partition.cpus.iter().map(|cpu| cpu.vnode);
        let Split {
            nodes: chunks,
            excluded,
            linux,
        } = split(vnodes, circumstances.excluded.to_vec())?;

        let mut rest = space.clone();
        rest.reserve(
            "sidecar kernel",
            params.sidecar,
            MemoryVtlType::SIDECAR_IMAGE,
        )?;
        let mut nodes = ArrayVec::new();
        for cpus in chunks {
            let size = node_memory_size(cpus.cpu_count);
            // Only this memory is mapped, and the kernel fills it from the first processor.
            let mut take = |vnode| {
                rest.allocate_within(
                    params.memory,
                    size,
                    MemoryVtlType::SIDECAR_NODE,
                    Policy::LowMemory,
                    vnode,
                )
            };
            let memory = take(Some(cpus.vnode)).or_else(|| take(None));
            let memory_base = memory
                .ok_or(Off::NoMemory {
                    size,
                    base_vp: cpus.base_vp,
                })?
                .start();
            // As many as there are chunks, of which there are no more.
            nodes.push(Node { cpus, memory_base });
        }
        *space = rest;
        Ok(Self {
            entry: params.sidecar_entry,
            log: circumstances.options.log,
            nodes,
            excluded,
            linux,
        })
    }

    /// Calls the sidecar kernel.
    pub fn start(self, machine: &mut dyn Machine) -> Result<Sidecar, Box<Failure>> {
        let mut params = self.params();
        let before = machine.reference_time();
        let result = machine.start_sidecar(self.entry, &mut params);
        let after = machine.reference_time();
        Ok(Sidecar {
            started: result?,
            nodes: self.nodes,
            linux: self.linux,
            times: before.zip(after),
        })
    }

    fn params(&self) -> Box<SidecarParams> {
        let mut params = Box::new(SidecarParams::EMPTY);
        params.enable_logging = self.log.into();
        params.node_count = self.nodes.len() as u32;
        for (to, node) in params.nodes.iter_mut().zip(&self.nodes) {
            *to = NodeParams {
                memory_base: node.memory_base,
                base_vp: node.cpus.base_vp,
                cpu_count: node.cpus.cpu_count,
            };
        }
        for &vp in &self.excluded {
            // `split` has seen to it that each has its bit.
            params.exclude(vp);
        }
        params
    }
}

fn check(circumstances: &Circumstances<'_>) -> Result<(), Off> {
    let Circumstances {
        params, partition, ..
    } = *circumstances;
    let boot_cpu = u64::from(partition.boot_cpu);
    if circumstances.arch != Arch::X64 {
        Err(Off::Architecture)
    } else if params.sidecar.is_empty() {
        Err(Off::NotInImage)
    } else if !circumstances.options.enabled {
        Err(Off::Option)
    } else if partition.trust.is_isolated() {
        Err(Off::Isolated)
    } else if circumstances.vtl != VTL2 {
        Err(Off::Vtl(circumstances.vtl))
    } else if partition.cpus.first().map(|cpu| cpu.hardware_id) != Some(boot_cpu) {
        Err(Off::BootCpu)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
