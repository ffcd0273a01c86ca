//! Reading an archive that anybody may have made.

use thiserror::Error;

/// The header: a magic and 13 fields of 8 hexadecimal digits.
const HEADER_SIZE: usize = 110;
const MAGIC: &[u8] = b"070701";
/// Indices of the fields that matter here.
const MODE: usize = 1;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;
/// Name of the entry that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";

/// Why bytes are no archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The bytes end.
    #[error("archive ends in {what} at byte {offset:#x}")]
    Truncated {
        /// In what.
        what: &'static str,
        /// Where the entry begins.
        offset: usize,
    },
    /// Not a header.
    #[error("entry at byte {offset:#x}: {field} is wrong, expected {expected}")]
    Header {
        /// Where the entry begins.
        offset: usize,
        /// Which field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
    },
}

/// An entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The path, without the zero at its end.
    pub name: &'a [u8],
    /// File type and permissions.
    pub mode: u32,
    /// The contents.
    pub data: &'a [u8],
}

/// The entries of an archive, up to its trailer or to the first error.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    offset: usize,
    ended: bool,
}

/// Reads the uncompressed archive at the start of `bytes`.
pub fn entries(bytes: &[u8]) -> Entries<'_> {
    Entries {
        bytes,
        offset: 0,
        ended: false,
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let entry = self.entry();
        self.ended = match &entry {
            Ok(entry) => entry.name == TRAILER,
            Err(_) => true,
        };
        match entry {
            Ok(_) if self.ended => None,
            entry => Some(entry),
        }
    }
}

impl<'a> Entries<'a> {
    fn entry(&mut self) -> Result<Entry<'a>, FormatError> {
        let start = self.offset;
        let header = self.take(HEADER_SIZE, "a header", start)?;
        let wrong = |field, expected| FormatError::Header {
            offset: start,
            field,
            expected,
        };
        let Some(fields) = header.strip_prefix(MAGIC) else {
            return Err(wrong("magic", "\"070701\""));
        };
        let field = |index: usize, name| {
            let digits = fields.get(8 * index..8 * (index + 1));
            digits
                .and_then(number)
                .ok_or(wrong(name, "8 hexadecimal digits"))
        };
        let mode = field(MODE, "mode")?;
        let file_size = field(FILE_SIZE, "file size")?;
        let name_size = field(NAME_SIZE, "name size")?;
        let name = self.take(name_size as usize, "a name", start)?;
        let Some((0, name)) = name.split_last() else {
            return Err(wrong("name", "one that ends with a zero"));
        };
        self.align();
        let data = self.take(file_size as usize, "a file", start)?;
        self.align();
        Ok(Entry { name, mode, data })
    }

    fn take(
        &mut self,
        size: usize,
        what: &'static str,
        entry: usize,
    ) -> Result<&'a [u8], FormatError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(taken) = rest.get(..size) else {
            let offset = entry;
            return Err(FormatError::Truncated { what, offset });
        };
        self.offset += size;
        Ok(taken)
    }

    /// Headers and contents begin at multiples of 4; at the end the padding may be missing.
    fn align(&mut self) {
        self.offset = self.offset.next_multiple_of(4).min(self.bytes.len());
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value: u32, digit| {
        Some(value << 4 | char::from(*digit).to_digit(16)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Archive;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut archive = Archive::default();
        for (name, data) in files {
            archive.file(name, data).unwrap();
        }
        archive.finish().unwrap()
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            files in vec(("[a-z/]{1,9}", vec(any::<u8>(), 0..20)), 0..5)
        ) {
            let bytes = archive(&files);
            let read: Vec<_> = entries(&bytes)
                .map(|entry| entry.unwrap())
                .map(|e| (String::from_utf8(e.name.to_vec()).unwrap(), e.data.to_vec()))
                .collect();
            prop_assert_eq!(read, files);
        }

        #[test]
        fn damaged_archives_end_without_a_panic(
            at in 0usize..400, byte in any::<u8>(), end in 0usize..400
        ) {
            let mut bytes = archive(&[("one".into(), vec![1; 7]), ("two".into(), vec![2; 9])]);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(end);
            prop_assert!(entries(&bytes).count() <= 4);
        }

        #[test]
        fn any_bytes_end_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
            let text = [MAGIC, bytes.as_slice()].concat();
            let _ = entries(&text).count();
        }
    }

    #[test]
    fn modes_and_ends_are_told() {
        let mut archive = Archive::default();
        archive.program("run", b"x").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(entries(&bytes).next().unwrap().unwrap().mode, 0o100_755);

        let error = entries(&bytes[..50]).next().unwrap().unwrap_err();
        assert_eq!(
            error,
            FormatError::Truncated {
                what: "a header",
                offset: 0
            }
        );
        let error = entries(&[b'x'; 200]).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("magic"), "{error}");
    }
}
