//! What an inspection returns.

use serde::Deserialize;
use serde::Serialize;

/// Most levels of directories below the node that was asked for.
///
/// A level is three nested messages on the wire, and protobuf decoders stop at a hundred;
/// 30 leave room for the messages around it.
pub const MAX_LEVELS: u32 = 30;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A directory below the depth that was asked for.
    Unevaluated,
    /// There is no answer, and why.
    Failed(Error),
    /// A value.
    Value(Value),
    /// Nodes with names, in the order in which they were given.
    Dir(Vec<Entry>),
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name; never empty, never with a `/` in trees that this crate evaluates.
    pub name: String,
    /// What it is.
    pub node: Node,
    /// Who may see it.
    pub sensitivity: Sensitivity,
}

/// Who may see an entry. Ordered: a later one is seen by fewer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Sensitivity {
    /// Anybody, the untrusted host of an isolated VM included.
    Safe,
    /// Nobody has said; treated as not safe.
    #[default]
    Unspecified,
    /// It tells something about the guest or its owner.
    Sensitive,
}

/// Why a node has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// Nothing answered in time, or the request was dropped.
    #[error("no answer in time")]
    Unresolved,
    /// The process that should answer could not be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The value cannot be changed.
    #[error("cannot be changed")]
    Immutable,
    /// The new value was refused.
    #[error("refused: {0}")]
    Refused(String),
    /// The path goes on behind a value.
    #[error("not a directory")]
    NotADirectory,
    /// There is no such name.
    #[error("not found")]
    NotFound,
    /// A defect of whoever answered.
    #[error("internal error")]
    Internal,
    /// A limit of the query was reached, so there may be more.
    #[error("{TRUNCATED}")]
    Truncated,
}

/// The text of [`Error::Truncated`], which the wire format carries as text.
pub(crate) const TRUNCATED: &str = "truncated: a limit of the query was reached";

/// A value and how to print it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The value itself.
    pub kind: ValueKind,
    /// How to print it.
    pub format: Format,
}

/// The value itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ValueKind {
    /// A signed number.
    Signed(i64),
    /// An unsigned number.
    Unsigned(u64),
    /// A number of 32 bits.
    Float(f32),
    /// A number of 64 bits.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    String(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// How a number is printed, and what it counts. Means nothing for other values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Format {
    /// Base of the digits.
    pub radix: Radix,
    /// It only ever grows, so that a difference over time makes sense.
    pub counter: bool,
    /// What it counts.
    pub unit: Unit,
}

/// Base of a number's digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Radix {
    /// 10.
    #[default]
    Decimal,
    /// 16, with `0x`.
    Hex,
    /// 2, with `0b`.
    Binary,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Nothing, or it is obvious.
    #[default]
    None,
    /// Bytes.
    Bytes,
    /// Pages of 4,096 bytes.
    Pages,
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Ticks of 100 ns, the unit of the reference clock.
    ReferenceTicks,
    /// Per second.
    Hertz,
    /// Parts of a hundred.
    Percent,
}

impl Unit {
    /// All units. The position is the number on the wire, so the order never changes.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Bytes,
        Self::Pages,
        Self::Nanoseconds,
        Self::Microseconds,
        Self::Milliseconds,
        Self::Seconds,
        Self::ReferenceTicks,
        Self::Hertz,
        Self::Percent,
    ];

    /// Its sign, as printed behind a number and written in `#[inspect(unit = "…")]`;
    /// empty for [`Unit::None`].
    pub fn sign(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Bytes => "bytes",
            Self::Pages => "pages",
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::ReferenceTicks => "100ns",
            Self::Hertz => "Hz",
            Self::Percent => "%",
        }
    }
}

impl Format {
    /// Decimal, without a unit.
    pub const PLAIN: Self = Self {
        radix: Radix::Decimal,
        counter: false,
        unit: Unit::None,
    };

    /// Hexadecimal.
    pub const HEX: Self = Self {
        radix: Radix::Hex,
        ..Self::PLAIN
    };

    /// Binary.
    pub const BINARY: Self = Self {
        radix: Radix::Binary,
        ..Self::PLAIN
    };

    /// Decimal with a unit.
    pub const fn unit(unit: Unit) -> Self {
        Self {
            unit,
            ..Self::PLAIN
        }
    }

    /// The same for a number that only ever grows.
    pub const fn counter(self) -> Self {
        Self {
            counter: true,
            ..self
        }
    }
}

impl Node {
    /// The node at `path` below this one; `None` if there is none, or if something on the
    /// way is not a directory. An empty path is this node.
    pub fn get(&self, path: &str) -> Option<&Self> {
        components(path).try_fold(self, |node, name| match node {
            Self::Dir(entries) => entries
                .iter()
                .find(|entry| entry.name == name)
                .map(|entry| &entry.node),
            _ => None,
        })
    }

    /// Entries of a directory; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Dir(entries) => entries,
            _ => &[],
        }
    }

    /// The value, if it is one.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Value(value) => Some(value),
            _ => None,
        }
    }

    /// The number, if it is one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        self.value()?.as_u64()
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        self.value()?.as_str()
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self.value()?.kind {
            ValueKind::Bool(value) => Some(value),
            _ => None,
        }
    }
}

impl Value {
    /// A value with its usual format.
    pub fn new(kind: ValueKind) -> Self {
        Self {
            kind,
            format: Format::PLAIN,
        }
    }

    /// The same value, printed in another way.
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// The number, if it is one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self.kind {
            ValueKind::Unsigned(value) => Some(value),
            ValueKind::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            ValueKind::String(value) => Some(value),
            _ => None,
        }
    }

    /// Bytes that count against [`Limits::bytes`](crate::Limits::bytes).
    pub(crate) fn cost(&self) -> usize {
        match &self.kind {
            ValueKind::String(text) => text.len(),
            ValueKind::Bytes(bytes) => bytes.len(),
            _ => 8,
        }
    }

    pub(crate) fn is_number(&self) -> bool {
        !matches!(
            self.kind,
            ValueKind::Bool(_) | ValueKind::String(_) | ValueKind::Bytes(_)
        )
    }
}

/// The names of a path: separated by any number of `/`, which also may begin and end it.
pub(crate) fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

macro_rules! value_from {
    ($($variant:ident($wide:ty): $($from:ty),+;)+) => {
        $($(
            impl From<$from> for Value {
                fn from(value: $from) -> Self {
                    Self::new(ValueKind::$variant(value as $wide))
                }
            }
        )+)+
    };
}

value_from! {
    Unsigned(u64): u8, u16, u32, u64, usize;
    Signed(i64): i8, i16, i32, i64, isize;
    Float(f32): f32;
    Double(f64): f64;
    Bool(bool): bool;
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::new(ValueKind::String(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::new(ValueKind::String(value))
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::new(ValueKind::Bytes(value))
    }
}
