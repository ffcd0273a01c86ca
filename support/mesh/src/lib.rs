//! Typed channels inside and between the processes of the paravisor.
//!
//! # What it is
//! [`channel()`] makes a queue with many [`Sender`]s and one [`Receiver`], [`oneshot()`] one
//! for a single message. What serde can write and read is a [`Message`]. So are both ends
//! of a channel, file descriptors ([`Fd`]) and calls ([`Rpc`]): each can be a field of a
//! message, and works on when it arrives in another process. [`process::launch`] starts
//! another persona of the program with a message as its parameters, and tells how it died.
//!
//! ```
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Parameters {
//!     requests: mesh::Receiver<String>,
//!     log: mesh::Sender<String>,
//! }
//!
//! # fn main() {}
//! // In the parent, inside of a tokio runtime:
//! fn start() -> Result<mesh::process::Child, mesh::process::LaunchError> {
//!     let (_sender, requests) = mesh::channel();
//!     let (log, _receiver) = mesh::channel();
//!     let config = mesh::process::ProcessConfig::new("underhill_vm");
//!     mesh::process::launch(config, Parameters { requests, log })
//! }
//!
//! // In the child, first of all:
//! fn parameters() -> Result<Parameters, mesh::process::InvitationError> {
//!     mesh::process::invitation()
//! }
//! ```
//!
//! # What it promises
//! - A message inside the process is moved, never encoded.
//! - Messages of one sender arrive in order, once, wherever the ends move to meanwhile. A
//!   message is lost only with its receiver.
//! - Between two processes there is one socket per channel, and one more per process that
//!   makes calls through it. No third process passes anything on.
//! - All that a peer can make this process hold is bounded: the queue of a channel, the
//!   size of a message and its nesting, open calls, answers that nobody reads.
//! - A peer that breaks the rules ends its channel with an error that says how, and
//!   nothing else. A peer that dies closes its channels, and ends calls with
//!   [`RpcError::PeerGone`].
//!
//! # What it refuses
//! Messages of more than [`wire::MESSAGE_MAX`] bytes or about 250 descriptors, another
//! version of the format, and peers on another machine. It does not encrypt, does not
//! restart anything, and does not tell a slow peer from a dead one: use a deadline
//! ([`CancelContext`]).
//!
//! # Runtime
//! Waiting for other processes needs a tokio runtime with I/O enabled, and a clock where
//! a deadline is used. It is made for a single thread: no other thread is woken, and a
//! system call is tried before it is waited for. The first wait binds an end to the
//! runtime of that moment.
//!
//! # Limits that are known
//! - The cancellation of a call does not follow a call that is passed on in a message, nor
//!   one that its callee keeps while the receiver moves on. Its deadline does.
//! - A `Receiver` that moves takes at most some 250 descriptors along with the messages
//!   in its queue.
//! - The bytes of a large message are in memory twice while it is read.
//!
//! # The bench
//! `cargo run --release -p mesh --example mesh_bench [-- ROUND_TRIPS]` measures round trips
//! between two processes: a call through mesh, and the same payload on bare, blocking
//! socket pairs, in turns, all on one CPU. It prints one JSON object:
//!
//! | key | meaning |
//! | --- | --- |
//! | `version` | 1 |
//! | `round_trips` | of each kind and size; 10,000 unless given |
//! | `payloads[].bytes` | size of request and answer: 64 and 4096 |
//! | `payloads[].mesh_rpc_ns` | median of a call through mesh |
//! | `payloads[].seqpacket_ns` | median on a bare `SOCK_SEQPACKET` pair |
//! | `payloads[].stream_ns` | median on a bare `SOCK_STREAM` pair |
//! | `payloads[].ratio` | `mesh_rpc_ns` / `seqpacket_ns`; the bar is 2 |

mod cancel;
mod channel;
mod codec;
mod connection;
mod depth;
mod link;
mod message;
mod oneshot;
pub mod process;
mod rpc;
mod socket;
mod stats;
#[cfg(test)]
mod tests;
mod watch;
pub mod wire;

pub use cancel::CancelContext;
pub use cancel::CancelReason;
pub use channel::CAPACITY_MAX;
pub use channel::DEFAULT_CAPACITY;
pub use channel::Receiver;
pub use channel::RecvError;
pub use channel::SendError;
pub use channel::Sender;
pub use channel::TrySendError;
pub use channel::Unsent;
pub use channel::channel;
pub use channel::channel_with_capacity;
pub use codec::EncodeError;
pub use connection::CALLS_MAX;
pub use message::Bytes;
pub use message::Fd;
pub use message::Message;
pub use oneshot::OneshotReceiver;
pub use oneshot::OneshotSender;
pub use oneshot::oneshot;
pub use rpc::Reply;
pub use rpc::Rpc;
pub use rpc::RpcError;
pub use stats::Stats;
pub use stats::stats;
