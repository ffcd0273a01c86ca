//! The memory map that the host deposits.

use core::ops::Range;
use igvm_defs::{IGVM_VHS_MEMORY_MAP_ENTRY, MemoryMapEntryType};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::abi::PAGE_SIZE;

/// Why a memory map is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error {
    /// The area is full and the entry without pages, which ends the map, is missing.
    #[error("no end after {0} entries")]
    NoEnd(usize),
    /// An entry overlaps its predecessor or lies before it.
    #[error("entry {index} starts at {start:#x}, expected at least {minimum:#x}")]
    Unsorted {
        /// Index of the entry.
        index: usize,
        /// Where it starts.
        start: u64,
        /// Where its predecessor ends.
        minimum: u64,
    },
    /// An entry lies beyond the address space.
    #[error("entry {0} is beyond the address space")]
    Beyond(usize),
    /// An entry has bits that are reserved, or a type without meaning.
    #[error("entry {index} has type {typ}, flags {flags:#x} and reserved {reserved:#x}")]
    Strange {
        /// Index of the entry.
        index: usize,
        /// Type.
        typ: u16,
        /// Flags.
        flags: u16,
        /// Reserved field.
        reserved: u32,
    },
}

/// One range of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First byte.
    pub start: u64,
    /// First byte behind.
    pub end: u64,
    /// What it is.
    pub typ: MemoryMapEntryType,
}

impl Entry {
    /// True if the guest may use it as RAM.
    pub fn is_ram(&self) -> bool {
        self.typ == MemoryMapEntryType::MEMORY || self.is_vtl2()
    }

    /// True if it is RAM of VTL2.
    pub fn is_vtl2(&self) -> bool {
        self.typ == MemoryMapEntryType::VTL2_PROTECTABLE
    }

    /// Number of bytes that are also in `range`.
    pub fn overlap(&self, range: &Range<u64>) -> u64 {
        self.end
            .min(range.end)
            .saturating_sub(self.start.max(range.start))
    }
}

/// A validated memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMap<'a> {
    entries: &'a [u8],
}

const ENTRY_SIZE: usize = size_of::<IGVM_VHS_MEMORY_MAP_ENTRY>();

impl<'a> MemoryMap<'a> {
    /// Validates the map at the start of a parameter area.
    pub fn in_area(area: &'a [u8]) -> Result<Self, Error> {
        let mut minimum = 0;
        let mut count = 0;
        for (index, bytes) in area.chunks_exact(ENTRY_SIZE).enumerate() {
            let Ok(entry) = IGVM_VHS_MEMORY_MAP_ENTRY::read_from_bytes(bytes) else {
                break;
            };
            if entry.number_of_pages == 0 {
                return Ok(Self {
                    entries: &area[..index * ENTRY_SIZE],
                });
            }
            let Entry { start, end, typ } = convert(&entry).ok_or(Error::Beyond(index))?;
            if start < minimum {
                return Err(Error::Unsorted {
                    index,
                    start,
                    minimum,
                });
            }
            if typ.0 > MemoryMapEntryType::VTL2_PROTECTABLE.0
                || entry.flags != 0
                || entry.reserved != 0
            {
                return Err(Error::Strange {
                    index,
                    typ: typ.0,
                    flags: entry.flags,
                    reserved: entry.reserved,
                });
            }
            minimum = end;
            count = index + 1;
        }
        Err(Error::NoEnd(count))
    }

    /// The entries.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + 'a {
        self.entries
            .chunks_exact(ENTRY_SIZE)
            .filter_map(|bytes| IGVM_VHS_MEMORY_MAP_ENTRY::read_from_bytes(bytes).ok())
            .filter_map(|entry| convert(&entry))
    }
}

/// Bytes of `range` that entries with the property `wanted` cover.
pub fn covered(
    entries: impl Iterator<Item = Entry>,
    range: &Range<u64>,
    wanted: impl Fn(&Entry) -> bool,
) -> u64 {
    entries
        .filter(|entry| wanted(entry))
        .map(|entry| entry.overlap(range))
        .sum()
}

fn convert(entry: &IGVM_VHS_MEMORY_MAP_ENTRY) -> Option<Entry> {
    let start = entry.starting_gpa_page_number.checked_mul(PAGE_SIZE)?;
    let size = entry.number_of_pages.checked_mul(PAGE_SIZE)?;
    Some(Entry {
        start,
        end: start.checked_add(size)?,
        typ: entry.entry_type,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// An area with a map of (first page, pages, type).
    pub(crate) fn map(entries: &[(u64, u64, MemoryMapEntryType)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (start, pages, typ) in entries {
            let entry = IGVM_VHS_MEMORY_MAP_ENTRY {
                starting_gpa_page_number: *start,
                number_of_pages: *pages,
                entry_type: *typ,
                flags: 0,
                reserved: 0,
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.resize(4096, 0);
        bytes
    }

    #[test]
    fn a_sorted_map_is_read_up_to_its_end() {
        let area = map(&[
            (0, 0x7000, MemoryMapEntryType::MEMORY),
            (0x8000, 0x1000, MemoryMapEntryType::VTL2_PROTECTABLE),
        ]);
        let map = MemoryMap::in_area(&area).unwrap();
        assert_eq!(map.entries().count(), 2);
        let range = 0x800_0000..0x900_0000;
        assert_eq!(covered(map.entries(), &range, Entry::is_vtl2), 0x100_0000);
        assert_eq!(covered(map.entries(), &range, Entry::is_ram), 0x100_0000);
    }

    #[test]
    fn overlap_is_refused() {
        let area = map(&[
            (0, 2, MemoryMapEntryType::MEMORY),
            (1, 1, MemoryMapEntryType::MEMORY),
        ]);
        assert!(matches!(
            MemoryMap::in_area(&area),
            Err(Error::Unsorted { index: 1, .. })
        ));
    }

    #[test]
    fn a_map_without_end_is_refused() {
        let area = map(&[(0, 2, MemoryMapEntryType::MEMORY)]);
        assert_eq!(
            MemoryMap::in_area(&area[..ENTRY_SIZE]),
            Err(Error::NoEnd(1))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(area in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(map) = MemoryMap::in_area(&area) {
                covered(map.entries(), &(0..u64::MAX), Entry::is_ram);
            }
        }
    }
}
