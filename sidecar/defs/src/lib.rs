//! What the boot shim, the sidecar kernel and the VM worker agree on.
//!
//! The sidecar kernel runs the processors that Linux has not booted. The shim splits the
//! processors into *nodes* and calls the kernel with [`SidecarParams`]; it starts the
//! processors and answers with [`SidecarOutput`]. From then on the VM worker, on Linux, gives
//! commands by the pages of a node:
//!
//! ```text
//!   node memory:  control page | command page, register page | ... | private pages | ...
//!                                 '------- of each CPU ------'      '- of each CPU -'
//!                 '------------- shared with the worker --------'
//! ```
//!
//! A *CPU* of a node is counted from 0. CPU 0 is the node's base CPU, which runs Linux and
//! has no pages in use; its VP is [`NodeParams::base_vp`], CPU `n` is VP `base_vp + n`.
//!
//! How a command passes from one side to the other is in [`handshake`].

#![no_std]

#[cfg(test)]
extern crate std;

pub mod command;
pub mod handshake;

pub use command::CommandPage;

use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use loader_defs::PAGE_SIZE;
use open_enum::open_enum;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Most nodes.
pub const MAX_NODES: usize = 60;
/// Most CPUs of a node, the base CPU included.
pub const MAX_CPUS_PER_NODE: u32 = 32;
/// Most VPs that can be kept out of the sidecar one by one.
pub const MAX_EXCLUDED_VPS: usize = 1024;

/// Pages of a CPU that the worker maps: command page, register page.
pub const SHARED_PAGES_PER_CPU: u64 = 2;
/// Pages of a CPU that are the sidecar kernel's.
pub const PRIVATE_PAGES_PER_CPU: u64 = 11;

/// Vector of the interrupt by which the worker wakes a CPU.
pub const REQUEST_VECTOR: u8 = 0x20;
/// Synthetic interrupt source by which a CPU answers.
pub const RESPONSE_SINT: u8 = 7;

/// Bytes that a node needs.
pub const fn node_memory_size(cpu_count: u32) -> u64 {
    (1 + (SHARED_PAGES_PER_CPU + PRIVATE_PAGES_PER_CPU) * cpu_count as u64) * PAGE_SIZE
}

/// Bytes of a node, from its begin, that the worker maps.
pub const fn node_shared_size(cpu_count: u32) -> u64 {
    (1 + SHARED_PAGES_PER_CPU * cpu_count as u64) * PAGE_SIZE
}

/// Offset in bytes of the command page of a CPU from the begin of its node. The register page
/// follows.
pub const fn command_page_offset(cpu: u32) -> u64 {
    (1 + SHARED_PAGES_PER_CPU * cpu as u64) * PAGE_SIZE
}

/// Offset in bytes of the private pages of a CPU from the begin of its node.
pub const fn private_pages_offset(cpu_count: u32, cpu: u32) -> u64 {
    node_shared_size(cpu_count) + PRIVATE_PAGES_PER_CPU * cpu as u64 * PAGE_SIZE
}

/// A node, as the shim has laid it out.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NodeParams {
    /// GPA of its memory, [`node_memory_size`] bytes.
    pub memory_base: u64,
    /// VP of CPU 0.
    pub base_vp: u32,
    /// CPUs, with the base CPU.
    pub cpu_count: u32,
}

/// Input of the sidecar kernel's entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SidecarParams {
    /// GPA of the hypercall page, which is enabled.
    pub hypercall_page: u64,
    /// Not 0: the kernel logs.
    pub enable_logging: u32,
    /// Nodes in use.
    pub node_count: u32,
    /// The nodes.
    pub nodes: [NodeParams; MAX_NODES],
    /// A bit for each VP that Linux boots although it is in a node.
    pub excluded: [u64; MAX_EXCLUDED_VPS / 64],
}

impl SidecarParams {
    /// No nodes.
    pub const EMPTY: Self = Self {
        hypercall_page: 0,
        enable_logging: 0,
        node_count: 0,
        nodes: [NodeParams {
            memory_base: 0,
            base_vp: 0,
            cpu_count: 0,
        }; MAX_NODES],
        excluded: [0; MAX_EXCLUDED_VPS / 64],
    };

    /// Whether Linux boots this VP although it is in a node.
    pub fn is_excluded(&self, vp: u32) -> bool {
        let word = self.excluded.get(vp as usize / 64);
        word.is_some_and(|word| word >> (vp % 64) & 1 != 0)
    }

