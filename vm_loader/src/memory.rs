//! The memory of the VM, as the caller describes it.

use alloc::vec::Vec;
use loader_defs::PAGE_SIZE;
use loader_defs::range::{GpaRange, find_overlap};
use thiserror::Error;

/// No processor has more than 52 bits of physical address.
pub(crate) const ADDRESS_LIMIT: u64 = 1 << 52;

/// A run of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ram {
    /// Where it is; whole pages.
    pub range: GpaRange,
    /// Its NUMA node.
    pub node: u32,
}

/// The memory of the VM.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLayout<'a> {
    /// RAM, in ascending order.
    pub ram: &'a [Ram],
    /// What the guest must leave alone, in RAM or elsewhere, whole pages. It wins over
    /// [`MemoryLayout::ram`].
    pub reserved: &'a [GpaRange],
    /// Nothing is loaded at or above this address. The guest may still use the memory.
    pub limit: u64,
}

/// A memory layout that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// A VM has RAM.
    #[error("no RAM is given, expected at least one range")]
    NoRam,
    /// A range that is not made of pages.
    #[error("{what} {range} is empty, not page aligned or beyond 52 bits")]
    Range {
        /// "RAM" or "reserved memory".
        what: &'static str,
        /// The range.
        range: GpaRange,
    },
    /// RAM in the wrong order, or twice.
    #[error("RAM {range} starts below {previous_end:#x}, the end of the range before it")]
    Order {
        /// The range.
        range: GpaRange,
        /// End of its predecessor.
        previous_end: u64,
    },
    /// Reserved twice.
    #[error("reserved memory {first} and {second} overlap")]
    ReservedOverlap {
        /// The lower range.
        first: GpaRange,
        /// The upper range.
        second: GpaRange,
    },
}

impl MemoryLayout<'_> {
    /// Checks the description.
    pub(crate) fn validate(&self) -> Result<(), MemoryError> {
        if self.ram.is_empty() {
            return Err(MemoryError::NoRam);
        }
        let mut previous_end = 0;
        for Ram { range, .. } in self.ram {
            check("RAM", range)?;
            if range.start() < previous_end {
                return Err(MemoryError::Order {
                    range: *range,
                    previous_end,
                });
            }
            previous_end = range.end();
        }
        for range in self.reserved {
            check("reserved memory", range)?;
        }
        if let Some((first, second)) = find_overlap(&mut self.reserved.to_vec()) {
            return Err(MemoryError::ReservedOverlap { first, second });
        }
        Ok(())
    }

    /// RAM that the guest may use: ascending, disjoint, neighbours merged.
    pub(crate) fn usable(&self) -> Free {
        let mut free = Free { ranges: Vec::new() };
        for Ram { range, .. } in self.ram {
            match free.ranges.last_mut() {
                Some(last) if last.end() == range.start() => *last = span(*last, *range),
                _ => free.ranges.push(*range),
            }
        }
        for range in self.reserved {
            free.remove(*range);
        }
        free
    }
}

fn check(what: &'static str, range: &GpaRange) -> Result<(), MemoryError> {
    if range.is_empty() || !range.is_page_aligned() || range.end() > ADDRESS_LIMIT {
        return Err(MemoryError::Range {
            what,
            range: *range,
        });
    }
    Ok(())
}

/// From the start of `first` to the end of `second`.
fn span(first: GpaRange, second: GpaRange) -> GpaRange {
    GpaRange::from_bounds(first.start(), second.end()).unwrap_or(first)
}

/// Memory that is still free, in whole pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Free {
    ranges: Vec<GpaRange>,
}

impl Free {
    /// The ranges, ascending.
    pub(crate) fn ranges(&self) -> &[GpaRange] {
        &self.ranges
    }

    /// Takes away what is in `range`, widened to whole pages.
    pub(crate) fn remove(&mut self, range: GpaRange) {
        let range = whole_pages(range);
        self.ranges = self
            .ranges
            .iter()
            .flat_map(|free| free.without(&range))
            .filter(|rest| !rest.is_empty())
            .collect();
    }

    /// All of `range` is free.
    pub(crate) fn contains(&self, range: GpaRange) -> bool {
        range.is_empty() || self.ranges.iter().any(|free| free.contains(&range))
    }

