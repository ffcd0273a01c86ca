//! Which memory is VTL2's, and what each byte of it is for.
//!
//! [`select`] answers the first question, [`space`] the second, [`map`] puts both
//! together with the rest of the VM's memory for the kernel and usermode; [`gpa_pool`]
//! and [`mmio`] size two special parts.

pub mod gpa_pool;
pub mod map;
pub mod mmio;
pub mod select;
pub mod space;

use crate::range::GpaRange;
use thiserror::Error;

/// A range on a NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRange {
    /// Where.
    pub range: GpaRange,
    /// Node.
    pub vnode: u32,
}

/// Why memory cannot be arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// The image does not lie in the memory that VTL2 is given.
    #[error("image memory {image} is not covered by VTL2's RAM; {missing} is missing")]
    ImageNotCovered {
        /// Memory of the image.
        image: GpaRange,
        /// The first part that is not covered.
        missing: GpaRange,
    },
    /// The host wants VTL2 smaller than the image.
    #[error("host wants {found:#x} bytes of VTL2 RAM, expected at least the image's {expected:#x}")]
    TooSmall {
        /// What it wants.
        found: u64,
        /// What the image needs.
        expected: u64,
    },
    /// A NUMA node has too little free memory.
    #[error("NUMA node {vnode} lacks {missing:#x} bytes for VTL2")]
    NodeTooSmall {
        /// The node.
        vnode: u32,
        /// Bytes that are not there.
        missing: u64,
    },
    /// The image was moved, so the list of what was imported with it cannot be used.
    #[error("image was relocated; choosing VTL2's RAM needs the imported regions as built")]
    Relocated,
    /// A part of the image that must be reserved is not where it should be.
    #[error("{what} at {range}, expected in VTL2's RAM and not overlapping other parts")]
    Reserved {
        /// Which part.
        what: &'static str,
        /// Where it is.
        range: GpaRange,
    },
    /// The pool does not fit.
    #[error("GPA pool of {pages} pages does not fit into VTL2's free memory")]
    Pool {
        /// Its size.
        pages: u64,
    },
    /// VTL2's MMIO cannot be made.
    #[error("{found:#x} bytes of MMIO above 4 GiB in one range, expected more than {expected:#x}")]
    Mmio {
        /// What VTL0 has.
        found: u64,
        /// What VTL2 needs.
        expected: u64,
    },
}
