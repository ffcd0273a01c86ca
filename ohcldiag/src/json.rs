//! Trees as JSON.

use inspect::Node;
use inspect::ValueKind;
use serde::Serialize;
use serde::Serializer;
use serde::ser::SerializeMap;
use std::fmt::Write;

/// A tree as JSON: directories are objects with the order of the tree, values are plain,
/// bytes are hexadecimal text, what was not evaluated is null, and a failure is
/// `{"$error": "…"}`.
pub(crate) struct Json<'a>(pub(crate) &'a Node);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Node::Unevaluated => serializer.serialize_unit(),
            Node::Failed(error) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("$error", &error.to_string())?;
                map.end()
            }
            Node::Value(value) => match &value.kind {
                ValueKind::Signed(value) => value.serialize(serializer),
                ValueKind::Unsigned(value) => value.serialize(serializer),
                ValueKind::Float(value) => value.serialize(serializer),
                ValueKind::Double(value) => value.serialize(serializer),
                ValueKind::Bool(value) => value.serialize(serializer),
                ValueKind::String(value) => value.serialize(serializer),
                ValueKind::Bytes(bytes) => {
                    let mut text = String::with_capacity(2 * bytes.len());
                    for byte in bytes {
                        _ = write!(text, "{byte:02x}");
                    }
                    text.serialize(serializer)
                }
            },
            Node::Dir(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for entry in entries {
                    map.serialize_entry(&entry.name, &Json(&entry.node))?;
                }
                map.end()
            }
        }
    }
}

/// JSON as text, in one line or for people. Both are fit for a terminal: what
/// [`inspect::printable`] would escape is escaped, in the way of JSON.
pub(crate) fn text(value: &impl Serialize, pretty: bool) -> Result<String, serde_json::Error> {
    let text = match pretty {
        true => serde_json::to_string_pretty(value)?,
        false => serde_json::to_string(value)?,
    };
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let mut buffer = [0; 4];
        let encoded = c.encode_utf8(&mut buffer);
        // The only control character of the format itself; all others are in texts.
        if c == '\n' || inspect::printable(encoded) == *encoded {
            safe.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                _ = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    Ok(safe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Inspect;
    use inspect::Query;

    #[test]
    fn a_tree_is_an_object_in_its_order() {
        let root = inspect::adhoc(|request| {
            request
                .respond()
                .field("z", &1u32)
                .hex("a", &[255u64])
                .field("text", "x\u{9b}\n\"")
                .child("bytes", |request| request.value(vec![1u8, 0xab]))
                .child("late", |request| request.defer(|_| std::future::pending()))
                .child("deep", |request| Deep.inspect(request));
        });
        let node = Query::new("").depth(1).evaluate(&root).now();
        assert_eq!(
            text(&Json(&node), false).unwrap(),
            r#"{"z":1,"a":{"0":255},"text":"x\u009b\n\"","bytes":"01ab","late":{"$error":"no answer in time"},"deep":{"dir":null}}"#
        );
    }

    struct Deep;

    impl Inspect for Deep {
        fn inspect(&self, request: inspect::Request<'_>) {
            request.respond().child("dir", |request| {
                request.respond().field("x", &1u8);
            });
        }
    }

    #[test]
    fn harmful_text_stays_json() {
        let value = "\u{7f}\u{202e}\u{1b}é";
        let text = text(&value, true).unwrap();
        assert_eq!(text, r#""\u007f\u202e\u001bé""#);
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }
}
