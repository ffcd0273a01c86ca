//! Names for cached results, computed from everything that went into them.

use sha2::Digest;
use sha2::Sha256;
use std::fmt::Write;

/// A name that changes when any part does: 32 hexadecimal digits of a SHA-256.
///
/// Every part is hashed with its name and its length, so no two lists of parts run
/// together to the same bytes.
pub fn cache_key<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in parts {
        for field in [name.as_bytes(), bytes] {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
    }
    let mut key = String::new();
    for byte in &hash.finalize()[..16] {
        // Writing to a string cannot fail.
        let _ = write!(key, "{byte:02x}");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_parts_give_equal_keys() {
        let key = || cache_key([("gcc", b"12".as_slice()), ("config", b"CONFIG_A=y")]);
        assert_eq!(key(), key());
        assert_eq!(key().len(), 32);
    }

    #[test]
    fn bytes_cannot_move_between_parts() {
        assert_ne!(
            cache_key([("a", b"bc".as_slice()), ("d", b"")]),
            cache_key([("a", b"b".as_slice()), ("d", b"c")]),
        );
        assert_ne!(
            cache_key([("ab", b"c".as_slice())]),
            cache_key([("a", b"bc".as_slice())]),
        );
    }
}
