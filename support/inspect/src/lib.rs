//! A tree of live state, addressed by path, across processes.
//!
//! A type that implements [`Inspect`] answers a [`Request`] with a value, with a directory
//! of further types, or with the promise of an answer ([`Request::defer`]), typically from
//! another process. The question is a [`Query`]: a path, a depth and limits.
//!
//! Promises, in rank order:
//!
//! 1. *Bounded.* An answer has at most [`Limits::nodes`] nodes, [`Limits::bytes`] bytes
//!    and [`MAX_LEVELS`] levels, whoever contributed to it. What is left out is marked
//!    [`Error::Truncated`].
//! 2. *In time.* What has not answered at the deadline becomes [`Error::Unresolved`]; all
//!    the rest is there.
//! 3. *Filtered.* A query has a highest [`Sensitivity`]. Nothing above it is evaluated or
//!    passed on, also not when another process sends it.
//! 4. *Lazy.* Only what lies on the path, or below it within the depth, is evaluated. A
//!    type pays nothing for being inspectable.
//!
//! Refuses: a runtime (a deadline is any future), a transport (a [`Query`] and a [`Node`]
//! are serde types), and to wait for locks in other processes.
//!
//! ```
//! use inspect::{Inspect, Query};
//!
//! #[derive(Inspect)]
//! struct Disk {
//!     #[inspect(unit = "bytes")]
//!     size: u64,
//!     #[inspect(hex)]
//!     address: u64,
//!     #[inspect(sensitive)]
//!     serial: String,
//! }
//!
//! let disk = Disk { size: 512, address: 0x1000, serial: "S1".into() };
//! let node = Query::new("").evaluate(&disk).now();
//! assert_eq!(node.to_string(), r#"{size: 512 bytes, address: 0x1000, serial: "S1"}"#);
//! ```

#![forbid(unsafe_code)]

// The derive macro names this crate by its path, also in its own tests.
extern crate self as inspect;

mod flat;
mod impls;
mod node;
#[cfg(feature = "proto")]
mod proto;
mod query;
mod request;
mod resolve;
mod text;
mod wrappers;

pub use inspect_derive::Inspect;
pub use node::Entry;
pub use node::Error;
pub use node::Format;
pub use node::MAX_LEVELS;
pub use node::Node;
pub use node::Radix;
pub use node::Sensitivity;
pub use node::Unit;
pub use node::Value;
pub use node::ValueKind;
pub use query::Limits;
pub use query::Query;
pub use query::RemoteRequest;
pub use query::inspect;
pub use query::update;
pub use request::Request;
pub use request::Response;
pub use resolve::Evaluation;
pub use text::printable;
pub use wrappers::AsDebug;
pub use wrappers::AsDisplay;
pub use wrappers::AsHex;
pub use wrappers::adhoc;
pub use wrappers::iter;

/// Something whose state can be looked at.
pub trait Inspect {
    /// Answers one request: with [`Request::value`], [`Request::respond`],
    /// [`Request::defer`] or another of its methods.
    fn inspect(&self, request: Request<'_>);
}
