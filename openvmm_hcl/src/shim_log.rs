//! The log that the boot shim left in memory.
//!
//! The pages are reserved in the kernel's memory map, so that they are not system RAM
//! and may be read through `/dev/mem` although that device is strict.

use crate::device_tree::Range;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use thiserror::Error;

/// Physical memory.
const DEVICE: &str = "/dev/mem";

/// The log counts its text in 16 bits, whatever memory it is given.
const SIZE_MAX: u64 = string_page_buf::HEADER_SIZE as u64 + u16::MAX as u64;

/// Why there is no log.
#[derive(Debug, Error)]
pub enum ShimLogError {
    /// More memory than a log can use.
    #[error("log of the boot shim has {size} bytes, expected at most {SIZE_MAX}")]
    Size {
        /// Size of the range.
        size: u64,
    },
    /// Physical memory cannot be read.
    #[error("{DEVICE} cannot be read at {start:#x}")]
    Memory {
        /// Where the log is.
        start: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The memory does not hold a log.
    #[error("log of the boot shim is damaged")]
    Damaged(#[source] string_page_buf::StringBufferError),
}

/// What the boot shim logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimLog {
    /// The text, one message per line.
    pub text: String,
    /// Messages that did not fit.
    pub dropped: u16,
}

/// Reads the log in `range` of physical memory.
pub fn read(range: Range) -> Result<ShimLog, ShimLogError> {
    read_from(Path::new(DEVICE), range)
}

fn read_from(device: &Path, range: Range) -> Result<ShimLog, ShimLogError> {
    let size = usize::try_from(range.size)
        .ok()
        .filter(|_| range.size <= SIZE_MAX)
        .ok_or(ShimLogError::Size { size: range.size })?;
    let mut memory = vec![0; size];
    File::open(device)
        .and_then(|file| file.read_exact_at(&mut memory, range.start))
        .map_err(|source| ShimLogError::Memory {
            start: range.start,
            source,
        })?;
    let log = string_page_buf::read(&memory).map_err(ShimLogError::Damaged)?;
    Ok(ShimLog {
        text: log.text.to_owned(),
        dropped: log.dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const START: u64 = 0x3000;

    fn device(memory: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0xff; START as usize]).unwrap();
        file.write_all(memory).unwrap();
        file
    }

    #[test]
    fn what_the_shim_wrote_is_read() {
        let mut memory = vec![0; 0x2000];
        let mut log = string_page_buf::StringBuffer::new(&mut memory).unwrap();
        assert!(log.append("[INFO] first\n") && log.append("[INFO] second\n"));
        let range = Range {
            start: START,
            size: 0x2000,
        };
        let read = read_from(device(&memory).path(), range).unwrap();
        assert_eq!(read.text, "[INFO] first\n[INFO] second\n");
        assert_eq!(read.dropped, 0);
    }

    #[test]
    fn a_log_that_is_too_large_or_not_there_is_refused() {
        let memory = device(&[0; 16]);
        let read = |size| {
            read_from(memory.path(), Range { start: START, size })
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            read(1 << 40),
            "log of the boot shim has 1099511627776 bytes, expected at most 65541"
        );
        assert_eq!(read(0x1000), "/dev/mem cannot be read at 0x3000");
    }

    proptest! {
        #[test]
        fn any_memory_is_a_log_or_a_typed_error(
            memory in prop::collection::vec(any::<u8>(), 0..64)
        ) {
            let range = Range { start: START, size: memory.len() as u64 };
            let _ = read_from(device(&memory).path(), range);
        }
    }
}
