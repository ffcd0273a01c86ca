//! Reads requests without copying, and within a bound on memory.
//!
//! A decoder of protobuf allocates for every element of a repeated field, and an element
//! of two bytes on the wire takes up to fifty in memory. A message of 4 MiB could so ask
//! for 100 MiB. The server therefore reads a request's fields in place, leaves out those
//! that it does not use, and counts the fields of a payload before it is decoded.

use std::fmt;

/// Why bytes are no protobuf message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// A number is cut off, or has more than 64 bits.
    Varint,
    /// A field's key has the number 0, or one of more than 29 bits.
    FieldNumber,
    /// Kind of encoding that is not defined (or groups, which nobody here uses).
    WireType {
        /// It.
        wire_type: u8,
    },
    /// A field goes on behind the end.
    Length {
        /// Its bytes.
        length: u64,
        /// The bytes that there are.
        left: usize,
    },
    /// A field has another encoding than its number demands.
    Encoding {
        /// Its number.
        field: u32,
    },
    /// A text is not UTF-8.
    Text {
        /// Its field's number.
        field: u32,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Varint => write!(f, "a number is cut off or has more than 64 bits"),
            Self::FieldNumber => write!(f, "a field number is not in 1..2^29"),
            Self::WireType { wire_type } => {
                write!(f, "wire type {wire_type}, expected 0, 1, 2 or 5")
            }
            Self::Length { length, left } => {
                write!(f, "a field of {length} bytes where {left} are left")
            }
            Self::Encoding { field } => write!(f, "field {field} has the wrong wire type"),
            Self::Text { field } => write!(f, "field {field} is not UTF-8"),
        }
    }
}

impl std::error::Error for Malformed {}

/// A [`Request`](super::Request) in place, without its metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequestRef<'a> {
    /// Name of the service, package included.
    pub service: &'a str,
    /// Name of the method.
    pub method: &'a str,
    /// The method's message.
    pub payload: &'a [u8],
    /// Nanoseconds that the client will wait; 0: for ever.
    pub timeout_nano: i64,
}

impl<'a> RequestRef<'a> {
    /// Reads the message of a request's frame.
    ///
    /// # Errors
    ///
    /// It is no `Request`.
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        for field in Fields::new(message) {
            match field? {
                (field @ 1, value) => request.service = text(field, value)?,
                (field @ 2, value) => request.method = text(field, value)?,
                (3, Value::Bytes(payload)) => request.payload = payload,
                (4, Value::Varint(nanoseconds)) => request.timeout_nano = nanoseconds as i64,
                (field @ 3..=5, value) if !matches!((field, value), (5, Value::Bytes(_))) => {
                    return Err(Malformed::Encoding { field });
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

/// How many fields a message has at its top, without those in messages within it.
///
/// # Errors
///
/// It is no message of protobuf.
pub fn count_fields(message: &[u8]) -> Result<usize, Malformed> {
    Fields::new(message).try_fold(0, |count, field| field.map(|_| count + 1))
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

fn text(field: u32, value: Value<'_>) -> Result<&str, Malformed> {
    match value {
        Value::Bytes(bytes) => str::from_utf8(bytes).map_err(|_| Malformed::Text { field }),
        _ => Err(Malformed::Encoding { field }),
    }
}

/// The fields of a message; ends behind the first error.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number))
            .ok_or(Malformed::FieldNumber)?;
        let value = match (key & 7) as u8 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            wire_type => return Err(Malformed::WireType { wire_type }),
        };
        Ok((number, value))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (index, byte) in self.rest.iter().copied().enumerate().take(10) {
            // The tenth byte holds the last bit.
            if index == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(Malformed::Varint)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let left = self.rest.len();
        let (taken, rest) = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length))
            .ok_or(Malformed::Length { length, left })?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests;
