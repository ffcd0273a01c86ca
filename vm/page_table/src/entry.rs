//! Entries and tables as the processor reads them.

use crate::{Attributes, ENTRIES, PAGE_SIZE};
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An entry of any level (AMD64 manual volume 2, 5.4; the nested page tables of SVM have
/// the same format).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Entry {
    /// The entry is valid.
    pub present: bool,
    /// Writes are allowed.
    pub write: bool,
    /// User mode may access.
    pub user: bool,
    /// Write-through.
    pub write_through: bool,
    /// Not cached.
    pub cache_disable: bool,
    /// Was used for a translation.
    pub accessed: bool,
    /// Was used for a write; only in a leaf.
    pub dirty: bool,
    /// The entry of level 2 or 3 is a leaf.
    pub large: bool,
    /// Survives a write to CR3; only in a leaf.
    pub global: bool,
    #[bits(3)]
    available: u8,
    /// Address of the table or of the memory, in pages. (Bit 0 of it is the PAT bit in a
    /// large leaf; it is never set here.)
    #[bits(40)]
    pub page_number: u64,
    #[bits(11)]
    available2: u16,
    /// No instruction fetch.
    pub no_execute: bool,
}

impl Entry {
    /// The address of the table or of the memory, in bytes.
    pub const fn address(self) -> u64 {
        self.page_number() * PAGE_SIZE
    }

    /// An entry that points to a table. The attributes of the leaf decide, so this one
    /// allows all that a leaf below may allow.
    pub(crate) const fn table(address: u64, user: bool) -> Self {
        Self::new()
            .with_present(true)
            .with_write(true)
            .with_user(user)
            .with_accessed(true)
            .with_page_number(address / PAGE_SIZE)
    }

    /// A leaf. Accessed and dirty are set from the start: nobody here evaluates them, and
    /// the processor is spared the write.
    pub(crate) const fn leaf(address: u64, large: bool, attributes: Attributes) -> Self {
        Self::new()
            .with_present(true)
            .with_write(attributes.write)
            .with_user(attributes.user)
            .with_write_through(attributes.uncached)
            .with_cache_disable(attributes.uncached)
            .with_accessed(true)
            .with_dirty(true)
            .with_large(large)
            .with_page_number(address / PAGE_SIZE)
            .with_no_execute(!attributes.execute)
    }
}

/// One table, one page.
#[repr(C, align(4096))]
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageTable {
    /// The entries.
    pub entries: [Entry; ENTRIES],
}

impl PageTable {
    /// A table that maps nothing.
    pub const EMPTY: Self = Self {
        entries: [Entry::new(); ENTRIES],
    };
}

const _: () = assert!(size_of::<PageTable>() as u64 == PAGE_SIZE);
