//! The sending end.

use super::Place;
use super::Shared;
use super::wake_all;
use crate::codec;
use crate::codec::EncodeError;
use crate::link::Link;
use crate::link::Outgoing;
use crate::message::Message;
use crate::socket;
use crate::wire::WireError;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use thiserror::Error;

/// The sending end of a channel. Clones send to the same receiver; the messages of one
/// clone arrive in order.
///
/// It can be sent in a message: then both this one and the one that arrives are senders
/// of the channel, and what was sent through this one before arrives first.
pub struct Sender<T> {
    kind: Kind<T>,
}

enum Kind<T> {
    /// Made together with the receiver in this process.
    Local(Arc<Shared<T>>),
    /// Arrived in a message.
    Remote(Arc<Link>),
}

/// Why a message was not sent.
#[derive(Debug, Error)]
pub enum SendError {
    /// No receiver is left.
    #[error("the receiver is gone")]
    Closed,
    /// The message cannot travel between processes; it is lost.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The socket failed, or there is no tokio runtime to wait for it.
    #[error("socket of the channel: {0}")]
    Io(io::Error),
}

/// Why a message was not sent at once.
#[derive(Debug, Error)]
pub enum TrySendError<T> {
    /// The receiver's queue is full. The message can be tried again.
    #[error("the receiver's queue is full")]
    Full(Unsent<T>),
    /// It can never be sent.
    #[error(transparent)]
    Failed(#[from] SendError),
}

/// A message that found the queue full; [`Sender::send`] and [`Sender::try_send`] of the
/// same sender take it like the message itself.
///
/// It may be encoded already. Then it keeps its place in no queue, and channel ends in it
/// have left this process.
pub struct Unsent<T>(Inner<T>);

enum Inner<T> {
    Message(T),
    Encoded(Arc<Link>, Outgoing),
}

impl<T> From<T> for Unsent<T> {
    fn from(message: T) -> Self {
        Self(Inner::Message(message))
    }
}

impl<T> fmt::Debug for Unsent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsent").finish_non_exhaustive()
    }
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// What became of a message that was offered to the queue.
enum Offer<T> {
    Taken,
    /// The receiver is in another process.
    Moved(T, Arc<Link>),
    Full(T),
    Closed,
}

impl<T> Sender<T> {
    pub(super) fn local(shared: Arc<Shared<T>>) -> Self {
        Self {
            kind: Kind::Local(shared),
        }
    }

    pub(super) fn remote(link: Arc<Link>) -> Self {
        Self {
            kind: Kind::Remote(link),
        }
    }

    fn offer(shared: &Shared<T>, message: T, cx: Option<&Context<'_>>) -> Offer<T> {
        let mut state = shared.lock();
        match (state.place, &state.link) {
            (Place::Gone, _) | (Place::Moved, None) => Offer::Closed,
            (Place::Moved, Some(link)) => Offer::Moved(message, link.clone()),
            (Place::Here, _) if state.queue.len() < state.capacity => {
                state.queue.push_back(message);
                let waker = state.receiver_waker.take();
                drop(state);
                wake_all(waker);
                Offer::Taken
            }
            (Place::Here, _) => {
                if let Some(cx) = cx {
                    state.wait_for_space(cx);
                }
                Offer::Full(message)
            }
        }
    }
}

impl<T: Message> Sender<T> {
    /// A sender to whoever reads the other end of `socket`, see
    /// [`Receiver::from_socket`](super::Receiver::from_socket).
    ///
    /// # Errors
    /// It is not a Unix socket of type `SOCK_SEQPACKET`.
    pub fn from_socket(socket: OwnedFd) -> Result<Self, WireError> {
        if !socket::is_port(socket.as_fd()) {
            return Err(WireError::NotASocket { index: 0 });
        }
        Ok(Self::remote(Link::new(socket)))
    }

    /// Sends a message, and waits while the receiver's queue is full. A future that is
    /// dropped before its end has sent nothing.
    ///
    /// # Errors
    /// The receiver is gone, or the message cannot travel.
    pub async fn send(&self, message: impl Into<Unsent<T>>) -> Result<(), SendError> {
        let Unsent(message) = message.into();
        let (link, outgoing) = match message {
            Inner::Encoded(link, outgoing) => (link, outgoing),
            Inner::Message(message) => match self.enqueue(message).await? {
                None => return Ok(()),
                Some(encoded) => encoded,
            },
        };
        Ok(link.send(outgoing).await?)
    }

