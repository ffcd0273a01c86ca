//! The x86_64 page-table builder of the project: identity maps, and nothing else.
//!
//! Three maps come from here: the one that `igvm_builder` puts into the image for the
//! boot shim, the nested page tables through which `vsm_host` confines a VTL, and
//! `vsm_host`'s own. All three map an address to itself, so one builder serves them;
//! they differ only in the leaf size and the attributes.
//!
//! What it promises:
//! - Every byte of every [`Region`] is mapped to itself with that region's attributes,
//!   and no other byte is mapped. This is what keeps the host's memory out of a VTL.
//! - Each piece is mapped by the largest leaf that alignment and [`Config::max_leaf`]
//!   allow. Neighbouring regions are not merged.
//! - [`tables_needed`] is exact, costs no memory and time linear in the number of
//!   regions, however large they are.
//! - On an error no table has been written.
//!
//! What it refuses: unsorted or overlapping regions, addresses that are not page
//! aligned, addresses beyond 48 bits, and too few table pages. It never allocates, never
//! panics on any input and knows no pointer: tables are handed over as a slice together
//! with the physical address that the slice will have (or has), so an image can be built
//! for a machine that does not exist yet.
//!
//! A virtual address at or above 2^47 is not canonical; a map that reaches that far is
//! useful only as a nested page table.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod build;
mod entry;
#[cfg(test)]
mod tests;

pub use build::Config;
pub use build::IdentityMap;
pub use build::build_identity_map;
pub use build::tables_needed;
pub use entry::Entry;
pub use entry::PageTable;

use thiserror::Error;

/// Size in bytes of a page and of a table.
pub const PAGE_SIZE: u64 = 4096;
/// Entries of a table.
pub const ENTRIES: usize = 512;
/// First address that four levels cannot map.
pub const ADDRESS_LIMIT: u64 = 1 << 48;

/// Size of the memory that one leaf entry maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeafSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl LeafSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => PAGE_SIZE,
            Self::Size2M => PAGE_SIZE << 9,
            Self::Size1G => PAGE_SIZE << 18,
        }
    }
}

/// What a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Writes are allowed.
    pub write: bool,
    /// User mode may access. A nested page table needs it everywhere: the processor
    /// makes its accesses to guest-physical addresses as user accesses.
    pub user: bool,
    /// Instruction fetch is allowed; without it the no-execute bit is set, which needs
    /// EFER.NXE.
    pub execute: bool,
    /// Not cached (device memory).
    pub uncached: bool,
}

impl Attributes {
    /// Supervisor only; read, write and execute.
    pub const SUPERVISOR: Self = Self {
        write: true,
        user: false,
        execute: true,
        uncached: false,
    };
    /// Everybody; read, write and execute. What a nested page table uses for memory.
    pub const USER: Self = Self {
        user: true,
        ..Self::SUPERVISOR
    };
}

/// A run of addresses that is mapped to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First byte, page aligned.
    pub start: u64,
    /// First byte behind it, page aligned.
    pub end: u64,
    /// What is allowed there.
    pub attributes: Attributes,
}

impl Region {
    /// A region from `start` to `end` (exclusive).
    pub const fn new(start: u64, end: u64, attributes: Attributes) -> Self {
        Self {
            start,
            end,
            attributes,
        }
    }
}

/// Why a map cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error {
    /// An address that must be a multiple of the page size.
    #[error("{what} {address:#x} is not page aligned, expected a multiple of 0x1000")]
    Unaligned {
        /// Which address.
        what: &'static str,
        /// Its value.
        address: u64,
    },
    /// A region without bytes.
    #[error("region {index} is empty: it starts at {start:#x} and ends at {end:#x}")]
    Empty {
        /// Position in the list.
        index: usize,
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// A region that does not follow its predecessor.
    #[error(
        "region {index} starts at {start:#x}, expected at or above {previous_end:#x}, the end of \
         the region before it (sorted, disjoint)"
    )]
    Overlap {
        /// Position in the list.
        index: usize,
        /// Its start.
        start: u64,
        /// Where it could start at the earliest.
        previous_end: u64,
    },
    /// An address that does not fit into 48 bits.
    #[error("{what} {address:#x} is beyond 48 bits, expected at most 0x1000000000000")]
    BeyondLimit {
        /// Which address.
        what: &'static str,
        /// Its value.
        address: u64,
    },
    /// Too few table pages.
    #[error("{needed} table pages are needed, {available} are available")]
    TablesExhausted {
        /// Needed for the map.
        needed: u64,
        /// Handed over.
        available: u64,
    },
}
