//! Sizes of memory as people and QEMU write them.

use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A number of bytes; reads and prints as `64M`, `4G`, `8K` or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(u64);

/// Why a text is not a [`ByteCount`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("size {text:?}: expected a whole number with an optional suffix K, M or G, below 2^64")]
pub struct ByteCountError {
    /// What was given.
    pub text: String,
}

impl ByteCount {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many MiB. The multiplication saturates.
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(MIB))
    }

    /// So many GiB. The multiplication saturates.
    pub const fn gib(gib: u64) -> Self {
        Self(gib.saturating_mul(GIB))
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of MiB, if it is a whole one.
    pub const fn whole_mib(self) -> Option<u64> {
        if self.0.is_multiple_of(MIB) {
            Some(self.0 / MIB)
        } else {
            None
        }
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, suffix) in [(GIB, "G"), (MIB, "M"), (KIB, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for ByteCount {
    type Err = ByteCountError;

    fn from_str(text: &str) -> Result<Self, ByteCountError> {
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], KIB),
            Some(b'M' | b'm') => (&text[..text.len() - 1], MIB),
            Some(b'G' | b'g') => (&text[..text.len() - 1], GIB),
            _ => (text, 1),
        };
        // `parse` would also take a sign.
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| digits.parse::<u64>().ok()?.checked_mul(unit))
            .flatten()
            .map(Self)
            .ok_or_else(|| ByteCountError {
                text: text.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_suffixes() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("4G", 4 << 30),
            ("8K", 8 << 10),
            ("0", 0),
        ] {
            let count: ByteCount = text.parse().unwrap();
            assert_eq!(count.get(), bytes);
            assert_eq!(count.to_string(), text);
        }
        assert_eq!("1024M".parse(), Ok(ByteCount::gib(1)));
        assert_eq!(ByteCount::bytes(4097).to_string(), "4097");
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in ["", "M", "-1M", "+1", "1.5G", "1T", "é", "99999999999G"] {
            assert!(text.parse::<ByteCount>().is_err(), "{text:?} was taken");
        }
    }
}