    /// The lowest multiple of `alignment` (a power of two) at or above `from` with `size`
    /// free bytes behind it that end at or below `limit`.
    pub(crate) fn find(
        &self,
        size: u64,
        alignment: u64,
        from: u64,
        limit: u64,
    ) -> Option<GpaRange> {
        self.ranges.iter().find_map(|free| {
            let start = free
                .start()
                .max(from)
                .checked_next_multiple_of(alignment.max(1))?;
            let range = GpaRange::new(start, size)?;
            (free.contains(&range) && range.end() <= limit).then_some(range)
        })
    }

    /// The largest number of bytes that [`Free::find`] could find.
    pub(crate) fn largest(&self, alignment: u64, from: u64, limit: u64) -> u64 {
        let room = |free: &GpaRange| {
            let start = free
                .start()
                .max(from)
                .checked_next_multiple_of(alignment.max(1))?;
            free.end().min(limit).checked_sub(start)
        };
        self.ranges.iter().filter_map(room).max().unwrap_or(0)
    }
}

/// `range` widened to whole pages.
pub(crate) fn whole_pages(range: GpaRange) -> GpaRange {
    let start = range.start() / PAGE_SIZE * PAGE_SIZE;
    let end = range
        .end()
        .checked_next_multiple_of(PAGE_SIZE)
        .unwrap_or(range.end());
    GpaRange::from_bounds(start, end).unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn range(start: u64, end: u64) -> GpaRange {
        GpaRange::from_bounds(start, end).unwrap()
    }

    fn ram(start: u64, end: u64) -> Ram {
        Ram {
            range: range(start, end),
            node: 0,
        }
    }

    #[test]
    fn neighbours_of_two_nodes_are_one_run_and_reserved_memory_is_a_hole() {
        let layout = MemoryLayout {
            ram: &[ram(0, 0x4000), ram(0x4000, 0x8000), ram(0x1_0000, 0x2_0000)],
            reserved: &[range(0x3000, 0x5000), range(0x2_0000, 0x3_0000)],
            limit: u64::MAX,
        };

        layout.validate().unwrap();

        assert_eq!(
            layout.usable().ranges(),
            [
                range(0, 0x3000),
                range(0x5000, 0x8000),
                range(0x1_0000, 0x2_0000)
            ]
        );
    }

    #[test]
    fn senseless_layouts_are_refused() {
        let check = |ram: &[Ram], reserved: &[GpaRange]| {
            MemoryLayout {
                ram,
                reserved,
                limit: 0,
            }
            .validate()
        };
        let good = ram(0x1000, 0x3000);

        assert_eq!(check(&[], &[]), Err(MemoryError::NoRam));
        for bad in [ram(1, 0x1000), ram(0x1000, 0x1000), ram(0, 1 << 53)] {
            assert!(matches!(check(&[bad], &[]), Err(MemoryError::Range { .. })));
        }
        assert!(matches!(
            check(&[good, ram(0x2000, 0x4000)], &[]),
            Err(MemoryError::Order {
                previous_end: 0x3000,
                ..
            })
        ));
        assert!(matches!(
            check(&[good], &[range(0, 0x2000), range(0x1000, 0x2000)]),
            Err(MemoryError::ReservedOverlap { .. })
        ));
    }

    #[test]
    fn the_lowest_aligned_place_that_is_large_enough_is_found() {
        let free = Free {
            ranges: vec![range(0x1000, 0x4000), range(0x9000, 0x2_0000)],
        };

        assert_eq!(
            free.find(0x1000, 0x2000, 0, u64::MAX),
            Some(range(0x2000, 0x3000))
        );
        assert_eq!(
            free.find(0x4000, 0x8000, 0, u64::MAX),
            Some(range(0x1_0000, 0x1_4000))
        );
        assert_eq!(free.find(0x4000, 0x8000, 0, 0x1_3fff), None);
        assert_eq!(free.find(1, 1, u64::MAX, u64::MAX), None);
        assert_eq!(free.largest(0x8000, 0, u64::MAX), 0x1_0000);
        assert_eq!(free.largest(0x8000, 0, 0x1_2000), 0x2000);
    }
}
