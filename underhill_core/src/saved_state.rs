//! What one worker leaves to the next.
//!
//! Tagged fields (protobuf): the next worker may be of another version of the program. A
//! state says which version wrote it; one that this version does not know is refused,
//! because what it says could mean something else.

use crate::vm::SavedVm;
use prost::Message;
use thiserror::Error;

/// The version that this program writes.
pub const VERSION: u32 = 1;

/// The largest state in bytes. A worker without a guest needs about 20, a chipset
/// 1,000, the serial ports 260 KiB each at most.
pub const SIZE_MAX: usize = 1 << 20;

/// State of a worker.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SavedState {
    /// Version of the state.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Workers in an unbroken chain of handed-over states.
    #[prost(uint32, tag = "2")]
    pub handovers: u32,
    /// How long all workers of the chain have run, in nanoseconds.
    #[prost(uint64, tag = "3")]
    pub uptime_ns: u64,
    /// Requests that all of them have answered.
    #[prost(uint64, tag = "4")]
    pub requests: u64,
    /// The guest, if there is one.
    #[prost(message, optional, tag = "5")]
    pub(crate) guest: Option<SavedVm>,
}

/// Why a state cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SavedStateError {
    /// More bytes than any state has.
    #[error("saved state has {size} bytes, expected at most {SIZE_MAX}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// It cannot be read.
    #[error("saved state is damaged")]
    Damaged(#[from] prost::DecodeError),
    /// Another version wrote it.
    #[error("saved state has version {version}, expected {VERSION}")]
    Version {
        /// Which.
        version: u32,
    },
}

impl SavedState {
    /// The state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, SavedStateError> {
        if bytes.len() > SIZE_MAX {
            return Err(SavedStateError::TooLarge { size: bytes.len() });
        }
        let state = <Self as Message>::decode(bytes)?;
        match state.version {
            VERSION => Ok(state),
            version => Err(SavedStateError::Version { version }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATE: SavedState = SavedState {
        version: VERSION,
        handovers: 3,
        uptime_ns: 1 << 40,
        requests: 77,
        guest: None,
    };

    #[test]
    fn a_state_comes_back() {
        assert_eq!(SavedState::decode(&STATE.encode()), Ok(STATE));
    }

    #[test]
    fn a_state_of_another_version_is_refused() {
        let state = SavedState {
            version: 2,
            ..STATE
        };
        assert_eq!(
            SavedState::decode(&state.encode()).unwrap_err().to_string(),
            "saved state has version 2, expected 1"
        );
        // Nothing at all is version 0.
        assert_eq!(
            SavedState::decode(&[]),
            Err(SavedStateError::Version { version: 0 })
        );
    }

    #[test]
    fn a_field_of_a_later_program_does_not_matter() {
        let mut bytes = STATE.encode();
        // Field 100, a varint.
        bytes.extend([0xa0, 0x06, 0x01]);
        assert_eq!(SavedState::decode(&bytes), Ok(STATE));
    }

    #[test]
    fn a_state_that_is_too_large_is_refused_unread() {
        let error = SavedState::decode(&vec![0; SIZE_MAX + 1]).unwrap_err();
        assert_eq!(error, SavedStateError::TooLarge { size: SIZE_MAX + 1 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = SavedState::decode(&bytes);
        }
    }
}
