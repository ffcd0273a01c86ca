//! Package `inspect`: the tree of live state.

/// The service.
pub const INSPECT_SERVICE: &str = "inspect.InspectService";

/// `InspectService.Inspect`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InspectRequest {
    /// Names separated by `/`; empty: the root.
    #[prost(string, tag = "1")]
    pub path: String,
    /// How many levels below the path are evaluated.
    #[prost(uint32, tag = "2")]
    pub depth: u32,
}

/// Answer to [`InspectRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct InspectResponse {
    /// What is at the path.
    #[prost(message, optional, tag = "1")]
    pub result: Option<Node>,
}

/// `InspectService.Update`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UpdateRequest {
    /// Which value.
    #[prost(string, tag = "1")]
    pub path: String,
    /// What it shall be.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Answer to [`UpdateRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateResponse {
    /// What it is now.
    #[prost(message, optional, tag = "1")]
    pub new_value: Option<Value>,
}

/// A node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// What it is.
    #[prost(oneof = "NodeKind", tags = "1, 2, 3, 4")]
    pub kind: Option<NodeKind>,
}

/// What a [`Node`] is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum NodeKind {
    /// Below the depth that was asked for.
    #[prost(message, tag = "1")]
    Unevaluated(()),
    /// It could not be evaluated.
    #[prost(message, tag = "2")]
    Failed(Error),
    /// A value.
    #[prost(message, tag = "3")]
    Value(Value),
    /// Nodes with names.
    #[prost(message, tag = "4")]
    Dir(Dir),
}

/// Entries of a directory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dir {
    /// The entries.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it is.
    #[prost(message, optional, tag = "2")]
    pub node: Option<Node>,
    /// Who may see it.
    #[prost(message, optional, tag = "3")]
    pub sensitivity: Option<SensitivityLevel>,
}

/// Who may see a node.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SensitivityLevel {
    /// The level.
    #[prost(oneof = "Sensitivity", tags = "1, 2, 3")]
    pub level: Option<Sensitivity>,
}

/// The level of a [`SensitivityLevel`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Oneof)]
pub enum Sensitivity {
    /// Anybody, the host of an isolated VM included.
    #[prost(message, tag = "1")]
    Safe(()),
    /// Nobody has said.
    #[prost(message, tag = "2")]
    Unspecified(()),
    /// It tells something about the guest.
    #[prost(message, tag = "3")]
    Sensitive(()),
}

/// Why a node has no value.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Error {
    /// The reason.
    #[prost(oneof = "ErrorKind", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub kind: Option<ErrorKind>,
}

/// The reason of an [`Error`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum ErrorKind {
    /// Nothing answered in time.
    #[prost(message, tag = "1")]
    Unresolved(()),
    /// The process that should answer could not be reached.
    #[prost(message, tag = "2")]
    Mesh(String),
    /// The value cannot be changed.
    #[prost(message, tag = "3")]
    Immutable(()),
    /// The new value was refused.
    #[prost(message, tag = "4")]
    Update(String),
    /// The path goes on behind a value.
    #[prost(message, tag = "5")]
    NotADirectory(()),
    /// There is no such name.
    #[prost(message, tag = "6")]
    NotFound(()),
    /// A defect.
    #[prost(message, tag = "7")]
    Internal(()),
}

/// A value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// The value itself.
    #[prost(message, optional, tag = "1")]
    pub kind: Option<ValueKindMessage>,
    /// How to print it.
    #[prost(message, optional, tag = "2")]
    pub flags: Option<ValueFlags>,
}

/// How to print a value.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ValueFlags {
    /// Bits.
    #[prost(uint64, tag = "1")]
    pub bits: u64,
}

/// The message around [`ValueKind`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueKindMessage {
    /// The value itself.
    #[prost(oneof = "ValueKind", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub kind: Option<ValueKind>,
}

/// A signed number has a message of its own, because protobuf has no wrapper for it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Signed {
    /// The number.
    #[prost(sint64, tag = "1")]
    pub value: i64,
}

/// The value itself. Scalars are `google.protobuf` wrappers.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ValueKind {
    /// A signed number.
    #[prost(message, tag = "1")]
    Signed(Signed),
    /// An unsigned number.
    #[prost(message, tag = "2")]
    Unsigned(u64),
    /// A number of 32 bits.
    #[prost(message, tag = "3")]
    Float(f32),
    /// A number of 64 bits.
    #[prost(message, tag = "4")]
    Double(f64),
    /// Yes or no.
    #[prost(message, tag = "5")]
    Bool(bool),
    /// Text.
    #[prost(message, tag = "6")]
    String(String),
    /// Bytes.
    #[prost(message, tag = "7")]
    Bytes(Vec<u8>),
}
