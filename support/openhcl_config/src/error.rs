//! What is wrong with a configuration.

use crate::FILE_SIZE_MAX;
use crate::VERSION;
use std::fmt;
use thiserror::Error;

/// The longest text out of a configuration that a message repeats, in characters.
const QUOTE_MAX: usize = 300;

/// Why a configuration is not used.
///
/// Messages are one line of limited length, whatever the configuration holds.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// More bytes than any configuration needs.
    #[error("configuration has {size} bytes, expected at most {FILE_SIZE_MAX}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// It is not JSON.
    #[error("configuration is not JSON: {message}")]
    Syntax {
        /// What, with line and column.
        message: Quote,
    },
    /// The version is missing or not known.
    #[error("configuration: version: is {found}, expected {VERSION}")]
    Version {
        /// What stands there, or `missing`.
        found: Quote,
    },
    /// A field that does not exist, or a value of the wrong type.
    #[error("configuration: {path}: {message}")]
    Field {
        /// Where.
        path: Quote,
        /// What is there and what was expected, with line and column.
        message: Quote,
    },
    /// A value that is out of range.
    #[error("configuration: {path}: is {value}, expected {expected}")]
    Value {
        /// Where.
        path: &'static str,
        /// What is there.
        value: Quote,
        /// What should be.
        expected: String,
    },
    /// A wrong value on the command line.
    #[error("option {name}: is {value}, expected {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: Quote,
        /// What should be.
        expected: String,
    },
}

/// A text out of a configuration: cut if it is long, with nothing in it that would
/// break a line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote(pub String);

impl<T: Into<String>> From<T> for Quote {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for c in self.0.chars().take(QUOTE_MAX) {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        if self.0.chars().nth(QUOTE_MAX).is_some() {
            f.write_str("…")?;
        }
        Ok(())
    }
}
