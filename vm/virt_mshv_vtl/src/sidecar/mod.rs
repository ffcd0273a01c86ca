//! VPs whose CPUs run the sidecar's kernel instead of Linux.
//!
//! There is no driver for them: their pages are memory that the boot shim has reserved,
//! mapped here through the device for VTL0's memory. A CPU is woken by an interrupt that the
//! host sends for us ([`Wake`]). It answers by an event flag, which Linux turns into an event
//! ([`crate::device::SintFile`]). So a guest in the sidecar needs no thread, and whoever
//! waits for many of them does so with one.
//!
//! ```text
//!   Remote (a VP)  --commands-->  Cpu  --status, interrupt-->  sidecar kernel
//!      | leave                     ^------- status, event --------'
//!      v
//!   Carried: what the CPU would lose  --> Linux boots the CPU --> a thread binds the VP
//! ```
//!
//! * Promises: whatever is in the pages, an answer or an error comes of it, in bounded time:
//!   a CPU that is silent for [`cpu::PATIENCE`] is reported. A cancellation is never lost.
//! * Relies on: one owner for each VP ([`Remote`]), which the partition sees to.

mod control;
mod cpu;
mod online;
#[cfg(test)]
mod tests;
mod vp;

pub(crate) use cpu::Carried;
pub(crate) use cpu::Cpu;
pub(crate) use online::SYS;
pub(crate) use online::is_online;
pub(crate) use online::online;
pub(crate) use vp::Home;
pub(crate) use vp::Remote;

use crate::error::Error;
use crate::hypercall::Hypercalls;
use control::Control;
use hv_defs::HV_PAGE_SIZE;
use sidecar_defs::MAX_CPUS_PER_NODE;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The CPU that gets the answers. It is the first of a node, so it runs Linux.
const RESPONSE_VP: u32 = 0;

/// A node of the sidecar, as the boot shim has made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarNode {
    /// GPA of its control page; the other pages follow.
    pub control_page: u64,
    /// VP of its first CPU, which runs Linux.
    pub base_vp: u32,
    /// CPUs, with the first.
    pub cpu_count: u32,
}

/// Interrupts a CPU of the sidecar.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self, vp: u32) -> Result<(), Error>;
}

impl Wake for Hypercalls {
    fn wake(&self, vp: u32) -> Result<(), Error> {
        self.interrupt_vp(vp, sidecar_defs::REQUEST_VECTOR)
    }
}

/// Maps the pages of all CPUs of `nodes` in `memory`, whose offsets are GPAs. The order is
/// that of their VPs.
pub(crate) fn map(
    nodes: &[SidecarNode],
    vp_count: u32,
    memory: BorrowedFd<'_>,
    waker: &Arc<dyn Wake>,
) -> Result<Vec<Cpu>, Error> {
    check(nodes, vp_count)?;
    let mut cpus = Vec::new();
    for node in nodes {
        let control = Arc::new(Control::map(memory, node)?);
        control.answer_to(RESPONSE_VP);
        for cpu in 1..node.cpu_count {
            cpus.push(Cpu::map(memory, node, cpu, control.clone(), waker.clone())?);
        }
    }
    cpus.sort_by_key(Cpu::vp);
    Ok(cpus)
}

/// What a node says must be possible: all below is computed from it.
fn check(nodes: &[SidecarNode], vp_count: u32) -> Result<(), Error> {
    let mut next_vp = 0;
    let mut sorted = nodes.to_vec();
    sorted.sort_by_key(|node| node.base_vp);
    for node in sorted {
        let wrong = |what, found, expected| {
            Err(Error::SidecarNode {
                control_page: node.control_page,
                what,
                found,
                expected,
            })
        };
        let end = node.base_vp.checked_add(node.cpu_count);
        if !node.control_page.is_multiple_of(HV_PAGE_SIZE) || node.control_page >= 1 << 52 {
            return wrong("address", node.control_page, "a page's");
        }
        if !(1..=MAX_CPUS_PER_NODE).contains(&node.cpu_count) {
            return wrong("number of CPUs", node.cpu_count.into(), "1 to 32");
        }
        if node.base_vp < next_vp {
            let found = node.base_vp.into();
            return wrong("first VP", found, "one that is in no other node");
        }
        match end {
            Some(end) if end <= vp_count => next_vp = end,
            _ => return wrong("first VP", node.base_vp.into(), "VPs that exist"),
        }
    }
    Ok(())
}
