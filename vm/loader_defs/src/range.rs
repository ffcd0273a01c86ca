//! Ranges of guest physical addresses.

use crate::PAGE_SIZE;
use core::fmt;

/// A range of addresses that does not wrap around; it may be empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpaRange {
    start: u64,
    end: u64,
}

impl GpaRange {
    /// From the first byte and the number of bytes. `None`: it would wrap around.
    pub const fn new(start: u64, length: u64) -> Option<Self> {
        match start.checked_add(length) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// From the first byte and the byte behind the last. `None`: they are swapped.
    pub const fn from_bounds(start: u64, end: u64) -> Option<Self> {
        if start <= end {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// The empty range at 0.
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// First byte.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The byte behind the last.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// No bytes.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Both ends lie on page boundaries.
    pub const fn is_page_aligned(&self) -> bool {
        self.start.is_multiple_of(PAGE_SIZE) && self.end.is_multiple_of(PAGE_SIZE)
    }

    /// Every byte of `other` is in `self`.
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// `address` is in `self`.
    pub const fn contains_address(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Some byte is in both.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self::from_bounds(self.start.max(other.start), self.end.min(other.end))
            .unwrap_or(Self::EMPTY)
    }

    /// What of `self` lies below and above `other`.
    pub fn without(&self, other: &Self) -> [Self; 2] {
        [
            Self {
                start: self.start,
                end: self.end.min(other.start.max(self.start)),
            },
            Self {
                start: self.start.max(other.end.min(self.end)),
                end: self.end,
            },
        ]
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first two ranges that overlap. Sorts `ranges`.
pub fn find_overlap(ranges: &mut [GpaRange]) -> Option<(GpaRange, GpaRange)> {
    ranges.sort_unstable();
    ranges
        .windows(2)
        .find(|pair| pair[0].overlaps(&pair[1]))
        .map(|pair| (pair[0], pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> GpaRange {
        GpaRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn wrapping_and_swapped_bounds_are_no_ranges() {
        assert_eq!(GpaRange::new(u64::MAX, 2), None);
        assert_eq!(GpaRange::from_bounds(2, 1), None);
    }

    #[test]
    fn overlap_is_found_among_unsorted_ranges() {
        let mut ranges = [range(8, 12), range(0, 4), range(3, 5)];
        assert_eq!(find_overlap(&mut ranges), Some((range(0, 4), range(3, 5))));
        assert_eq!(find_overlap(&mut [range(4, 8), range(0, 4)]), None);
    }

    proptest! {
        #[test]
        fn subtraction_keeps_every_byte_once(a in 0u64..100, b in 0u64..100, c in 0u64..100, d in 0u64..100) {
            let whole = range(a.min(b), a.max(b));
            let hole = range(c.min(d), c.max(d));
            let [low, high] = whole.without(&hole);
            for address in 0..100 {
                let kept = low.contains_address(address) || high.contains_address(address);
                prop_assert_eq!(kept, whole.contains_address(address) && !hole.contains_address(address));
            }
            let cut = whole.intersection(&hole).len();
            prop_assert_eq!(low.len() + high.len() + cut, whole.len());
        }
    }
}
