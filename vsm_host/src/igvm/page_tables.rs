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

use super::error::Detail;
use super::error::Detail::{AtMost, Bytes, Hex, MultipleOf, Number, Text};
use super::error::ImageError;
use super::error::Place;
use super::error::Reason;
use super::scan::PageTableRegion;
use super::scan::Run;
use super::vp_context::CR4_LA57;
use crate::platform::MemoryRange;
use crate::platform::PAGE_SIZE;
use alloc::vec;
use alloc::vec::Vec;
use hv_defs::registers::HvRegisterName;
use hv_defs::vp_context::HvInitialVpContext;
use page_table::Entry;

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

/// Takes the page table region out of `runs` (addresses as built) and yields its content
/// for `offset`.
pub(crate) fn relocate(
    tables: &PageTableRegion,
    runs: &mut Vec<Run<'_>>,
    context_place: Place,
    state: &HvInitialVpContext,
    offset: i64,
    moved: &[MemoryRange],
) -> Result<RewrittenTables, ImageError> {
    let (place, region) = (tables.place, tables.range);
    if region.size() > MAX_REGION_SIZE {
        let (found, most) = (Bytes(region.size()), AtMost(MAX_REGION_SIZE));
        return Err(Reason::PageTables("size of the region").at(place, found, most));
    }
    if state.cr4 & CR4_LA57 != 0 {
        let (reason, expected) = (
            Reason::Register(HvRegisterName::CR4),
            Text("4 levels (LA57 clear)"),
        );
        return Err(reason.at(context_place, Hex(state.cr4), expected));
    }
    let root = state.cr3 & !(PAGE_SIZE - 1);
    let used = MemoryRange::new(region.start(), region.start() + tables.used);
    if !used.contains(root) {
        let reason = Reason::Register(HvRegisterName::CR3);
        return Err(reason.at(context_place, Hex(state.cr3), Detail::Within(used)));
    }
    let mut tables = Tables {
        bytes: content(runs, region, tables.used, place)?,
        region,
        used,
        offset,
        moved,
        visited: vec![false; (region.size() / PAGE_SIZE) as usize],
        free: (tables.used / PAGE_SIZE..region.size() / PAGE_SIZE)
            .map(|index| index as usize)
            .rev()
            .collect(),
        leaves: Vec::new(),
        place,
    };
    let root_index = tables.index_of(root).unwrap_or(0);
    tables.take_out(root_index, ROOT_LEVEL, 0)?;
    for leaf in core::mem::take(&mut tables.leaves) {
        tables.put(root_index, &leaf)?;
    }
    Ok(RewrittenTables {
        address: region.start().wrapping_add_signed(offset),
        bytes: tables.bytes,
        cr3: state.cr3.wrapping_add_signed(offset),
    })
}

/// Copies the region out of the runs and removes those; one run stays as a placeholder
/// of zeros, so that the region still takes part in the checks of what is written.
fn content(
    runs: &mut Vec<Run<'_>>,
    region: MemoryRange,
    used: u64,
    place: Place,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = vec![0; region.size() as usize];
    let mut copied = Vec::new();
    for run in runs.iter().filter(|run| run.range.overlaps(region)) {
        copied.push((run.range, run.index));
        let start = (run.range.start() - region.start()) as usize;
        if let Some(data) = run.data {
            bytes[start..start + data.len()].copy_from_slice(data);
        }
    }
    if let Some(position) = bytes[used as usize..].iter().position(|byte| *byte != 0) {
        let address = region.start() + used + position as u64;
        let expected = Text("zeros behind the used size");
        return Err(Reason::PageTables("content").at(place, Hex(address), expected));
    }
    // Two directives for one page would silently become one here.
    copied.sort_unstable();
    for pair in copied.windows(2) {
        if let [(first, _), (second, index)] = pair
            && first.overlaps(*second)
        {
            let at = Place::Directive(
                *index,
                igvm_defs::IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA,
            );
            return Err(Reason::Overlap.at(at, Detail::Range(*second), Text("every page once")));
        }
    }
    let Some(first) = runs.iter().position(|run| region.covers(run.range)) else {
        return Err(Reason::PageTables("content").at(place, Text("none"), Text("page data")));
    };
    let mut placeholder = runs[first];
    placeholder.range = region;
    placeholder.data = None;
    runs.retain(|run| !region.overlaps(run.range));
    runs.push(placeholder);
    Ok(bytes)
}