    /// Puts a message into the queue, or encodes it if the receiver is elsewhere.
    async fn enqueue(&self, message: T) -> Result<Option<(Arc<Link>, Outgoing)>, SendError> {
        let (message, link) = match &self.kind {
            Kind::Remote(link) => (message, link.clone()),
            Kind::Local(shared) => {
                let mut unsent = Some(message);
                let offer = std::future::poll_fn(|cx| {
                    let Some(message) = unsent.take() else {
                        return Poll::Ready(Offer::Closed);
                    };
                    match Self::offer(shared, message, Some(cx)) {
                        Offer::Full(message) => {
                            unsent = Some(message);
                            Poll::Pending
                        }
                        offer => Poll::Ready(offer),
                    }
                });
                match offer.await {
                    Offer::Taken => return Ok(None),
                    Offer::Moved(message, link) => (message, link),
                    Offer::Closed | Offer::Full(_) => return Err(SendError::Closed),
                }
            }
        };
        let outgoing = encode(&message, &link)?;
        Ok(Some((link, outgoing)))
    }

    /// Sends a message if the receiver's queue has space for it.
    ///
    /// # Errors
    /// The queue is full, the receiver is gone, or the message cannot travel.
    pub fn try_send(&self, message: impl Into<Unsent<T>>) -> Result<(), TrySendError<T>> {
        let Unsent(message) = message.into();
        let (link, outgoing) = match (message, &self.kind) {
            (Inner::Encoded(link, outgoing), _) => (link, outgoing),
            (Inner::Message(message), Kind::Remote(link)) => {
                (link.clone(), encode(&message, link)?)
            }
            (Inner::Message(message), Kind::Local(shared)) => {
                match Self::offer(shared, message, None) {
                    Offer::Taken => return Ok(()),
                    Offer::Full(message) => {
                        return Err(TrySendError::Full(Unsent(Inner::Message(message))));
                    }
                    Offer::Closed => return Err(SendError::Closed.into()),
                    Offer::Moved(message, link) => {
                        let outgoing = encode(&message, &link)?;
                        (link, outgoing)
                    }
                }
            }
        };
        match link.try_send(outgoing) {
            Ok(()) => Ok(()),
            Err((error, outgoing)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(TrySendError::Full(Unsent(Inner::Encoded(link, outgoing))))
            }
            Err((error, _)) => Err(SendError::from(error).into()),
        }
    }

    /// Waits until no receiver is left.
    ///
    /// # Errors
    /// The socket failed, or there is no tokio runtime.
    pub async fn closed(&self) -> io::Result<()> {
        let link = match &self.kind {
            Kind::Remote(link) => link.clone(),
            Kind::Local(shared) => {
                let link = std::future::poll_fn(|cx| {
                    let mut state = shared.lock();
                    match state.place {
                        Place::Here => {
                            state.wait_for_space(cx);
                            Poll::Pending
                        }
                        Place::Gone => Poll::Ready(None),
                        Place::Moved => Poll::Ready(state.link.clone()),
                    }
                });
                match link.await {
                    Some(link) => link,
                    None => return Ok(()),
                }
            }
        };
        link.closed().await
    }

    /// A link to the receiver for another process. What this sender has put into the queue
    /// goes before what the other process will send.
    pub(super) fn share_link(&self) -> io::Result<Option<Arc<Link>>> {
        let shared = match &self.kind {
            Kind::Remote(link) => return Ok(Some(link.clone())),
            Kind::Local(shared) => shared,
        };
        let mut state = shared.lock();
        match state.place {
            Place::Gone => Ok(None),
            Place::Moved => Ok(state.link.clone()),
            Place::Here => {
                let link = state.connect()?;
                state.first = state.queue.len();
                // It must listen to the socket too.
                let waker = state.receiver_waker.take();
                drop(state);
                wake_all(waker);
                Ok(Some(link))
            }
        }
    }
}

fn encode<T: Message>(message: &T, link: &Arc<Link>) -> Result<Outgoing, SendError> {
    let encoded = codec::encode_for_packet(message, Some(link))?;
    Outgoing::new(encoded).map_err(|error| SendError::Encode(error.into()))
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            kind: match &self.kind {
                Kind::Local(shared) => {
                    shared.lock().senders += 1;
                    Kind::Local(shared.clone())
                }
                Kind::Remote(link) => Kind::Remote(link.clone()),
            },
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Kind::Local(shared) = &self.kind {
            let mut state = shared.lock();
            state.senders -= 1;
            if state.senders == 0 {
                let link = state.link.take();
                let waker = state.receiver_waker.take();
                drop(state);
                drop(link);
                wake_all(waker);
            }
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}
