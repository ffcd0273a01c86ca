//! Ranges of physical addresses and the few set operations that the host needs.

use alloc::vec::Vec;
use core::fmt;

/// Size in bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes from `start` to `end` (exclusive); `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryRange {
    start: u64,
    end: u64,
}

impl MemoryRange {
    /// The range from `start` to `end` (exclusive); empty if `end` is below `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        let end = if end < start { start } else { end };
        Self { start, end }
    }

    /// `size` bytes at `start`, or `None` if they leave the 64-bit address space.
    pub const fn with_size(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The first byte behind it.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Size in bytes.
    pub const fn size(self) -> u64 {
        self.end - self.start
    }

    /// No byte is in it.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The address is in it.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// All of `other` is in it.
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Some byte is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What is in both.
    pub fn intersection(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The whole pages in it.
    pub const fn whole_pages(self) -> Self {
        let start = match self.start.checked_next_multiple_of(PAGE_SIZE) {
            Some(start) => start,
            None => self.end,
        };
        Self::new(start, self.end - self.end % PAGE_SIZE)
    }

    /// The same range elsewhere; `None` if it leaves the address space.
    pub fn moved(self, offset: i64) -> Option<Self> {
        let start = self.start.checked_add_signed(offset)?;
        Self::with_size(start, self.size())
    }
}

impl fmt::Display for MemoryRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}

/// Takes `hole` out of every range of a list.
pub fn subtract(ranges: &mut Vec<MemoryRange>, hole: MemoryRange) {
    let cut = |range: &MemoryRange| {
        let behind = MemoryRange::new(hole.end.max(range.start), range.end);
        [
            MemoryRange::new(range.start, hole.start.min(range.end)),
            behind,
        ]
    };
    if !hole.is_empty() {
        *ranges = ranges.iter().flat_map(cut).collect();
        ranges.retain(|range| !range.is_empty());
    }
}

/// Sorts a list and joins ranges that touch or overlap; empty ones disappear.
pub fn normalize(ranges: &mut Vec<MemoryRange>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    ranges.dedup_by(|next, previous| {
        let joined = next.start <= previous.end;
        if joined {
            previous.end = previous.end.max(next.end);
        }
        joined
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn subtracting_splits_trims_and_removes() {
        let mut ranges = vec![MemoryRange::new(0, 10), MemoryRange::new(20, 30)];
        subtract(&mut ranges, MemoryRange::new(4, 6));
        subtract(&mut ranges, MemoryRange::new(9, 21));
        subtract(&mut ranges, MemoryRange::new(0, 4));
        assert_eq!(ranges, [MemoryRange::new(6, 9), MemoryRange::new(21, 30)]);
    }

    #[test]
    fn normalizing_joins_neighbours() {
        let mut ranges = vec![
            MemoryRange::new(20, 30),
            MemoryRange::new(5, 5),
            MemoryRange::new(0, 10),
            MemoryRange::new(10, 12),
            MemoryRange::new(22, 25),
        ];
        normalize(&mut ranges);
        assert_eq!(ranges, [MemoryRange::new(0, 12), MemoryRange::new(20, 30)]);
    }

    #[test]
    fn whole_pages_round_inwards() {
        assert_eq!(
            MemoryRange::new(1, 0x9fc00).whole_pages(),
            MemoryRange::new(0x1000, 0x9f000)
        );
        assert!(MemoryRange::new(1, 0x1fff).whole_pages().is_empty());
        assert!(
            MemoryRange::new(u64::MAX - 1, u64::MAX)
                .whole_pages()
                .is_empty()
        );
    }
}
