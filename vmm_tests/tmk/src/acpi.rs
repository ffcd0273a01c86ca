//! The ACPI tables that the host deposits.

use crate::abi::AREA_FILL;
use arrayvec::ArrayVec;
use thiserror::Error;

/// VPs that the payload copes with.
pub const MAX_VPS: usize = 64;

/// Bytes of the header of every table.
const HEADER_SIZE: usize = 36;
/// Offset of the length in the header.
const LENGTH_OFFSET: usize = 4;
/// Offset of the first structure of a MADT.
const MADT_FIRST_ENTRY: usize = 44;
/// Offset of the first structure of an SRAT.
const SRAT_FIRST_ENTRY: usize = 48;
/// MADT and SRAT structure: local APIC.
const TYPE_LOCAL_APIC: u8 = 0;
/// SRAT structure: memory.
const TYPE_SRAT_MEMORY: u8 = 1;
/// SRAT structure: local x2APIC.
const TYPE_SRAT_X2APIC: u8 = 2;
/// MADT structure: local x2APIC.
const TYPE_MADT_X2APIC: u8 = 9;
/// Flag of a local APIC and of SRAT memory: enabled.
const FLAG_ENABLED: u32 = 1;

/// Why a table is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error {
    /// The table has another signature.
    #[error("signature {found:x?}, expected {expected:x?}")]
    Signature {
        /// In the table.
        found: [u8; 4],
        /// Of the table that was asked for.
        expected: [u8; 4],
    },
    /// The length in the header is impossible.
    #[error("table length {length}, expected {HEADER_SIZE} to {available}")]
    Length {
        /// In the header.
        length: usize,
        /// Bytes of the area.
        available: usize,
    },
    /// The bytes of the table do not add up to 0.
    #[error("checksum is off by {0}")]
    Checksum(u8),
    /// A structure in the table does not fit.
    #[error("structure at offset {0} does not fit")]
    Entry(usize),
    /// More VPs than the payload copes with.
    #[error("more than {MAX_VPS} VPs")]
    TooManyVps,
}

/// A table whose length and checksum are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    bytes: &'a [u8],
}

impl<'a> Table<'a> {
    /// The table at the start of a parameter area; `None` if the host has left the area
    /// alone or has written zeros, which is how it says that it has no such table.
    pub fn in_area(area: &'a [u8], signature: [u8; 4]) -> Result<Option<Self>, Error> {
        let available = area.len();
        let Some(found) = area.first_chunk::<4>() else {
            return Err(Error::Length {
                length: 0,
                available,
            });
        };
        if *found == [AREA_FILL; 4] || *found == [0; 4] {
            return Ok(None);
        }
        if *found != signature {
            return Err(Error::Signature {
                found: *found,
                expected: signature,
            });
        }
        let length = u32_at(area, LENGTH_OFFSET).unwrap_or(0) as usize;
        if length < HEADER_SIZE || length > available {
            return Err(Error::Length { length, available });
        }
        let bytes = &area[..length];
        match bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) {
            0 => Ok(Some(Self { bytes })),
            sum => Err(Error::Checksum(sum)),
        }
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a table has at least a header")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Calls `visit` with type and bytes of every structure from offset `first`.
    fn entries(
        &self,
        first: usize,
        mut visit: impl FnMut(u8, &'a [u8]) -> Option<()>,
    ) -> Result<(), Error> {
        let mut offset = first;
        while offset < self.bytes.len() {
            let rest = &self.bytes[offset..];
            let entry = match rest {
                [_, length, ..] if *length >= 2 => rest.get(..usize::from(*length)),
                _ => None,
            };
            let entry = entry.ok_or(Error::Entry(offset))?;
            visit(entry[0], entry).ok_or(Error::Entry(offset))?;
            offset += entry.len();
        }
        Ok(())
    }
}

/// The local APIC ids of the enabled processors of a MADT, in order.
pub fn madt_apic_ids(table: &Table<'_>) -> Result<ArrayVec<u32, MAX_VPS>, Error> {
    let mut ids = ArrayVec::new();
    let mut too_many = false;
    table.entries(MADT_FIRST_ENTRY, |typ, entry| {
        let (id, flags) = match typ {
            TYPE_LOCAL_APIC => (u32::from(*entry.get(3)?), u32_at(entry, 4)?),
            TYPE_MADT_X2APIC => (u32_at(entry, 4)?, u32_at(entry, 8)?),
            _ => return Some(()),
        };
        if flags & FLAG_ENABLED != 0 {
            too_many |= ids.try_push(id).is_err();
        }
        Some(())
    })?;
    if too_many {
        return Err(Error::TooManyVps);
    }
    Ok(ids)
}

/// What an SRAT says in total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SratSummary {
    /// Enabled processors.
    pub processors: u32,
    /// Bytes of enabled memory.
    pub memory_bytes: u64,
}

