//! The receiving end.

use super::Encoded;
use super::Incoming;
use super::Place;
use super::Shared;
use super::Socket;
use super::State;
use super::wake_all;
use crate::codec;
use crate::codec::DecodeError;
use crate::connection::Connections;
use crate::message::Message;
use crate::socket;
use crate::socket::ReceiveError;
use crate::socket::Received;
use crate::stats::COUNTERS;
use crate::watch;
use crate::wire;
use crate::wire::WireError;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use thiserror::Error;
use tokio::io::Interest;

/// The receiving end of a channel. It can be sent in a message, and takes along what was
/// not received yet; what stays behind is an end that is [`RecvError::Closed`].
pub struct Receiver<T> {
    pub(super) shared: Arc<Shared<T>>,
}

/// Why no message will come any more.
#[derive(Debug, Error)]
pub enum RecvError {
    /// All senders are gone, and all that they had sent was received.
    #[error("all senders are gone")]
    Closed,
    /// A sender in another process broke the rules. The channel is closed.
    #[error("message of the channel: {0}")]
    Wire(#[from] WireError),
    /// The socket failed, or there is no tokio runtime to wait for it. The channel is
    /// closed.
    #[error("socket of the channel: {0}")]
    Io(#[from] io::Error),
}

/// What the socket had.
enum Next<T> {
    Message(T),
    /// A call too many; its caller knows.
    Refused,
    Nothing,
}

impl<T> Receiver<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared }
    }

    /// The end of a channel all of whose senders are elsewhere.
    pub(super) fn arrived(incoming: Incoming) -> Self {
        Self::new(Arc::new(Shared(Mutex::new(State {
            incoming: Some(incoming),
            ..State::new()
        }))))
    }

    /// Ends the channel.
    fn close(&self) {
        let mut state = self.shared.lock();
        if state.place == Place::Here {
            state.place = Place::Gone;
        }
        state.first = 0;
        let queue = std::mem::take(&mut state.queue);
        let incoming = state.incoming.take();
        let link = match state.place {
            Place::Moved => None,
            Place::Here | Place::Gone => state.link.take(),
        };
        let wakers = std::mem::take(&mut state.sender_wakers);
        drop(state);
        // Messages may hold ends of this very channel.
        drop((queue, link));
        if let Some(incoming) = incoming {
            (incoming.refuse_all)(incoming);
        }
        wake_all(wakers);
    }
}

impl<T: Message> Receiver<T> {
    /// The receiver of what another program writes into the other end of `socket`, in the
    /// format of [`wire`]. Nothing is trusted that comes from there.
    ///
    /// # Errors
    /// It is not a Unix socket of type `SOCK_SEQPACKET`.
    pub fn from_socket(socket: OwnedFd) -> Result<Self, WireError> {
        if !socket::is_port(socket.as_fd()) {
            return Err(WireError::NotASocket { index: 0 });
        }
        Ok(Self::arrived(Incoming::new::<T>(socket)))
    }

    /// Lets nobody elsewhere send messages of more than `bytes`; without it
    /// [`wire::MESSAGE_MAX`] is the limit. A larger one closes the channel. What is decoded
    /// can take many times its size, so the receiver of a process that is not trusted
    /// should be as narrow as its messages are. The limit holds until the receiver is
    /// sent.
    pub fn set_message_limit(&mut self, bytes: usize) {
        let mut state = self.shared.lock();
        state.message_max = bytes;
        if let Some(incoming) = &mut state.incoming {
            incoming.message_max = bytes;
        }
    }

    /// Waits for the next message. A future that is dropped has taken none.
    ///
    /// # Errors
    /// No message will come any more.
    pub async fn recv(&mut self) -> Result<T, RecvError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next message if there is one.
    ///
    /// # Errors
    /// No message will come any more.
    pub fn try_recv(&mut self) -> Result<Option<T>, RecvError> {
        match self.next(None) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// As [`recv`](Self::recv), for a future of one's own.
    ///
    /// # Errors
    /// No message will come any more.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        // A sender that never pauses must not keep other tasks from their turns.
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        let next = self.next(Some(cx));
        if next.is_ready() {
            coop.made_progress();
        }
        next
    }

