//! Saved state: protobuf with explicit tags, in an envelope with a version.
//!
//! Servicing restores a state that another build has saved. So the rules for a device's
//! state message are those of protobuf, plus one:
//! - a tag is never reused and never changes its type;
//! - a new field gets a new tag, and its default (zero, empty, absent) means what the
//!   device did before the field existed;
//! - [`SavedState::version`] is raised only when an older build must not restore the
//!   state, for it would misbehave without the new fields.
//!
//! A state passes through memory that the host may hold. It is checked like any other
//! input: [`RestoreError`] and a device that has not changed, never a panic.

use thiserror::Error;

/// State of one device.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SavedState {
    /// Version of the encoding in `data`, from 1.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The device's own message.
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

impl SavedState {
    /// Wraps a device's message.
    pub fn new(version: u32, message: &impl prost::Message) -> Self {
        Self {
            version,
            data: message.encode_to_vec(),
        }
    }

    /// The device's message, if its version is at most `newest`.
    ///
    /// # Errors
    /// [`RestoreError::Version`] and [`RestoreError::Malformed`].
    pub fn open<M: prost::Message + Default>(&self, newest: u32) -> Result<M, RestoreError> {
        if self.version == 0 || self.version > newest {
            return Err(RestoreError::Version {
                found: self.version,
                newest,
            });
        }
        Ok(M::decode(self.data.as_slice())?)
    }
}

/// Why a state cannot be restored. The device is as before.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// Made by a newer build, or not by a device at all.
    #[error("saved state has version {found}, expected 1 to {newest}")]
    Version {
        /// The state's.
        found: u32,
        /// The newest that this build reads.
        newest: u32,
    },
    /// Not the message that the device writes.
    #[error("saved state cannot be decoded: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A value that the device can never have.
    #[error("saved state has {field} = {value}, expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is possible.
        expected: &'static str,
    },
    /// State and machine do not have the same parts.
    #[error("saved state has {found}, expected {expected}")]
    Parts {
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
}

/// A register of 8 bits from its 32-bit field.
pub(crate) fn byte(field: &'static str, value: u32) -> Result<u8, RestoreError> {
    u8::try_from(value).map_err(|_| RestoreError::Value {
        field,
        value: value.into(),
        expected: "at most 255",
    })
}

/// A register of 16 bits from its 32-bit field.
pub(crate) fn word(field: &'static str, value: u32) -> Result<u16, RestoreError> {
    u16::try_from(value).map_err(|_| RestoreError::Value {
        field,
        value: value.into(),
        expected: "at most 65535",
    })
}
