//! Rewrites the image's page tables after it was moved, so that they are an identity map
//! again.
//!
//! What the format asks for: entries that point to a table inside the page table region
//! follow it; a leaf that maps something that moved is taken out and put where it maps
//! the new place. Tables that the new place needs come from the unused rest of the
//! region and from tables that became empty. A leaf that is larger than the distance
//! stays, because it maps the new place as well.
//!
//! The tables are the file's content, so nothing about them is believed: a table may be
//! reached once only (this is also what ends the walk), must lie in the region, and a
//! leaf that moves must have been an identity mapping.

use super::error::Detail::{AtLeast, AtMost, MultipleOf, Within};
use super::error::{Detail, ImageError, Place, Reason};
use super::scan::{PageTableRegion, Run};
use crate::{MemoryRange, PAGE_SIZE};

use alloc::vec;
use alloc::vec::Vec;
use hv_defs::registers::HvRegisterName;
use hv_defs::vp_context::HvInitialVpContext;
use page_table::Entry;
use x86_defs::{CR4_LA57, EFER_LME};

/// Tables that map 250 GiB by 2 MiB leaves; it bounds what is copied to the heap.
const MAX_REGION_SIZE: u64 = 1 << 20;
const ENTRIES: usize = page_table::ENTRIES;
const ENTRY_SIZE: usize = size_of::<Entry>();
/// Levels of the tree; level 0 are the tables with 4 KiB leaves.
const ROOT_LEVEL: u32 = 3;

/// Page tables for where the image is now.
#[derive(Debug)]
pub(crate) struct RewrittenTables {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) cr3: u64,
}

/// A leaf that has to go elsewhere.
struct MovedLeaf {
    address: u64,
    level: u32,
    entry: Entry,
}

struct Tables<'a> {
    bytes: Vec<u8>,
    region: MemoryRange,
    used: MemoryRange,
    offset: i64,
    moved: &'a [MemoryRange],
    visited: Vec<bool>,
    free: Vec<usize>,
    leaves: Vec<MovedLeaf>,
    place: Place,
}

/// Yields the content of the page table region for `offset`. `runs` have their addresses
/// as built and are disjoint.
pub(crate) fn relocate(
    tables: &PageTableRegion,
    runs: &[Run<'_>],
    context_place: Place,
    state: &HvInitialVpContext,
    offset: i64,
    moved: &[MemoryRange],
) -> Result<RewrittenTables, ImageError> {
    let (place, region) = (tables.place, tables.range);
    let refuse = |what, n: u64, expected| Err(Reason::PageTables(what).at(place, n, expected));
    if region.size() > MAX_REGION_SIZE {
        return refuse("size of the region", region.size(), AtMost(MAX_REGION_SIZE));
    }
    if state.cr4 & CR4_LA57 != 0 || state.efer & EFER_LME == 0 {
        let reason = Reason::Register(HvRegisterName::CR4);
        return Err(reason.at(
            context_place,
            state.cr4,
            "64-bit mode and LA57 clear (4 levels)",
        ));
    }
    let root = state.cr3 & !(PAGE_SIZE - 1);
    let used = MemoryRange::new(region.start(), region.start() + tables.used);
    if !used.contains(root) {
        let reason = Reason::Register(HvRegisterName::CR3);
        return Err(reason.at(context_place, state.cr3, Within(used)));
    }
    let mut bytes = vec![0; region.size() as usize];
    for run in runs.iter().filter(|run| region.covers(run.range)) {
        if let Some(data) = run.data {
            let start = (run.range.start() - region.start()) as usize;
            bytes[start..start + data.len()].copy_from_slice(data);
        }
    }
    if let Some(position) = bytes[tables.used as usize..]
        .iter()
        .position(|byte| *byte != 0)
    {
        let expected = Detail::Text("zeros behind the used size");
        return refuse("byte at", used.end() + position as u64, expected);
    }
    let index = |address: u64| ((address - region.start()) / PAGE_SIZE) as usize;
    let mut tables = Tables {
        bytes,
        region,
        used,
        offset,
        moved,
        visited: vec![false; index(region.end())],
        free: (index(used.end())..index(region.end())).rev().collect(),
        leaves: Vec::new(),
        place,
    };
    tables.take_out(index(root), ROOT_LEVEL, 0)?;
    for leaf in core::mem::take(&mut tables.leaves) {
        tables.put(index(root), &leaf)?;
    }
    Ok(RewrittenTables {
        address: region.start().wrapping_add_signed(offset),
        bytes: tables.bytes,
        cr3: state.cr3.wrapping_add_signed(offset),
    })
}

/// Bytes that one entry of a table of `level` maps.
fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * level)
}