/// Bytes that one entry of a table of `level` maps.
fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * level)
}

impl Tables<'_> {
    fn index_of(&self, address: u64) -> Option<usize> {
        self.region
            .contains(address)
            .then(|| ((address - self.region.start()) / PAGE_SIZE) as usize)
    }

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

    fn error(&self, what: &'static str, found: u64, expected: Detail) -> ImageError {
        Reason::PageTables(what).at(self.place, Hex(found), expected)
    }

    /// First pass over one table: pointers follow the region, leaves that map something
    /// that moved are taken out. Says whether the table is empty then.
    fn take_out(&mut self, table: usize, level: u32, base: u64) -> Result<bool, ImageError> {
        if core::mem::replace(&mut self.visited[table], true) {
            let address = self.region.start() + table as u64 * PAGE_SIZE;
            return Err(self.error("a table", address, Text("every table in one place only")));
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
            } else if let Some(next) = self.index_of(entry.address()) {
                if !self.used.contains(entry.address()) {
                    let expected = Detail::Within(self.used);
                    return Err(self.error("a table", entry.address(), expected));
                }
                if self.take_out(next, level - 1, address)? {
                    self.free.push(next);
                    None
                } else {
                    Some(entry.with_page_number(self.new_address(next) / PAGE_SIZE))
                }
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
        let size = span(level);
        let mapped = MemoryRange::new(address, address + size);
        let touches = self.moved.iter().any(|range| range.overlaps(mapped));
        if !touches || self.offset.unsigned_abs() < size {
            return Ok(Some(entry));
        }
        if !self.offset.unsigned_abs().is_multiple_of(size) {
            let found = self.offset.unsigned_abs();
            return Err(self.error("distance that the image moves", found, MultipleOf(size)));
        }
        // Bit 12 of the address of a large leaf is its PAT bit.
        let target = entry.address() & !(size - 1);
        if target != address {
            return Err(self.error("leaf that is no identity mapping", target, Hex(address)));
        }
        let new_address = address.wrapping_add_signed(self.offset);
        let moved_entry = Entry::from_bits(entry.into_bits().wrapping_add_signed(self.offset));
        self.leaves.push(MovedLeaf {
            address: new_address,
            level,
            entry: moved_entry,
        });
        Ok(None)
    }

    /// Second pass: puts a leaf where it belongs now.
    fn put(&mut self, root: usize, leaf: &MovedLeaf) -> Result<(), ImageError> {
        let mut table = root;
        let mut level = ROOT_LEVEL;
        loop {
            let index = (leaf.address / span(level)) as usize % ENTRIES;
            let entry = self.entry(table, index);
            if level == leaf.level {
                if entry.present() && entry != leaf.entry {
                    let (what, expected) = ("entry that is taken", Text("a free one"));
                    return Err(self.error(what, entry.into_bits(), expected));
                }
                self.set_entry(table, index, leaf.entry);
                return Ok(());
            }
            let region = self.region.moved(self.offset).unwrap_or(self.region);
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
                let (what, expected) = ("entry on the way", Text("a table in the region"));
                return Err(self.error(what, entry.into_bits(), expected));
            };
            level -= 1;
        }
    }

    fn new_table(&mut self) -> Result<usize, ImageError> {
        let Some(index) = self.free.pop() else {
            let expected = Number(self.visited.len() as u64 + 1);
            let found = Number(self.visited.len() as u64);
            return Err(Reason::PageTables("tables in the region").at(self.place, found, expected));
        };
        let start = index * PAGE_SIZE as usize;
        self.bytes[start..start + PAGE_SIZE as usize].fill(0);
        Ok(index)
    }
}
