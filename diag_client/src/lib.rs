//! The client of the diagnostics service, and the list of VMs that run here.
//!
//! [`Client`] speaks ttrpc to a paravisor over vsock: through the machine's own vsock, or
//! through the Unix socket of a helper ("hybrid vsock"). [`registry`] is where a program
//! that starts a VM says so, and where a person's tools look it up.
//!
//! Promises:
//!
//! - *The VM is not trusted.* Messages are bounded before they are decoded, streams are
//!   read piece by piece, and a VM that lies about lengths, answers with nonsense or not
//!   at all costs a typed [`Error`] and no more memory than its message.
//! - *Blocking and small.* No runtime and no threads of its own; every call has a deadline
//!   if the caller wants one.
//! - *Nothing is tried twice* behind the caller's back, with one exception that says so:
//!   [`Client::connect_until`].
//!
//! Refuses: to make text of the VM fit for a terminal. It returns what the VM sent;
//! [`inspect::printable`] is there for whoever prints it.

#![deny(unsafe_code)]

mod address;
mod client;
mod connection;
mod entries;
mod error;
mod exec;
mod kmsg;
mod process;
pub mod registry;
mod stream;

pub use address::ParseAddressError;
pub use address::VmAddress;
pub use client::Client;
pub use client::DEFAULT_TIMEOUT;
pub use diag_proto::ttrpc::Code;
pub use error::Error;
pub use exec::Exec;
pub use exec::Process;
pub use kmsg::KmsgRecord;
pub use stream::DataStream;
pub use stream::Pieces;