impl Tables<'_> {
    fn new_address(&self, index: usize) -> u64 {
        (self.region.start() + index as u64 * PAGE_SIZE).wrapping_add_signed(self.offset)
    }

    fn entry(&self, table: usize, index: usize) -> Entry {
        let at = table * PAGE_SIZE as usize + index * ENTRY_SIZE;
        let mut bytes = [0; ENTRY_SIZE];
        bytes.copy_from_slice(&self.bytes[at..at + ENTRY_SIZE]);
        Entry::from_bits(u64::from_le_bytes(bytes))
    }

    fn set_entry(&mut self, table: usize, index: usize, entry: Entry) {
        let at = table * PAGE_SIZE as usize + index * ENTRY_SIZE;
        self.bytes[at..at + ENTRY_SIZE].copy_from_slice(&entry.into_bits().to_le_bytes());
    }

    fn refuse<T>(
        &self,
        what: &'static str,
        n: u64,
        expected: impl Into<Detail>,
    ) -> Result<T, ImageError> {
        Err(Reason::PageTables(what).at(self.place, n, expected))
    }

    /// First pass over one table: pointers follow the region, leaves that map something
    /// that moved are taken out. Says whether the table is empty then.
    fn take_out(&mut self, table: usize, level: u32, base: u64) -> Result<bool, ImageError> {
        if core::mem::replace(&mut self.visited[table], true) {
            let address = self.region.start() + table as u64 * PAGE_SIZE;
            return self.refuse("table", address, "every table in one place only");
        }
        let mut empty = true;
        for index in 0..ENTRIES {
            let entry = self.entry(table, index);
            if !entry.present() {
                continue;
            }
            let address = base + index as u64 * span(level);
            let is_leaf = level == 0 || (level < ROOT_LEVEL && entry.large());
            let stays = if is_leaf {
                self.take_out_leaf(address, level, entry)?
            } else if self.used.contains(entry.address()) {
                let next = ((entry.address() - self.region.start()) / PAGE_SIZE) as usize;
                if self.take_out(next, level - 1, address)? {
                    self.free.push(next);
                    None
                } else {
                    Some(entry.with_page_number(self.new_address(next) / PAGE_SIZE))
                }
            } else if self.region.contains(entry.address()) {
                return self.refuse("table", entry.address(), Within(self.used));
            } else {
                // A table elsewhere is not the loader's to change.
                Some(entry)
            };
            empty &= stays.is_none();
            self.set_entry(table, index, stays.unwrap_or_default());
        }
        // The root stays, empty or not.
        Ok(empty && level != ROOT_LEVEL)
    }

    /// The leaf, if it stays.
    fn take_out_leaf(
        &mut self,
        address: u64,
        level: u32,
        entry: Entry,
    ) -> Result<Option<Entry>, ImageError> {
        let (size, distance) = (span(level), self.offset.unsigned_abs());
        let mapped = MemoryRange::new(address, address + size);
        let touches = self.moved.iter().any(|range| range.overlaps(mapped));
        if !touches || distance < size {
            return Ok(Some(entry));
        }
        if !distance.is_multiple_of(size) {
            return self.refuse("distance that the image moves", distance, MultipleOf(size));
        }
        // Bit 12 of the address of a large leaf is its PAT bit.
        let target = entry.address() & !(size - 1);
        if target != address {
            return self.refuse("leaf that is no identity mapping", target, address);
        }
        self.leaves.push(MovedLeaf {
            address: address.wrapping_add_signed(self.offset),
            level,
            entry: Entry::from_bits(entry.into_bits().wrapping_add_signed(self.offset)),
        });
        Ok(None)
    }

    /// Second pass: puts a leaf where it belongs now.
    fn put(&mut self, root: usize, leaf: &MovedLeaf) -> Result<(), ImageError> {
        let mut table = root;
        let mut level = ROOT_LEVEL;
        let region = self.region.moved(self.offset).unwrap_or(self.region);
        loop {
            let index = (leaf.address / span(level)) as usize % ENTRIES;
            let entry = self.entry(table, index);
            if level == leaf.level {
                if entry.present() && entry != leaf.entry {
                    return self.refuse("entry that is taken", entry.into_bits(), "a free one");
                }
                self.set_entry(table, index, leaf.entry);
                return Ok(());
            }
            table = if !entry.present() {
                let next = self.new_table()?;
                let pointer = Entry::new()
                    .with_present(true)
                    .with_write(true)
                    .with_user(true)
                    .with_accessed(true)
                    .with_page_number(self.new_address(next) / PAGE_SIZE);
                self.set_entry(table, index, pointer);
                next
            } else if (level == ROOT_LEVEL || !entry.large()) && region.contains(entry.address()) {
                ((entry.address() - region.start()) / PAGE_SIZE) as usize
            } else {
                return self.refuse(
                    "entry on the way",
                    entry.into_bits(),
                    "a table in the region",
                );
            };
            level -= 1;
        }
    }

    fn new_table(&mut self) -> Result<usize, ImageError> {
        let Some(index) = self.free.pop() else {
            let tables = self.visited.len() as u64;
            return self.refuse("tables in the region", tables, AtLeast(tables + 1));
        };
        let start = index * PAGE_SIZE as usize;
        self.bytes[start..start + PAGE_SIZE as usize].fill(0);
        Ok(index)
    }
}
