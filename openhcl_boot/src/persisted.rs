//! State that an earlier VTL2 left for this one (servicing).
//!
//! The header's layout never changes, so that any version can tell whether there is
//! state. This version cannot restore; it says so and starts fresh, instead of guessing.

use loader_defs::PAGE_SIZE;
use thiserror::Error;

use crate::isolation::Trust;

/// "OHCLPHDR".
const MAGIC: u64 = u64::from_le_bytes(*b"OHCLPHDR");

/// Why state in memory is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RestoreRefusal {
    /// On isolated VMs the host could have written it.
    #[error("persisted state found on an isolated VM, expected none: it is not trusted")]
    Isolated,
    /// The header contradicts itself.
    #[error(
        "persisted state header: payload of {payload:#x} bytes at {base:#x} in {region:#x} bytes, expected a page boundary and room"
    )]
    Header {
        /// Address of the payload.
        base: u64,
        /// Size of the region.
        region: u64,
        /// Size of the payload.
        payload: u64,
    },
    /// It is sound, but this version cannot read it.
    #[error("persisted state of {payload} bytes found, but this version cannot restore it")]
    Unsupported {
        /// Size of the payload.
        payload: u64,
    },
}

/// Looks at the header page. `Ok`: nobody left anything.
pub fn check(header: &[u8], trust: Trust) -> Result<(), RestoreRefusal> {
    let field = |index: usize| {
        header
            .get(index * 8..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    if field(0) != MAGIC {
        return Ok(());
    }
    if trust.is_isolated() {
        return Err(RestoreRefusal::Isolated);
    }
    let (base, region, payload) = (field(1), field(2), field(3));
    if !base.is_multiple_of(PAGE_SIZE) || payload > region {
        return Err(RestoreRefusal::Header {
            base,
            region,
            payload,
        });
    }
    Err(RestoreRefusal::Unsupported { payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolation::Isolation;
    use alloc::vec::Vec;

    const TRUSTED: Trust = Trust::new(Isolation::None, false);

    fn header(words: [u64; 4]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn memory_without_the_magic_is_no_state() {
        assert_eq!(check(&[0; 4096], TRUSTED), Ok(()));
        assert_eq!(check(&[], TRUSTED), Ok(()));
    }

    #[test]
    fn state_is_refused_with_a_reason() {
        assert_eq!(
            check(&header([MAGIC, 0x1000, 0x13000, 77]), TRUSTED),
            Err(RestoreRefusal::Unsupported { payload: 77 })
        );
        assert!(matches!(
            check(&header([MAGIC, 0x1001, 0x13000, 77]), TRUSTED),
            Err(RestoreRefusal::Header { .. })
        ));
        assert!(matches!(
            check(&header([MAGIC, 0x1000, 1, 2]), TRUSTED),
            Err(RestoreRefusal::Header { .. })
        ));
        assert_eq!(
            check(
                &header([MAGIC, 0x1000, 0x13000, 77]),
                Trust::new(Isolation::Vbs, false)
            ),
            Err(RestoreRefusal::Isolated)
        );
    }
}