/// Adds up an SRAT.
pub fn srat_summary(table: &Table<'_>) -> Result<SratSummary, Error> {
    let mut summary = SratSummary::default();
    table.entries(SRAT_FIRST_ENTRY, |typ, entry| {
        match typ {
            TYPE_LOCAL_APIC => summary.processors += u32_at(entry, 4)? & FLAG_ENABLED,
            TYPE_SRAT_X2APIC => summary.processors += u32_at(entry, 12)? & FLAG_ENABLED,
            TYPE_SRAT_MEMORY if u32_at(entry, 28)? & FLAG_ENABLED != 0 => {
                let length = u64::from(u32_at(entry, 16)?) | (u64::from(u32_at(entry, 20)?) << 32);
                summary.memory_bytes = summary.memory_bytes.wrapping_add(length);
            }
            _ => {}
        }
        Some(())
    })?;
    Ok(summary)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table with correct header around `body`.
    pub(crate) fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_SIZE];
        bytes[..4].copy_from_slice(signature);
        bytes.extend_from_slice(body);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes[9] = bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        bytes
    }

    /// A MADT with these local APICs.
    pub(crate) fn madt(apic_ids: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 8];
        for (index, id) in apic_ids.iter().enumerate() {
            body.extend_from_slice(&[0, 8, index as u8, *id, 1, 0, 0, 0]);
        }
        // A disabled one, and an I/O APIC, which do not count.
        body.extend_from_slice(&[0, 8, 99, 99, 0, 0, 0, 0]);
        body.extend_from_slice(&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        table(b"APIC", &body)
    }

    #[test]
    fn enabled_processors_of_a_madt_are_listed_in_order() {
        let mut area = madt(&[1, 2, 3]);
        area.resize(4096, AREA_FILL);
        let table = Table::in_area(&area, *b"APIC").unwrap().unwrap();
        assert_eq!(madt_apic_ids(&table).unwrap().as_slice(), [1, 2, 3]);
    }

    #[test]
    fn an_untouched_area_holds_no_table() {
        assert_eq!(Table::in_area(&[AREA_FILL; 64], *b"SLIT"), Ok(None));
        assert_eq!(Table::in_area(&[0; 64], *b"SLIT"), Ok(None));
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut area = madt(&[1]);
        area[40] ^= 1;
        assert!(matches!(
            Table::in_area(&area, *b"APIC"),
            Err(Error::Checksum(_))
        ));
    }

    #[test]
    fn an_srat_is_added_up() {
        let mut memory = vec![1, 40];
        memory.resize(40, 0);
        memory[16..24].copy_from_slice(&0x1_8000_0000u64.to_le_bytes());
        memory[28] = 1;
        let mut body = vec![0; 12];
        body.extend_from_slice(&[0, 16, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&memory);
        let bytes = table(b"SRAT", &body);
        let table = Table::in_area(&bytes, *b"SRAT").unwrap().unwrap();
        let expected = SratSummary {
            processors: 1,
            memory_bytes: 0x1_8000_0000,
        };
        assert_eq!(srat_summary(&table), Ok(expected));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = table(b"APIC", &body);
            if let Ok(Some(table)) = Table::in_area(&bytes, *b"APIC") {
                let _ = madt_apic_ids(&table);
                let _ = srat_summary(&table);
            }
            let _ = Table::in_area(&body, *b"APIC");
        }
    }
}
