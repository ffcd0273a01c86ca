//! The caller's end of a connection.

use super::CALLS_MAX;
use super::REPLY_HEAD;
use super::Status;
use crate::cancel::lock;
use crate::codec::EncodeError;
use crate::rpc::RpcError;
use crate::socket;
use crate::socket::Packet;
use crate::socket::ReceiveError;
use crate::socket::Received;
use crate::stats::COUNTERS;
use crate::watch;
use crate::wire::HEADER_LEN;
use crate::wire::Kind;
use crate::wire::MESSAGE_MAX;
use crate::wire::WireError;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::hash::Hasher;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Somebody who waits for an answer.
pub(crate) trait PendingCall: Send {
    /// The answer's body and descriptors, or why there is none.
    fn complete(self: Box<Self>, reply: Result<(&[u8], Vec<OwnedFd>), RpcError>);
}

/// Why a call could not be noted.
pub(crate) enum RegisterError {
    /// The callee closed the connection.
    Gone,
    /// Too many calls are open.
    Full,
}

/// The caller's end.
pub(crate) struct Client {
    connection: u64,
    socket: Arc<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: HashMap<u64, Box<dyn PendingCall>>,
    last_id: u64,
    /// The callee's end until a message has taken it along.
    peer: Option<OwnedFd>,
    /// No more calls will come.
    closing: bool,
    gone: bool,
    waker: Option<Waker>,
}

impl Client {
    /// Makes a connection and the task that reads its answers.
    pub(crate) fn new() -> Result<Arc<Self>, EncodeError> {
        let runtime = tokio::runtime::Handle::try_current()?;
        let (socket, peer) = socket::pair()?;
        let random = std::hash::RandomState::new().build_hasher().finish();
        let client = Arc::new(Self {
            connection: random,
            socket: Arc::new(socket),
            state: Mutex::new(State {
                peer: Some(peer),
                ..State::default()
            }),
        });
        runtime.spawn(client.clone().run());
        Ok(client)
    }

    /// The number by which the callee knows this connection.
    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Whether the callee has closed it.
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.state).gone
    }

    /// Notes a call and gives its id.
    pub(crate) fn register(&self, call: Box<dyn PendingCall>) -> Result<u64, RegisterError> {
        let mut state = lock(&self.state);
        if state.gone {
            return Err(RegisterError::Gone);
        }
        if state.calls.len() >= CALLS_MAX {
            return Err(RegisterError::Full);
        }
        state.last_id += 1;
        let id = state.last_id;
        state.calls.insert(id, call);
        COUNTERS.calls.add(1);
        Ok(id)
    }

    /// The callee's end, if no message has taken it along yet.
    pub(crate) fn peer(&self) -> io::Result<Option<OwnedFd>> {
        let state = lock(&self.state);
        state.peer.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// A message that has the callee's end was sent.
    pub(crate) fn announced(&self) {
        let peer = lock(&self.state).peer.take();
        drop(peer);
    }

    /// The request was never sent.
    pub(crate) fn abandon(&self, id: u64) {
        let call = self.remove(id);
        if let Some(call) = call {
            call.complete(Err(RpcError::Dropped));
        }
    }

    /// Nobody waits for the answer any more; the callee is told, unless it does not even
    /// read such news.
    pub(crate) fn cancel(&self, id: u64) {
        if self.remove(id).is_none() {
            return;
        }
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend(id.to_le_bytes());
        let sent = Packet::new(Kind::Cancel, bytes, Vec::new())
            .and_then(|packet| socket::send(self.socket.as_fd(), &packet));
        if let Err(error) = sent {
            tracing::debug!(%error, "cancellation of a call not sent");
        }
    }

    /// No more calls will come: the connection ends with the last answer.
    pub(crate) fn close(&self) {
        let waker = {
            let mut state = lock(&self.state);
            state.closing = true;
            state.waker.take()
        };
        wake(waker);
    }

    fn remove(&self, id: u64) -> Option<Box<dyn PendingCall>> {
        let mut state = lock(&self.state);
        let call = state.calls.remove(&id);
        let waker = if state.is_over() {
            state.waker.take()
        } else {
            None
        };
        drop(state);
        wake(waker);
        call
    }

    async fn run(self: Arc<Self>) {
        let error = match watch::register(self.socket.clone(), Interest::READABLE) {
            Ok(socket) => std::future::poll_fn(|cx| self.poll(&socket, cx)).await,
            Err(error) => {
                tracing::warn!(%error, "answers to calls cannot be waited for");
                ReceiveError::Closed
            }
        };
        let calls = {
            let mut state = lock(&self.state);
            state.gone = true;
            state.peer = None;
            std::mem::take(&mut state.calls)
        };
        // Whoever still holds the other end is told that nobody listens.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        for (_, call) in calls {
            call.complete(Err(match &error {
                ReceiveError::Wire(error) => RpcError::Wire(error.clone()),
                ReceiveError::Closed | ReceiveError::Io(_) => RpcError::PeerGone,
            }));
        }
    }

    /// Takes answers until the connection is over.
    fn poll(&self, socket: &AsyncFd<Arc<OwnedFd>>, cx: &mut Context<'_>) -> Poll<ReceiveError> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.is_over() {
                    return Poll::Ready(ReceiveError::Closed);
                }
                let waker = state.waker.as_ref();
                if !waker.is_some_and(|own| own.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
            }
            let mut guard = match ready!(socket.poll_read_ready(cx)) {
                Ok(guard) => guard,
                Err(error) => return Poll::Ready(error.into()),
            };
            match socket::receive(self.socket.as_fd(), MESSAGE_MAX, |reply| self.answer(reply)) {
                Ok(Ok(())) => {
                    // The caller goes first: its next request leaves before this task
                    // finds that the socket is empty.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Err(error)) => return Poll::Ready(error.into()),
                Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                }
                Err(error) => return Poll::Ready(error),
            }
        }
    }

    fn answer(&self, reply: Received<'_>) -> Result<(), WireError> {
        if reply.kind != Kind::Reply {
            return Err(WireError::Kind {
                kind: reply.kind as u8,
            });
        }
        let length = reply.body.len();
        let Some((head, body)) = reply.body.split_first_chunk::<REPLY_HEAD>() else {
            return Err(WireError::Length {
                length,
                body: REPLY_HEAD,
            });
        };
        let [id @ .., status] = *head;
        // Unknown ids are those of calls that nobody waits for any more.
        let Some(call) = lock(&self.state).calls.remove(&u64::from_le_bytes(id)) else {
            return Ok(());
        };
        call.complete(match status {
            status if status == Status::Done as u8 => Ok((body, reply.descriptors)),
            status if status == Status::Busy as u8 => Err(RpcError::Busy),
            status if status == Status::Unsendable as u8 => Err(RpcError::Unsendable),
            _ => Err(RpcError::Dropped),
        });
        Ok(())
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.closing && self.calls.is_empty()
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
