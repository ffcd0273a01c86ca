//! A log of text in a few pages of memory that two programs share.
//!
//! The boot shim writes it, Linux keeps the pages reserved, usermode reads them much
//! later. So the layout is a contract, not a Rust type: three little-endian `u16`
//! (bytes of text that fit, offset of the next insertion, messages dropped), then UTF-8
//! text without separators.
//!
//! Promises: a message is stored whole or counted as dropped; what was stored is never
//! overwritten, because the first lines of a boot explain the later ones. The reader
//! believes nothing: a header that contradicts itself or the size of the memory, and
//! text that is not UTF-8, are typed errors.
//!
//! Refuses: memory that cannot hold the header, or more text than `u16` can count.
//! Nothing here synchronises two writers; the shim is single-threaded.

#![no_std]
#![forbid(unsafe_code)]

use thiserror::Error;

/// Bytes of the header.
pub const HEADER_SIZE: usize = 6;

const CAPACITY: usize = 0;
const NEXT_INSERT: usize = 2;
const DROPPED: usize = 4;

/// Why memory does not hold a log.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StringBufferError {
    /// The memory itself is too small or too large.
    #[error("log memory of {size} bytes, expected {HEADER_SIZE} to {max} bytes", max = HEADER_SIZE + u16::MAX as usize)]
    MemorySize {
        /// Its size.
        size: usize,
    },
    /// The header names more text than the memory holds.
    #[error("log header gives a capacity of {capacity} bytes, expected {expected}")]
    Capacity {
        /// From the header.
        capacity: u16,
        /// What the memory holds.
        expected: usize,
    },
    /// The next insertion lies behind the end.
    #[error("log header gives {next_insert} bytes of text, expected at most {capacity}")]
    NextInsert {
        /// From the header.
        next_insert: u16,
        /// From the header, already checked.
        capacity: u16,
    },
    /// The text is not UTF-8.
    #[error("log text is not UTF-8 from byte {valid_up_to} on")]
    NotUtf8 {
        /// Bytes that are.
        valid_up_to: usize,
    },
}

/// What a reader finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogText<'a> {
    /// All messages, one after the other.
    pub text: &'a str,
    /// Messages that did not fit.
    pub dropped: u16,
}

/// Checks memory that somebody else wrote and returns the text in it.
pub fn read(memory: &[u8]) -> Result<LogText<'_>, StringBufferError> {
    check_size(memory.len())?;
    let capacity = field(memory, CAPACITY);
    let expected = memory.len() - HEADER_SIZE;
    if usize::from(capacity) != expected {
        return Err(StringBufferError::Capacity { capacity, expected });
    }
    let next_insert = field(memory, NEXT_INSERT);
    if next_insert > capacity {
        return Err(StringBufferError::NextInsert {
            next_insert,
            capacity,
        });
    }
    let bytes = &memory[HEADER_SIZE..HEADER_SIZE + usize::from(next_insert)];
    let text = core::str::from_utf8(bytes).map_err(|e| StringBufferError::NotUtf8 {
        valid_up_to: e.valid_up_to(),
    })?;
    Ok(LogText {
        text,
        dropped: field(memory, DROPPED),
    })
}

/// The writing side.
#[derive(Debug)]
pub struct StringBuffer<'a> {
    memory: &'a mut [u8],
    used: usize,
    dropped: u16,
}

impl<'a> StringBuffer<'a> {
    /// Starts an empty log; whatever the memory held is gone.
    pub fn new(memory: &'a mut [u8]) -> Result<Self, StringBufferError> {
        let capacity = check_size(memory.len())?;
        memory[CAPACITY..NEXT_INSERT].copy_from_slice(&capacity.to_le_bytes());
        let mut buffer = Self {
            memory,
            used: 0,
            dropped: 0,
        };
        buffer.publish();
        Ok(buffer)
    }

    /// Continues a log that is already there, after checking it as a reader would.
    pub fn from_existing(memory: &'a mut [u8]) -> Result<Self, StringBufferError> {
        let LogText { text, dropped } = read(memory)?;
        let used = text.len();
        Ok(Self {
            memory,
            used,
            dropped,
        })
    }

