//! Channels with many senders and one receiver.
//!
//! # Inside a process
//! The sender puts the value itself into a bounded queue. Nothing is encoded.
//!
//! # When an end leaves the process
//! The first end that leaves makes a socket pair, and the end's descriptor travels in the
//! message. From then on
//!
//! - a sender elsewhere writes packets into the socket. Each process that has senders of
//!   the channel holds the same socket: the kernel keeps packets whole and in order;
//! - a receiver that stayed reads its local queue and the socket. What was in the queue
//!   when a sender left goes first, so that the sender's earlier messages do;
//! - a receiver that left has taken along what was in the queue and in the socket. Senders
//!   that stayed write into the socket; the change-over is one step under the lock of the
//!   queue.
//!
//! A receiver that leaves again takes along what it has not given out; the rest is in the
//! socket, where it stays until the next holder reads it. So nothing is passed on by a
//! process in between, nothing is lost, doubled or, per sender, reordered.

mod receiver;
mod sender;
mod wire;

pub use receiver::Receiver;
pub use receiver::RecvError;
pub use sender::SendError;
pub use sender::Sender;
pub use sender::TrySendError;
pub use sender::Unsent;

use crate::cancel::lock;
use crate::connection::Connections;
use crate::link::Link;
use crate::message::Message;
use crate::socket;
use crate::wire::MESSAGE_MAX;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::task::Context;
use std::task::Waker;
use tokio::io::unix::AsyncFd;

/// Most messages in the queue of a [`channel()`] inside a process.
pub const DEFAULT_CAPACITY: usize = 256;

/// Makes a channel whose queue has [`DEFAULT_CAPACITY`].
pub fn channel<T: Message>() -> (Sender<T>, Receiver<T>) {
    channel_with_capacity(DEFAULT_CAPACITY)
}

/// Most messages in a queue inside a process, and most that a receiver takes along.
pub const CAPACITY_MAX: usize = 64 * 1024;

/// Makes a channel whose queue inside the process has at most `capacity` messages, at
/// least one and at most [`CAPACITY_MAX`]. Between processes the socket's queue is the limit: some 200 KiB of
/// packets, the kernel's costs included.
pub fn channel_with_capacity<T: Message>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared(Mutex::new(State {
        senders: 1,
        capacity: capacity.clamp(1, CAPACITY_MAX),
        ..State::new()
    })));
    (Sender::local(shared.clone()), Receiver::new(shared))
}

/// What the ends in one process share.
pub(crate) struct Shared<T>(Mutex<State<T>>);

struct State<T> {
    queue: VecDeque<T>,
    capacity: usize,
    /// How many messages of the queue go before those of the socket.
    first: usize,
    /// The queue has its turn before the socket.
    queue_turn: bool,
    /// Senders in this process that use the queue.
    senders: usize,
    place: Place,
    /// Most bytes of a message from elsewhere.
    message_max: usize,
    /// The writing end of the socket, while `senders` is not 0.
    link: Option<Arc<Link>>,
    /// The reading end, while the receiver is here and not just reading it.
    incoming: Option<Incoming>,
    receiver_waker: Option<Waker>,
    /// Those who wait for space in the queue or for its end.
    sender_wakers: Vec<Waker>,
}

/// Where the receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    Moved,
    Gone,
}

/// What comes from other processes.
struct Incoming {
    socket: Socket,
    /// Encoded messages that go before those of the socket.
    backlog: VecDeque<Encoded>,
    connections: Connections,
    /// Most bytes of a message.
    message_max: usize,
    /// [`Incoming::refuse_all`] for the channel's type of messages.
    refuse_all: fn(Incoming),
}

/// A message that a former holder of the receiver had not given out.
struct Encoded {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

enum Socket {
    Plain(OwnedFd),
    /// Known to the runtime: the receiver has waited for it.
    Registered(AsyncFd<OwnedFd>),
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.0)
    }
}

impl<T> State<T> {
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            capacity: 1,
            first: 0,
            queue_turn: true,
            senders: 0,
            place: Place::Here,
            message_max: MESSAGE_MAX,
            link: None,
            incoming: None,
            receiver_waker: None,
            sender_wakers: Vec::new(),
        }
    }

    /// The writing end of the socket, which is made if there is none yet.
    fn connect(&mut self) -> io::Result<Arc<Link>>
    where
        T: Message,
    {
        if let Some(link) = &self.link {
            return Ok(link.clone());
        }
        let (receiving, sending) = socket::pair()?;
        let link = Link::new(sending);
        self.link = Some(link.clone());
        self.incoming = Some(Incoming {
            message_max: self.message_max,
            ..Incoming::new::<T>(receiving)
        });
        Ok(link)
    }

    /// Takes the next message of the queue.
    fn pop(&mut self) -> Option<(T, Vec<Waker>)> {
        let message = self.queue.pop_front()?;
        self.first = self.first.saturating_sub(1);
        Some((message, std::mem::take(&mut self.sender_wakers)))
    }

    fn wait_for_space(&mut self, cx: &Context<'_>) {
        let waker = cx.waker();
        if !self.sender_wakers.iter().any(|own| own.will_wake(waker)) {
            self.sender_wakers.push(waker.clone());
        }
    }
}

fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        waker.wake();
    }
}
