//! ttrpc: requests and responses over a stream, as containerd's ttrpc defines them.
//!
//! [`frame`] cuts a stream into messages, [`request`] reads a request without copying it.
//! Both are pure functions over bytes, shared by server and client.

pub mod frame;
pub mod request;

/// A request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Request {
    /// Name of the service, package included.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Name of the method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// Nanoseconds that the client will wait; 0: for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// Anything else.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// A pair of [`Request::metadata`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeyValue {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A response.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Response {
    /// Missing or code 0: success.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`, without its details.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// One of [`Code`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `google.rpc.Code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
#[expect(missing_docs, reason = "named by the specification of gRPC")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}
