//! The wire format of the diagnostics service: ttrpc frames, and the protobuf messages of
//! the `diag` and `inspect` packages.
//!
//! * Promises: service, method and field numbers are those that OpenHCL's clients and
//!   servers use, so either side can be replaced. What this project adds is in a package
//!   of its own, [`openhcl`].
//! * Refuses: transport. Sockets, limits and deadlines belong to server and client.
//!
//! The messages are written as Rust types with their field numbers, because there is
//! nothing that a generator would add: the numbers are the contract.

#![forbid(unsafe_code)]

pub mod diag;
pub mod inspect;
pub mod openhcl;
pub mod ttrpc;

/// vsock port of the control connections, which speak ttrpc.
pub const PORT_CONTROL: u32 = 1;
/// vsock port of the data connections: raw bytes behind an 8-byte little-endian id.
pub const PORT_DATA: u32 = 2;
/// Longest line, in bytes, that a stream of lines carries; longer ones are split.
pub const MAX_LINE: usize = 2048;
