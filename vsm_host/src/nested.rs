//! The nested page table of a VTL, parts of which a higher VTL protects.
//!
//! A map begins with the largest leaves that fit. Where a page gets a protection of its
//! own, the leaf above it is split; where all entries of a table say the same again, they
//! become one large leaf again and the table is spare. The number of spare tables is
//! fixed, so no VTL can use up the host's memory by protecting pages.
//!
//! What it promises: whatever is protected in whatever order, an address is mapped to
//! itself or not at all, and what was not mapped at first never is. The processor may walk
//! the tables at any time: entries are written as a whole, and a split or a merge does not
//! change what an address translates to at that moment.
//!
//! **Other processors.** [`NestedTables::protect`] changes memory only. A processor that
//! runs the VTL may use an older translation until it leaves it, and its walk may still be
//! in a table that a merge has freed. So a change counts when each processor that was in
//! the VTL has left it, which is for the caller to see to (`shootdown`), before it says that
//! the change is done and calls [`NestedTables::reclaim`]. Until then freed tables stay what
//! they are.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use hv_defs::hypercall::HvMapGpaFlags;
use page_table::{
    Config, ENTRIES, Entry, Error, LeafSize, PAGE_SIZE, PageTable, Region, build_identity_map,
    tables_needed,
};
use spin::{Mutex, MutexGuard};

/// Levels of the tree; the root is level 4.
const LEVELS: usize = 4;

/// A table; the processor reads it while it is changed.
#[repr(C, align(4096))]
pub struct Table([AtomicU64; ENTRIES]);

impl Table {
    fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }
}

/// What a VTL may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    read: bool,
    write: bool,
    execute: bool,
}

impl Access {
    /// Nothing.
    pub const NONE: Self = Self {
        read: false,
        write: false,
        execute: false,
    };

    /// What the flags say, if the processor can do that: a page that can be written or
    /// executed can be read, and kernel and user mode execute alike.
    pub fn new(flags: HvMapGpaFlags) -> Option<Self> {
        let access = Self {
            read: flags.readable(),
            write: flags.writable(),
            execute: flags.kernel_executable(),
        };
        let possible = flags.reserved_bits_are_zero()
            && flags.kernel_executable() == flags.user_executable()
            && (access.read || !access.write && !access.execute);
        possible.then_some(access)
    }

    /// Whether the host may access the page for the VTL.
    pub fn permits(self, write: bool) -> bool {
        self.read && (self.write || !write)
    }

    /// Whether the VTL may execute there.
    pub fn executes(self) -> bool {
        self.execute
    }

    /// The leaf `entry` with this access. The user bit, which every leaf has, stays: it
    /// tells a page without access from one that the VTL does not have.
    fn apply(self, entry: Entry) -> Entry {
        entry
            .with_present(self.read)
            .with_write(self.write)
            .with_no_execute(!self.execute)
    }
}

/// Why a page cannot be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtectError {
    /// The VTL does not have it.
    NotMapped,
    /// All spare tables are in use.
    OutOfTables,
}

/// A nested page table.
pub struct NestedTables {
    tables: Vec<Table>,
    /// Physical address of the first one, which is the root.
    address: u64,
    max_leaf: LeafSize,
    /// Tables that are not in the tree. Who changes the tree holds it.
    spare: Mutex<Spare>,
}

/// Tables that are not in the tree, by index.
struct Spare {
    /// Those that nobody uses.
    free: Vec<usize>,
    /// Those that were in the tree, where a processor may still be.
    freed: Vec<usize>,
}

impl NestedTables {
    /// No tables.
    pub fn empty() -> Self {
        Self {
            tables: Vec::new(),
            address: 0,
            max_leaf: LeafSize::Size4K,
            spare: Mutex::new(Spare {
                free: Vec::new(),
                freed: Vec::new(),
            }),
        }
    }

    /// Maps `regions` to themselves, with `spare` tables for protections.
    /// `physical_address` tells where the tables are in memory.
    pub fn new(
        regions: &[Region],
        max_leaf: LeafSize,
        spare: usize,
        physical_address: impl FnOnce(&[Table]) -> u64,
    ) -> Result<Self, Error> {
        let needed = tables_needed(regions, max_leaf)? as usize;
        let total = needed + spare;
        let tables: Vec<Table> = (0..total).map(|_| Table::empty()).collect();
        let address = physical_address(&tables);
        let mut built: Vec<PageTable> = (0..needed).map(|_| PageTable::EMPTY).collect();
        build_identity_map(&mut built, address, regions, Config::nested(max_leaf))?;
        for (table, built) in tables.iter().zip(&built) {
            for (entry, built) in table.0.iter().zip(&built.entries) {
                entry.store(built.into_bits(), Ordering::Relaxed);
            }
        }
        // With room for all, so that freeing a table never allocates.
        let mut free = Vec::with_capacity(total);
        free.extend(needed..total);
        let freed = Vec::with_capacity(total);
        Ok(Self {
            tables,
            address,
            max_leaf,
            spare: Mutex::new(Spare { free, freed }),
        })
    }

