//! Counts the entries of an encoded tree before it is decoded.
//!
//! An entry may be two bytes on the wire and costs a hundred as a message in memory. A
//! hostile answer of 16 MiB would take a gigabyte; so the encoded bytes are walked first,
//! which allocates nothing.

/// Most entries in an answer: far above what any server sends.
pub(crate) const MAX_ENTRIES: usize = 500_000;

/// Fields of `inspect.proto` on the way to an entry: of the response, the node, the
/// directory and the entry.
const RESPONSE_RESULT: u64 = 1;
const NODE_DIR: u64 = 4;
const DIR_ENTRIES: u64 = 1;
const ENTRY_NODE: u64 = 2;

/// The repeating part of the path down the tree.
#[derive(Clone, Copy)]
enum Message {
    Response,
    Node,
    Dir,
    Entry,
}

impl Message {
    /// The message in a field of this one, if it leads to entries.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Response, RESPONSE_RESULT) | (Self::Entry, ENTRY_NODE) => Some(Self::Node),
            (Self::Node, NODE_DIR) => Some(Self::Dir),
            (Self::Dir, DIR_ENTRIES) => Some(Self::Entry),
            _ => None,
        }
    }
}

/// Refuses an encoded `InspectResponse` with more than [`MAX_ENTRIES`] entries. What is
/// malformed in another way is left to the decoder.
pub(crate) fn check(payload: &[u8]) -> Result<(), String> {
    let mut left = MAX_ENTRIES;
    match count(payload, Message::Response, 0, &mut left) {
        Some(()) => Ok(()),
        None => Err(format!("more than {MAX_ENTRIES} entries")),
    }
}

/// Takes the entries of a message from `left`; `None` if that does not suffice.
fn count(mut bytes: &[u8], message: Message, nesting: u32, left: &mut usize) -> Option<()> {
    // The decoder refuses what is nested deeper.
    if nesting > 100 {
        return Some(());
    }
    while let Some((field, content)) = next_field(&mut bytes) {
        let (Some(content), Some(child)) = (content, message.child(field)) else {
            continue;
        };
        if matches!(child, Message::Entry) {
            *left = left.checked_sub(1)?;
        }
        count(content, child, nesting + 1, left)?;
    }
    Some(())
}

/// A field's number, and its content if that is length-delimited. `None` at the end, and at
/// anything that is malformed.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let key = varint(bytes)?;
    let content = match key & 7 {
        0 => {
            varint(bytes)?;
            None
        }
        1 => {
            bytes.split_off(..8)?;
            None
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Some(bytes.split_off(..length)?)
        }
        5 => {
            bytes.split_off(..4)?;
            None
        }
        _ => return None,
    };
    Some((key >> 3, content))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use diag_proto::inspect as wire;
    use proptest::prelude::*;
    use prost::Message as _;

    fn response(entries: usize) -> Vec<u8> {
        let dir = wire::Dir {
            entries: vec![wire::Entry::default(); entries],
        };
        let node = wire::Node {
            kind: Some(wire::NodeKind::Dir(dir)),
        };
        wire::InspectResponse { result: Some(node) }.encode_to_vec()
    }

    #[test]
    fn too_many_entries_are_refused() {
        assert_eq!(check(&response(MAX_ENTRIES)), Ok(()));
        assert!(check(&response(MAX_ENTRIES + 1)).is_err());
    }

    #[test]
    fn entries_in_entries_count() {
        let mut left = 5;
        let inner = wire::Node {
            kind: Some(wire::NodeKind::Dir(wire::Dir {
                entries: vec![wire::Entry::default(); 3],
            })),
        };
        let outer = wire::Node {
            kind: Some(wire::NodeKind::Dir(wire::Dir {
                entries: vec![wire::Entry {
                    node: Some(inner),
                    ..Default::default()
                }],
            })),
        };
        let bytes = wire::InspectResponse {
            result: Some(outer),
        }
        .encode_to_vec();
        assert_eq!(count(&bytes, Message::Response, 0, &mut left), Some(()));
        assert_eq!(left, 1);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_walked(bytes: Vec<u8>) {
            _ = check(&bytes);
        }
    }
}