    fn next(&mut self, mut cx: Option<&mut Context<'_>>) -> Poll<Result<T, RecvError>> {
        loop {
            let mut state = self.shared.lock();
            if state.place != Place::Here {
                return Poll::Ready(Err(RecvError::Closed));
            }
            if state.first > 0 || state.queue_turn || state.incoming.is_none() {
                state.queue_turn = false;
                if let Some((message, wakers)) = state.pop() {
                    drop(state);
                    wake_all(wakers);
                    return Poll::Ready(Ok(message));
                }
            }
            // The socket is read without the lock: decoding runs code of others.
            let incoming = state.incoming.take();
            if let Some(cx) = &cx {
                state.receiver_waker = Some(cx.waker().clone());
            }
            let senders = state.senders;
            drop(state);
            let Some(mut incoming) = incoming else {
                if senders > 0 {
                    return Poll::Pending;
                }
                self.close();
                return Poll::Ready(Err(RecvError::Closed));
            };
            let next = incoming.next(cx.as_deref_mut());
            let mut state = self.shared.lock();
            state.queue_turn = true;
            match next {
                Ok(Next::Message(message)) => {
                    state.incoming = Some(incoming);
                    return Poll::Ready(Ok(message));
                }
                Ok(Next::Refused) => state.incoming = Some(incoming),
                Ok(Next::Nothing) => {
                    state.incoming = Some(incoming);
                    if state.queue.is_empty() {
                        return Poll::Pending;
                    }
                }
                Err(RecvError::Closed) => {
                    // All sockets of senders are closed; the queue may have messages yet.
                    drop(state);
                    drop(incoming);
                }
                Err(error) => {
                    drop(state);
                    drop(incoming);
                    self.close();
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Incoming {
    pub(super) fn new<T: Message>(socket: OwnedFd) -> Self {
        Self {
            socket: Socket::Plain(socket),
            backlog: VecDeque::new(),
            connections: Connections::default(),
            message_max: wire::MESSAGE_MAX,
            refuse_all: Self::refuse_all::<T>,
        }
    }

    /// Ends the channel. Calls that were never received are answered: the caller's
    /// connection may live on, because of calls that were received and are open.
    fn refuse_all<T: Message>(mut self) {
        if self.connections.is_empty() {
            return;
        }
        let socket = match &self.socket {
            Socket::Plain(fd) => fd,
            Socket::Registered(fd) => fd.get_ref(),
        };
        // No more can come, so the loop has an end.
        if rustix::net::shutdown(socket, rustix::net::Shutdown::Read).is_err() {
            return;
        }
        while let Ok(Next::Message(_) | Next::Refused) = self.next::<T>(None) {}
    }

    fn next<T: Message>(&mut self, cx: Option<&mut Context<'_>>) -> Result<Next<T>, RecvError> {
        if let Some(Encoded { bytes, descriptors }) = self.backlog.pop_front() {
            return decode(&bytes, descriptors, &mut self.connections);
        }
        loop {
            match &mut self.socket {
                Socket::Plain(fd) => {
                    if let Some(next) =
                        receive(fd.as_fd(), self.message_max, &mut self.connections)?
                    {
                        return Ok(next);
                    }
                    if cx.is_none() {
                        return Ok(Next::Nothing);
                    }
                    let fd = fd.try_clone()?;
                    let registered = watch::register(fd, Interest::READABLE)?;
                    self.socket = Socket::Registered(registered);
                }
                Socket::Registered(fd) => {
                    let Some(cx) = &cx else {
                        let next = receive(fd.as_fd(), self.message_max, &mut self.connections)?;
                        return Ok(next.unwrap_or(Next::Nothing));
                    };
                    let waker = cx.waker().clone();
                    let mut guard = match fd.poll_read_ready(&mut Context::from_waker(&waker)) {
                        Poll::Ready(guard) => guard?,
                        Poll::Pending => return Ok(Next::Nothing),
                    };
                    match receive(
                        guard.get_inner().as_fd(),
                        self.message_max,
                        &mut self.connections,
                    )? {
                        Some(next) => return Ok(next),
                        None => guard.clear_ready(),
                    }
                }
            }
        }
    }
}

/// Takes a message out of the socket. None: it is empty.
fn receive<T: Message>(
    fd: BorrowedFd<'_>,
    max: usize,
    connections: &mut Connections,
) -> Result<Option<Next<T>>, RecvError> {
    let received = socket::receive(fd, max, |received| {
        let Received {
            kind,
            body,
            descriptors,
        } = received;
        if kind != wire::Kind::Message {
            return Err(WireError::Kind { kind: kind as u8 }.into());
        }
        decode(&body, descriptors, connections)
    });
    match received {
        Ok(next) => next.map(Some),
        Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(ReceiveError::Closed) => Err(RecvError::Closed),
        Err(ReceiveError::Wire(error)) => Err(error.into()),
        Err(ReceiveError::Io(error)) => Err(error.into()),
    }
}

fn decode<T: Message>(
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
    connections: &mut Connections,
) -> Result<Next<T>, RecvError> {
    match codec::decode(bytes, descriptors, connections) {
        Ok(message) => Ok(Next::Message(message)),
        Err(DecodeError::Busy) => Ok(Next::Refused),
        Err(DecodeError::Wire(error)) => {
            COUNTERS.refused.add(1);
            Err(error.into())
        }
    }
}

impl Socket {
    pub(super) fn into_fd(self) -> OwnedFd {
        match self {
            Self::Plain(fd) => fd,
            Self::Registered(fd) => fd.into_inner(),
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
