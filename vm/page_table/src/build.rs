//! Counting and filling of tables.

use crate::{ADDRESS_LIMIT, ENTRIES, Entry, Error, LeafSize, PAGE_SIZE, PageTable, Region};

/// Levels of the tree; the root is level 4.
const LEVELS: u32 = 4;

/// Properties of a whole map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The largest leaf to use. 1 GiB leaves need CPUID 0x80000001 EDX bit 26.
    pub max_leaf: LeafSize,
    /// The user bit of the entries that point to tables. It must be set if any region
    /// has it, and always for a nested page table.
    pub user_tables: bool,
}

impl Config {
    /// A map for supervisor mode.
    pub const fn supervisor(max_leaf: LeafSize) -> Self {
        Self {
            max_leaf,
            user_tables: false,
        }
    }

    /// A nested page table: the user bit is set on every level.
    pub const fn nested(max_leaf: LeafSize) -> Self {
        Self {
            max_leaf,
            user_tables: true,
        }
    }
}

/// A map that has been built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentityMap {
    /// Physical address of the root table, for CR3 or the nested CR3.
    pub root: u64,
    /// Tables in use, from the start of the slice.
    pub tables_used: usize,
}

/// Bytes that one entry of a table of `level` (1 to 4) covers.
const fn entry_span(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// The number of table pages that [`build_identity_map`] uses for these regions.
pub fn tables_needed(regions: &[Region], max_leaf: LeafSize) -> Result<u64, Error> {
    check_regions(regions)?;
    let mut count = 1;
    for level in 1..LEVELS {
        // A table of this level stands where an entry of the level above would stand.
        let span = entry_span(level + 1);
        let leaf_above = span <= max_leaf.bytes();
        // Regions are sorted, so a table that two of them share was the last one counted.
        let mut next_uncounted = 0;
        let mut add = |first: u64, last: u64| {
            let first = first.max(next_uncounted);
            if first <= last {
                count += last - first + 1;
                next_uncounted = last + 1;
            }
        };
        for region in regions {
            let (first, last) = (region.start / span, (region.end - 1) / span);
            if leaf_above {
                // Only the ragged ends need a table, the middle consists of leaves.
                if !region.start.is_multiple_of(span) {
                    add(first, first);
                }
                if !region.end.is_multiple_of(span) {
                    add(last, last);
                }
            } else {
                add(first, last);
            }
        }
    }
    Ok(count)
}

/// Builds an identity map in `tables`, whose first page has the physical address
/// `tables_address`. The root is the first table. Tables behind the used ones are left
/// as they are.
pub fn build_identity_map(
    tables: &mut [PageTable],
    tables_address: u64,
    regions: &[Region],
    config: Config,
) -> Result<IdentityMap, Error> {
    let needed = tables_needed(regions, config.max_leaf)?;
    let available = tables.len() as u64;
    let exhausted = Error::TablesExhausted { needed, available };
    check_aligned("table address", tables_address)?;
    if needed > available {
        return Err(exhausted);
    }
    let tables_end = tables_address.saturating_add(needed * PAGE_SIZE);
    check_limit("end of the tables", tables_end)?;

    let mut builder = Builder {
        tables,
        tables_address,
        used: 0,
        config,
    };
    builder.new_table().ok_or(exhausted)?;
    for region in regions {
        builder.map(region).ok_or(exhausted)?;
    }
    Ok(IdentityMap {
        root: tables_address,
        tables_used: builder.used,
    })
}

/// State while tables are filled. Its functions return `None` if the tables do not
/// suffice, which cannot happen after the count was checked.
struct Builder<'a> {
    tables: &'a mut [PageTable],
    tables_address: u64,
    used: usize,
    config: Config,
}

impl Builder<'_> {
    /// Takes the next table and empties it.
    fn new_table(&mut self) -> Option<usize> {
        let index = self.used;
        *self.tables.get_mut(index)? = PageTable::EMPTY;
        self.used += 1;
        Some(index)
    }

    fn map(&mut self, region: &Region) -> Option<()> {
        let mut address = region.start;
        while address < region.end {
            let level = self.leaf_level(address, region.end);
            let table = self.descend(address, level)?;
            // Fill as much of this table as possible before the next descent.
            let span = entry_span(level);
            let entries = &mut self.tables.get_mut(table)?.entries;
            let first = (address / span) as usize % ENTRIES;
            for entry in &mut entries[first..] {
                if region.end - address < span {
                    break;
                }
                *entry = Entry::leaf(address, level > 1, region.attributes);
                address += span;
            }
        }
        Some(())
    }

    /// The highest level on which a leaf can start at `address` and end before `end`.
    fn leaf_level(&self, address: u64, end: u64) -> u32 {
        let fits = |level: &u32| {
            let span = entry_span(*level);
            span <= self.config.max_leaf.bytes()
                && address.is_multiple_of(span)
                && end - address >= span
        };
        (2..LEVELS).rev().find(fits).unwrap_or(1)
    }

    /// The table of `level` for `address`, with all tables above it.
    fn descend(&mut self, address: u64, level: u32) -> Option<usize> {
        let mut table = 0;
        for upper in (level + 1..=LEVELS).rev() {
            let slot = (address / entry_span(upper)) as usize % ENTRIES;
            let entry = self.tables.get(table)?.entries[slot];
            table = if entry.present() {
                ((entry.address() - self.tables_address) / PAGE_SIZE) as usize
            } else {
                let child = self.new_table()?;
                let address = self.tables_address + child as u64 * PAGE_SIZE;
                self.tables.get_mut(table)?.entries[slot] =
                    Entry::table(address, self.config.user_tables);
                child
            };
        }
        Some(table)
    }
}

fn check_regions(regions: &[Region]) -> Result<(), Error> {
    let mut previous_end = 0;
    for (index, &Region { start, end, .. }) in regions.iter().enumerate() {
        check_aligned("region start", start)?;
        check_aligned("region end", end)?;
        check_limit("region end", end)?;
        if start >= end {
            return Err(Error::Empty { index, start, end });
        }
        if start < previous_end {
            return Err(Error::Overlap {
                index,
                start,
                previous_end,
            });
        }
        previous_end = end;
    }
    Ok(())
}

fn check_aligned(what: &'static str, address: u64) -> Result<(), Error> {
    if address.is_multiple_of(PAGE_SIZE) {
        Ok(())
    } else {
        Err(Error::Unaligned { what, address })
    }
}

fn check_limit(what: &'static str, address: u64) -> Result<(), Error> {
    if address <= ADDRESS_LIMIT {
        Ok(())
    } else {
        Err(Error::BeyondLimit { what, address })
    }
}