    /// Has Linux boot this VP. False if it has no bit.
    pub fn exclude(&mut self, vp: u32) -> bool {
        let Some(word) = self.excluded.get_mut(vp as usize / 64) else {
            return false;
        };
        *word |= 1 << (vp % 64);
        true
    }
}

/// Bytes of [`SidecarOutput::error`].
pub const ERROR_CAPACITY: usize = 255;

/// A text of UTF-8.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ErrorText {
    /// Bytes in use; more than there are count as all.
    pub length: u8,
    /// The text.
    pub bytes: [u8; ERROR_CAPACITY],
}

impl ErrorText {
    /// No error.
    pub const EMPTY: Self = Self {
        length: 0,
        bytes: [0; ERROR_CAPACITY],
    };

    /// What is readable of it.
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..usize::from(self.length)];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

/// Appends what fits.
impl core::fmt::Write for ErrorText {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let start = usize::from(self.length);
        let end = text.floor_char_boundary(ERROR_CAPACITY - start);
        self.bytes[start..start + end].copy_from_slice(&text.as_bytes()[..end]);
        self.length += end as u8;
        Ok(())
    }
}

/// Output of the sidecar kernel's entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SidecarOutput {
    /// Why the entry has failed.
    pub error: ErrorText,
    /// CPUs that are in the sidecar now. If the entry has failed, also those that may still
    /// arrive: not before this is 0 the memory can be used for anything else.
    pub started: u32,
    /// Zero.
    pub reserved: u32,
    /// Reference time in units of 100 ns when the first CPU was asked for.
    pub start_begin: u64,
    /// Reference time in units of 100 ns when all were idle.
    pub start_end: u64,
}

/// What a CPU does. See [`handshake`].
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CpuStatus {
    /// Not in the sidecar, or no longer.
    REMOVED = 0,
    /// Waits for a command.
    IDLE = 1,
    /// Has been asked to execute its command page.
    RUN = 2,
    /// The same, and to come to an end soon.
    STOP = 3,
    /// Has been asked to leave.
    REMOVE = 4,
    /// Its kernel has failed; the command page says why.
    FAILED = 5,
}

/// CPUs that a control page has room for.
pub const STATUS_CAPACITY: usize = 4032;

/// First page of a node.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout)]
pub struct ControlPage {
    /// Number of the node.
    pub index: u32,
    /// VP of CPU 0.
    pub base_vp: u32,
    /// CPUs, with the base CPU.
    pub cpu_count: u32,
    /// [`REQUEST_VECTOR`].
    pub request_vector: u32,
    /// VP whose synthetic interrupt controller gets the answers, as event flag `n` of
    /// [`RESPONSE_SINT`] from VP `n`. Written by the worker, before the first command.
    pub response_vp: AtomicU32,
    /// Zero.
    pub reserved: [u32; 11],
    /// A [`CpuStatus`] for each CPU.
    pub status: [AtomicU8; STATUS_CAPACITY],
}

const _: () = assert!(size_of::<SidecarParams>() as u64 <= PAGE_SIZE);
const _: () = assert!(size_of::<SidecarOutput>() == 280);
const _: () = assert!(size_of::<ControlPage>() as u64 == PAGE_SIZE);
const _: () = assert!(core::mem::offset_of!(ControlPage, status) == 64);
const _: () = assert!(MAX_CPUS_PER_NODE as usize <= STATUS_CAPACITY);
const _: () = assert!(node_memory_size(32) == 417 * PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn the_pages_of_cpus_follow_each_other() {
        assert_eq!(command_page_offset(0), PAGE_SIZE);
        assert_eq!(command_page_offset(3), 7 * PAGE_SIZE);
        assert_eq!(command_page_offset(4), private_pages_offset(4, 0));
        assert_eq!(private_pages_offset(4, 4), node_memory_size(4));
    }

    #[test]
    fn vps_are_excluded_one_by_one() {
        let mut params = SidecarParams::EMPTY;
        assert!(params.exclude(64) && params.exclude(1023));
        assert!(!params.exclude(1024));
        let excluded: std::vec::Vec<_> = (0..2000).filter(|vp| params.is_excluded(*vp)).collect();
        assert_eq!(excluded, [64, 1023]);
    }

    #[test]
    fn a_text_that_does_not_fit_is_cut_between_characters() {
        let mut error = ErrorText::EMPTY;
        for _ in 0..200 {
            write!(error, "é").unwrap();
        }
        assert_eq!(error.as_str().chars().count(), 127);
        error.length = 255;
        assert_eq!(error.as_str().trim_end_matches('\0').chars().count(), 127);
    }
}
