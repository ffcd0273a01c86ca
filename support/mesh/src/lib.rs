//! Typed channels inside and between the processes of the paravisor.

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
#[cfg(test)]
mod tests;
mod watch;
pub mod wire;

pub use cancel::CancelContext;
pub use cancel::CancelReason;
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
