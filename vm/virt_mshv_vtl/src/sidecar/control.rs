//! The control page of a node.

use super::SidecarNode;
use crate::error::Error;
use crate::page::Page;
use sidecar_defs::ControlPage;
use sidecar_defs::REQUEST_VECTOR;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;

/// It is mapped as long as one of the node's CPUs is.
pub(super) struct Control(Page);

impl Control {
    /// Maps the page, which must be that of `node`.
    pub(super) fn map(memory: BorrowedFd<'_>, node: &SidecarNode) -> Result<Self, Error> {
        let page = Page::map(memory, node.control_page)?;
        let expected = [
            (
                "first VP",
                offset_of!(ControlPage, base_vp),
                node.base_vp,
                "what the device tree says",
            ),
            (
                "number of CPUs",
                offset_of!(ControlPage, cpu_count),
                node.cpu_count,
                "what the device tree says",
            ),
            (
                "request vector",
                offset_of!(ControlPage, request_vector),
                REQUEST_VECTOR.into(),
                "0x20",
            ),
        ];
        for (what, offset, value, expected) in expected {
            let found = page.half(offset).load(Relaxed);
            if found != value {
                return Err(Error::SidecarNode {
                    control_page: node.control_page,
                    what,
                    found: found.into(),
                    expected,
                });
            }
        }
        Ok(Self(page))
    }

    /// Has the node's CPUs signal their answers to `vp`.
    pub(super) fn answer_to(&self, vp: u32) {
        let place = self.0.half(offset_of!(ControlPage, response_vp));
        place.store(vp, Release);
    }

    /// The status of a CPU; there are at most 32.
    pub(super) fn status(&self, cpu: u32) -> &AtomicU8 {
        self.0.byte(offset_of!(ControlPage, status) + cpu as usize)
    }
}