    /// Physical address of the root.
    pub fn root(&self) -> u64 {
        self.address
    }

    /// To be called when no processor uses anything that was in the tree before the last
    /// [`Self::protect`]; nobody calls that meanwhile.
    pub fn reclaim(&self) {
        let Spare { free, freed } = &mut *self.spare.lock();
        free.append(freed);
    }

    /// Sets what the VTL may do with the page at `address`. An error changes nothing.
    pub fn protect(&self, address: u64, access: Access) -> Result<(), ProtectError> {
        let Spare { free, freed } = &mut *self.spare.lock();
        // Table and slot on each level, by level - 1.
        let mut path = [(0, 0); LEVELS];
        let mut table = 0;
        for level in (1..=LEVELS).rev() {
            let slot = (address / span(level)) as usize % ENTRIES;
            path[level - 1] = (table, slot);
            let entry = self.load(table, slot);
            if level == 1 || entry.large() {
                if !entry.user() {
                    return Err(ProtectError::NotMapped);
                }
                let wanted = access.apply(entry);
                if wanted == entry {
                    return Ok(());
                }
                if level == 1 {
                    self.store(table, slot, wanted);
                    break;
                }
                // One table per level below; with fewer, nothing is split in vain.
                if free.len() < level - 1 {
                    return Err(ProtectError::OutOfTables);
                }
                let child = free.pop().ok_or(ProtectError::OutOfTables)?;
                self.split(entry, level - 1, child);
                self.store(table, slot, self.pointer(child));
                table = child;
            } else if entry.present() {
                table = ((entry.address() - self.address) / PAGE_SIZE) as usize;
            } else {
                return Err(ProtectError::NotMapped);
            }
        }
        for level in 1..LEVELS {
            let ((child, _), (parent, slot)) = (path[level - 1], path[level]);
            let Some(leaf) = self.merged(child, level) else {
                break;
            };
            self.store(parent, slot, leaf);
            freed.push(child);
        }
        Ok(())
    }

    /// Holds the protections as they are.
    pub fn hold(&self) -> Held<'_> {
        Held {
            tables: self,
            _spare: self.spare.lock(),
        }
    }

    /// Fills a table of `level` with what `leaf` of the level above says.
    fn split(&self, leaf: Entry, level: usize, table: usize) {
        let first = leaf.with_large(level > 1).into_bits();
        for (slot, entry) in self.tables[table].0.iter().enumerate() {
            entry.store(first + slot as u64 * span(level), Ordering::Relaxed);
        }
    }

    /// The leaf that says the same as all entries of a table of `level`, if there is one.
    fn merged(&self, table: usize, level: usize) -> Option<Entry> {
        if span(level + 1) > self.max_leaf.bytes() {
            return None;
        }
        let first = self.load(table, 0);
        let is_leaf = first.user() && (level == 1 || first.large());
        // From the end: whoever protects pages in ascending order meets a difference there.
        let same = |slot: usize| {
            self.load(table, slot).into_bits() == first.into_bits() + slot as u64 * span(level)
        };
        (is_leaf && (1..ENTRIES).rev().all(same)).then(|| first.with_large(true))
    }

    /// An entry that points to a table and allows what a leaf may.
    fn pointer(&self, table: usize) -> Entry {
        let address = self.address + table as u64 * PAGE_SIZE;
        Entry::new()
            .with_present(true)
            .with_write(true)
            .with_user(true)
            .with_accessed(true)
            .with_page_number(address / PAGE_SIZE)
    }

    fn load(&self, table: usize, slot: usize) -> Entry {
        Entry::from_bits(self.tables[table].0[slot].load(Ordering::Relaxed))
    }

    /// Entries below are visible before one that points to them.
    fn store(&self, table: usize, slot: usize, entry: Entry) {
        self.tables[table].0[slot].store(entry.into_bits(), Ordering::Release);
    }
}

/// The protections of a VTL, which nobody changes as long as this is there.
pub struct Held<'a> {
    tables: &'a NestedTables,
    _spare: MutexGuard<'a, Spare>,
}

impl Held<'_> {
    /// What the VTL may do at `address`; nothing where it has no memory.
    pub fn access(&self, address: u64) -> Access {
        let tables = self.tables;
        let mut table = 0;
        for level in (1..=LEVELS).rev() {
            let entry = tables.load(table, (address / span(level)) as usize % ENTRIES);
            if !entry.present() {
                break;
            }
            if level == 1 || entry.large() {
                return Access {
                    read: true,
                    write: entry.write(),
                    execute: !entry.no_execute(),
                };
            }
            table = ((entry.address() - tables.address) / PAGE_SIZE) as usize;
        }
        Access::NONE
    }
}

/// Bytes that an entry of a table of `level` (1 to 4) covers.
const fn span(level: usize) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

#[cfg(test)]
mod tests;