    /// Adds a message. False: it did not fit and was counted as dropped.
    pub fn append(&mut self, message: &str) -> bool {
        let start = HEADER_SIZE + self.used;
        let fits = match self.memory[start..].get_mut(..message.len()) {
            Some(place) => {
                place.copy_from_slice(message.as_bytes());
                self.used += message.len();
                true
            }
            None => {
                self.dropped = self.dropped.saturating_add(1);
                false
            }
        };
        self.publish();
        fits
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        let bytes = &self.memory[HEADER_SIZE..HEADER_SIZE + self.used];
        // Only whole `str`s were ever copied in, so this is always UTF-8; an empty text
        // is a better answer than a panic in the code that reports panics.
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Messages that did not fit.
    pub fn dropped(&self) -> u16 {
        self.dropped
    }

    // The header is written after the text: a crash in between leaves a valid log.
    fn publish(&mut self) {
        // `used` never exceeds the capacity, which `check_size` has fitted into u16.
        let used = self.used as u16;
        self.memory[NEXT_INSERT..DROPPED].copy_from_slice(&used.to_le_bytes());
        self.memory[DROPPED..HEADER_SIZE].copy_from_slice(&self.dropped.to_le_bytes());
    }
}

fn check_size(size: usize) -> Result<u16, StringBufferError> {
    size.checked_sub(HEADER_SIZE)
        .and_then(|text| u16::try_from(text).ok())
        .ok_or(StringBufferError::MemorySize { size })
}

fn field(memory: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([memory[offset], memory[offset + 1]])
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn layout_is_three_u16_then_text() {
        let mut memory = [0xaa; HEADER_SIZE + 10];

        let mut buffer = StringBuffer::new(&mut memory).unwrap();
        assert!(buffer.append("boot "));
        assert!(!buffer.append("far too long"));
        assert!(buffer.append("ok"));

        assert_eq!(&memory[..HEADER_SIZE], &[10, 0, 7, 0, 1, 0]);
        assert_eq!(&memory[HEADER_SIZE..HEADER_SIZE + 7], b"boot ok");
    }

    #[test]
    fn a_log_can_be_continued() {
        let mut memory = [0; 64];
        StringBuffer::new(&mut memory).unwrap().append("one ");

        let mut buffer = StringBuffer::from_existing(&mut memory).unwrap();
        buffer.append("two");

        assert_eq!(buffer.text(), "one two");
        assert_eq!(read(&memory).unwrap().text, "one two");
    }

    #[test]
    fn contradictory_headers_are_refused() {
        let mut memory = [0; 16];
        StringBuffer::new(&mut memory).unwrap().append("0123456789");
        memory[HEADER_SIZE + 3] = 0xff;
        assert_eq!(
            read(&memory),
            Err(StringBufferError::NotUtf8 { valid_up_to: 3 })
        );

        memory[2] = 11;
        assert_eq!(
            read(&memory),
            Err(StringBufferError::NextInsert {
                next_insert: 11,
                capacity: 10
            })
        );

        memory[0] = 11;
        assert_eq!(
            read(&memory),
            Err(StringBufferError::Capacity {
                capacity: 11,
                expected: 10
            })
        );
        assert_eq!(
            read(&memory[..5]),
            Err(StringBufferError::MemorySize { size: 5 })
        );
    }

    #[test]
    fn more_than_a_u16_can_count_is_refused() {
        let mut memory = vec![0; HEADER_SIZE + 0x1_0000];
        assert_eq!(
            StringBuffer::new(&mut memory).unwrap_err(),
            StringBufferError::MemorySize { size: 0x1_0006 }
        );
        assert!(StringBuffer::new(&mut memory[..HEADER_SIZE + 0xffff]).is_ok());
    }

    proptest! {
        #[test]
        fn any_memory_is_read_without_panic(memory in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(log) = read(&memory) {
                prop_assert!(log.text.len() + HEADER_SIZE <= memory.len());
            }
        }

        #[test]
        fn stored_plus_dropped_is_everything(
            size in HEADER_SIZE..200,
            messages in proptest::collection::vec(".{0,12}", 0..40),
        ) {
            let mut memory = vec![0; size];
            let mut buffer = StringBuffer::new(&mut memory).unwrap();
            let stored: Vec<&String> = messages.iter().filter(|m| buffer.append(m)).collect();
            let expected: String = stored.iter().map(|m| m.as_str()).collect();

            let log = read(&memory).unwrap();
            prop_assert_eq!(log.text, expected);
            prop_assert_eq!(usize::from(log.dropped), messages.len() - stored.len());
        }
    }
}
