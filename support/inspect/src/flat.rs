//! [`Node`] as a serde type: a flat list instead of nested ones.
//!
//! A peer that is compromised could otherwise send a few bytes per level of nesting and
//! overflow the stack of whoever decodes them. The list is decoded in a loop, and a tree
//! with more levels than [`MAX_LEVELS`] or more than [`MAX_NODES`] nodes is refused: a node
//! takes many times its bytes on the wire.

use crate::Entry;
use crate::Error;
use crate::MAX_LEVELS;
use crate::Node;
use crate::Sensitivity;
use crate::Value;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de;
use serde::ser::SerializeSeq;
use std::fmt;

/// Most nodes that are decoded; far above the [`Limits`](crate::Limits) of any query.
const MAX_NODES: usize = 1 << 16;

/// A node; the entries of a directory follow it, each with all that is below it.
#[derive(Serialize, Deserialize)]
enum Flat<V, E> {
    Unevaluated,
    Failed(E),
    Value(V),
    /// With so many entries.
    Dir(u32),
}

/// Name and sensitivity are those of the entry; the root has none.
type Item<N, V, E> = (N, Sensitivity, Flat<V, E>);

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(count(self)))?;
        // A stack of its own instead of recursion, as in the decoder.
        let mut open = vec![("", Sensitivity::Safe, self)];
        while let Some((name, sensitivity, node)) = open.pop() {
            let flat = match node {
                Self::Unevaluated => Flat::Unevaluated,
                Self::Failed(error) => Flat::Failed(error),
                Self::Value(value) => Flat::Value(value),
                Self::Dir(entries) => {
                    let count = u32::try_from(entries.len())
                        .map_err(|_| serde::ser::Error::custom("directory too long"))?;
                    for entry in entries.iter().rev() {
                        open.push((&entry.name, entry.sensitivity, &entry.node));
                    }
                    Flat::Dir(count)
                }
            };
            let item: Item<&str, &Value, &Error> = (name, sensitivity, flat);
            list.serialize_element(&item)?;
        }
        list.end()
    }
}

fn count(root: &Node) -> usize {
    let mut open = vec![root];
    let mut count = 0;
    while let Some(node) = open.pop() {
        count += 1;
        open.extend(node.entries().iter().map(|entry| &entry.node));
    }
    count
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Decoder)
    }
}

struct Decoder;

/// A directory whose entries are not all there yet.
struct Open {
    name: String,
    sensitivity: Sensitivity,
    missing: u32,
    entries: Vec<Entry>,
}

impl<'de> de::Visitor<'de> for Decoder {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flat list of nodes")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut open: Vec<Open> = Vec::new();
        let mut left = MAX_NODES;
        while let Some(item) = list.next_element()? {
            left = left.checked_sub(1).ok_or_else(|| {
                de::Error::custom(format_args!("a tree of more than {MAX_NODES} nodes"))
            })?;
            let (name, sensitivity, flat): Item<String, Value, Error> = item;
            let node = match flat {
                Flat::Unevaluated => Node::Unevaluated,
                Flat::Failed(error) => Node::Failed(error),
                Flat::Value(value) => Node::Value(value),
                Flat::Dir(0) => Node::Dir(Vec::new()),
                Flat::Dir(missing) => {
                    if open.len() > MAX_LEVELS as usize {
                        return Err(de::Error::custom(format_args!(
                            "a tree of more than {MAX_LEVELS} levels"
                        )));
                    }
                    open.push(Open {
                        name,
                        sensitivity,
                        missing,
                        // Not reserved: the number is the sender's claim.
                        entries: Vec::new(),
                    });
                    continue;
                }
            };
            if let Some(root) = close(&mut open, name, sensitivity, node) {
                return match list.next_element::<de::IgnoredAny>()? {
                    None => Ok(root),
                    Some(_) => Err(de::Error::custom("nodes behind the end of the tree")),
                };
            }
        }
        Err(de::Error::custom("the tree ends too early"))
    }
}

/// Adds a complete node to the directory that waits for it, and closes those that are
/// complete with it. Returns the root when nothing is open any more.
fn close(open: &mut Vec<Open>, name: String, sensitivity: Sensitivity, node: Node) -> Option<Node> {
    let mut done = Entry {
        name,
        node,
        sensitivity,
    };
    while let Some(mut parent) = open.pop() {
        parent.entries.push(done);
        parent.missing -= 1;
        if parent.missing > 0 {
            open.push(parent);
            return None;
        }
        done = Entry {
            name: parent.name,
            node: Node::Dir(parent.entries),
            sensitivity: parent.sensitivity,
        };
    }
    Some(done.node)
}
