//! Conversion to and from the messages of the diagnostics protocol.
//!
//! The bits of a value's flags are those of existing clients: 0 hexadecimal, 1 counter,
//! 2 binary. This project adds the unit in bits 48 to 55, which they ignore.

use crate::Entry;
use crate::Error;
use crate::Format;
use crate::MAX_LEVELS;
use crate::Node;
use crate::Radix;
use crate::Sensitivity;
use crate::Unit;
use crate::Value;
use crate::ValueKind;
use crate::node::TRUNCATED;
use diag_proto::inspect as wire;

const HEX: u64 = 1 << 0;
const COUNTER: u64 = 1 << 1;
const BINARY: u64 = 1 << 2;
const UNIT_SHIFT: u32 = 48;

impl From<Node> for wire::Node {
    fn from(node: Node) -> Self {
        let kind = match node {
            Node::Unevaluated => wire::NodeKind::Unevaluated(()),
            Node::Failed(error) => wire::NodeKind::Failed(error.into()),
            Node::Value(value) => wire::NodeKind::Value(value.into()),
            Node::Dir(entries) => wire::NodeKind::Dir(wire::Dir {
                entries: entries.into_iter().map(Into::into).collect(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl From<Entry> for wire::Entry {
    fn from(entry: Entry) -> Self {
        let level = match entry.sensitivity {
            Sensitivity::Safe => wire::Sensitivity::Safe(()),
            Sensitivity::Unspecified => wire::Sensitivity::Unspecified(()),
            Sensitivity::Sensitive => wire::Sensitivity::Sensitive(()),
        };
        Self {
            name: entry.name,
            node: Some(entry.node.into()),
            sensitivity: Some(wire::SensitivityLevel { level: Some(level) }),
        }
    }
}

impl From<Error> for wire::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Unresolved => wire::ErrorKind::Unresolved(()),
            Error::Unreachable(text) => wire::ErrorKind::Mesh(text),
            Error::Immutable => wire::ErrorKind::Immutable(()),
            Error::Refused(text) => wire::ErrorKind::Update(text),
            Error::NotADirectory => wire::ErrorKind::NotADirectory(()),
            Error::NotFound => wire::ErrorKind::NotFound(()),
            Error::Internal => wire::ErrorKind::Internal(()),
            // The wire format has no number for it, but a text that it shows.
            Error::Truncated => wire::ErrorKind::Mesh(TRUNCATED.to_owned()),
        };
        Self { kind: Some(kind) }
    }
}

impl From<Value> for wire::Value {
    fn from(value: Value) -> Self {
        let kind = match value.kind {
            ValueKind::Signed(value) => wire::ValueKind::Signed(wire::Signed { value }),
            ValueKind::Unsigned(value) => wire::ValueKind::Unsigned(value),
            ValueKind::Float(value) => wire::ValueKind::Float(value),
            ValueKind::Double(value) => wire::ValueKind::Double(value),
            ValueKind::Bool(value) => wire::ValueKind::Bool(value),
            ValueKind::String(value) => wire::ValueKind::String(value),
            ValueKind::Bytes(value) => wire::ValueKind::Bytes(value),
        };
        let bits = bits_of(value.format);
        Self {
            kind: Some(wire::ValueKindMessage { kind: Some(kind) }),
            flags: Some(wire::ValueFlags { bits }),
        }
    }
}

/// What is missing in a message, or unknown, becomes [`Error::Internal`]; what is nested
/// deeper than [`MAX_LEVELS`], [`Error::Truncated`].
impl From<wire::Node> for Node {
    fn from(node: wire::Node) -> Self {
        node_from(node, MAX_LEVELS + 1)
    }
}

fn node_from(node: wire::Node, levels: u32) -> Node {
    match node.kind {
        Some(wire::NodeKind::Unevaluated(())) => Node::Unevaluated,
        Some(wire::NodeKind::Failed(error)) => Node::Failed(error.into()),
        Some(wire::NodeKind::Value(value)) => match value.try_into() {
            Ok(value) => Node::Value(value),
            Err(error) => Node::Failed(error),
        },
        Some(wire::NodeKind::Dir(_)) if levels == 0 => Node::Failed(Error::Truncated),
        Some(wire::NodeKind::Dir(dir)) => Node::Dir(
            dir.entries
                .into_iter()
                .map(|entry| Entry {
                    name: entry.name,
                    node: node_from(entry.node.unwrap_or_default(), levels - 1),
                    sensitivity: sensitivity_from(entry.sensitivity),
                })
                .collect(),
        ),
        None => Node::Failed(Error::Internal),
    }
}

fn sensitivity_from(message: Option<wire::SensitivityLevel>) -> Sensitivity {
    match message.and_then(|message| message.level) {
        Some(wire::Sensitivity::Safe(())) => Sensitivity::Safe,
        Some(wire::Sensitivity::Sensitive(())) => Sensitivity::Sensitive,
        Some(wire::Sensitivity::Unspecified(())) | None => Sensitivity::Unspecified,
    }
}

impl From<wire::Error> for Error {
    fn from(error: wire::Error) -> Self {
        match error.kind {
            Some(wire::ErrorKind::Unresolved(())) => Self::Unresolved,
            Some(wire::ErrorKind::Mesh(text)) if text == TRUNCATED => Self::Truncated,
            Some(wire::ErrorKind::Mesh(text)) => Self::Unreachable(text),
            Some(wire::ErrorKind::Immutable(())) => Self::Immutable,
            Some(wire::ErrorKind::Update(text)) => Self::Refused(text),
            Some(wire::ErrorKind::NotADirectory(())) => Self::NotADirectory,
            Some(wire::ErrorKind::NotFound(())) => Self::NotFound,
            Some(wire::ErrorKind::Internal(())) | None => Self::Internal,
        }
    }
}

/// Fails with [`Error::Internal`] if the message has no value of a known kind.
impl TryFrom<wire::Value> for Value {
    type Error = Error;

    fn try_from(value: wire::Value) -> Result<Self, Error> {
        let kind = match value.kind.and_then(|message| message.kind) {
            Some(wire::ValueKind::Signed(number)) => ValueKind::Signed(number.value),
            Some(wire::ValueKind::Unsigned(value)) => ValueKind::Unsigned(value),
            Some(wire::ValueKind::Float(value)) => ValueKind::Float(value),
            Some(wire::ValueKind::Double(value)) => ValueKind::Double(value),
            Some(wire::ValueKind::Bool(value)) => ValueKind::Bool(value),
            Some(wire::ValueKind::String(value)) => ValueKind::String(value),
            Some(wire::ValueKind::Bytes(value)) => ValueKind::Bytes(value),
            None => return Err(Error::Internal),
        };
        let format = format_of(value.flags.unwrap_or_default().bits);
        Ok(Self { kind, format })
    }
}

fn bits_of(format: Format) -> u64 {
    let radix = match format.radix {
        Radix::Decimal => 0,
        Radix::Hex => HEX,
        Radix::Binary => BINARY,
    };
    let counter = if format.counter { COUNTER } else { 0 };
    // The position in `Unit::ALL` is the declaration order.
    radix | counter | ((format.unit as u64) << UNIT_SHIFT)
}

/// Unknown bits and units mean nothing.
fn format_of(bits: u64) -> Format {
    let radix = if bits & HEX != 0 {
        Radix::Hex
    } else if bits & BINARY != 0 {
        Radix::Binary
    } else {
        Radix::Decimal
    };
    let unit = usize::from((bits >> UNIT_SHIFT) as u8);
    Format {
        radix,
        counter: bits & COUNTER != 0,
        unit: Unit::ALL.get(unit).copied().unwrap_or_default(),
    }
}
