//! The callee's end of a connection.

use super::CALLS_MAX;
use crate::cancel::CancelContext;
use crate::cancel::lock;
use crate::socket;
use crate::socket::Packet;
use crate::socket::ReceiveError;
use crate::socket::Received;
use crate::watch;
use crate::wire::Kind;
use crate::wire::MESSAGE_MAX;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes of answers that wait for a caller who does not read. Beyond that the
/// connection is cut.
const QUEUED_MAX: usize = MESSAGE_MAX;
/// What a queued answer counts beside its bytes.
const ANSWER_COST: usize = 256;
const BURST: usize = 64;
/// Size of a caller's news: the id of a call.
const NEWS_MAX: usize = 8;

/// The callee's end. Dropped, it lives on until its last answer has left.
pub(crate) struct ReplyLink {
    inner: Arc<Inner>,
}

struct Inner {
    socket: Arc<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Calls without answer, and what stops them.
    calls: HashMap<u64, CancelContext>,
    queue: VecDeque<Packet>,
    queued_bytes: usize,
    /// The caller is gone, or broke the rules.
    closed: bool,
    /// The task runs.
    running: bool,
    /// Only the queue counts: no holder is left, or another process reads the caller's
    /// news now.
    detached: bool,
    waker: Option<Waker>,
}

impl ReplyLink {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            inner: Arc::new(Inner {
                socket: Arc::new(socket),
                state: Mutex::default(),
            }),
        }
    }

    /// Whether the caller is known to be gone.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.inner.state).closed
    }

    /// Notes a call that arrived; false if there are too many.
    pub(crate) fn register(&self, id: u64, context: CancelContext) -> bool {
        {
            let mut state = lock(&self.inner.state);
            if state.calls.len() >= CALLS_MAX {
                return false;
            }
            if state.closed {
                context.cancel();
            } else {
                state.calls.insert(id, context);
            }
        }
        self.start();
        true
    }

    /// A call that another process will answer.
    pub(crate) fn forget(&self, id: u64) {
        lock(&self.inner.state).calls.remove(&id);
    }

    /// The end for one more holder.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.inner.socket.try_clone()
    }

    /// Another process reads the caller's news from now on.
    pub(crate) fn detach(&self) {
        self.inner.detach();
    }

    /// Starts to read the caller's news, if there is a runtime.
    pub(crate) fn start(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut state = lock(&self.inner.state);
        if state.running || state.closed || (state.detached && state.queue.is_empty()) {
            return;
        }
        state.running = true;
        drop(state);
        runtime.spawn(self.inner.clone().run());
    }

    /// Sends the answer to call `id`, or queues it.
    pub(crate) fn answer(&self, id: u64, packet: Packet) {
        self.forget(id);
        self.answer_unnoted(packet);
    }

    /// As [`answer`](Self::answer), for a call that was never noted.
    pub(crate) fn answer_unnoted(&self, packet: Packet) {
        let mut state = lock(&self.inner.state);
        if state.closed {
            return;
        }
        if state.queue.is_empty() {
            match socket::send(self.inner.socket.as_fd(), &packet) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "answer to a call not sent");
                    return;
                }
            }
        }
        state.queued_bytes += packet.message_length() + ANSWER_COST;
        state.queue.push_back(packet);
        if state.queued_bytes > QUEUED_MAX {
            tracing::warn!(
                bytes = state.queued_bytes,
                "a caller does not read its answers, its connection is cut"
            );
            state.close(&self.inner.socket);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.start();
    }
}

impl Drop for ReplyLink {
    fn drop(&mut self) {
        self.inner.detach();
    }
}

impl State {
    fn close(&mut self, socket: &OwnedFd) {
        self.closed = true;
        self.queue.clear();
        self.queued_bytes = 0;
        for (_, context) in self.calls.drain() {
            context.cancel();
        }
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    }
}

impl Inner {
    fn detach(&self) {
        let waker = {
            let mut state = lock(&self.state);
            state.detached = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn run(self: Arc<Self>) {
        let socket = match watch::register(self.socket.clone(), Interest::READABLE) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "cancellation of calls cannot be waited for");
                lock(&self.state).close(&self.socket);
                return;
            }
        };
        let mut writable = None;
        let result = std::future::poll_fn(|cx| self.poll(&socket, &mut writable, cx)).await;
        let mut state = lock(&self.state);
        state.running = false;
        state.waker = None;
        if let Err(error) = result {
            if !matches!(error, ReceiveError::Closed) {
                tracing::warn!(%error, "connection of a caller is cut");
            }
            state.close(&self.socket);
        }
    }

    /// Sends what is queued and reads what the caller says, until there is nothing left
    /// to do or the caller is gone.
    fn poll(
        &self,
        socket: &AsyncFd<Arc<OwnedFd>>,
        writable: &mut Option<AsyncFd<OwnedFd>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ReceiveError>> {
        let mut state = lock(&self.state);
        state.waker = Some(cx.waker().clone());
        if let Err(error) = self.flush(&mut state, writable, cx) {
            return Poll::Ready(Err(error.into()));
        }
        if state.closed || (state.detached && state.queue.is_empty()) {
            return Poll::Ready(Ok(()));
        }
        if state.detached {
            return Poll::Pending;
        }
        drop(state);
        for _ in 0..BURST {
            let mut guard = match socket.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(guard)) => guard,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            };
            match socket::receive(self.socket.as_fd(), NEWS_MAX, |news| self.news(&news)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn flush(
        &self,
        state: &mut State,
        writable: &mut Option<AsyncFd<OwnedFd>>,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        while let Some(packet) = state.queue.front() {
            match socket::send(self.socket.as_fd(), packet) {
                Ok(()) => {
                    let length = packet.message_length() + ANSWER_COST;
                    state.queue.pop_front();
                    state.queued_bytes = state.queued_bytes.saturating_sub(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A registration of its own, only while it is needed: the main one
                    // would wake this task for each answer that the caller reads.
                    let own = match writable {
                        Some(own) => own,
                        None => writable.insert(watch::register(
                            self.socket.try_clone()?,
                            Interest::WRITABLE,
                        )?),
                    };
                    match own.poll_write_ready(cx)? {
                        Poll::Ready(mut guard) => guard.clear_ready(),
                        Poll::Pending => return Ok(()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        *writable = None;
        Ok(())
    }

    fn news(&self, news: &Received<'_>) -> Result<(), ReceiveError> {
        use crate::wire::WireError;
        if news.kind != Kind::Cancel {
            return Err(WireError::Kind {
                kind: news.kind as u8,
            }
            .into());
        }
        let Ok(id) = <[u8; 8]>::try_from(&*news.body) else {
            return Err(WireError::Length {
                length: news.body.len(),
                body: 8,
            }
            .into());
        };
        if !news.descriptors.is_empty() {
            return Err(WireError::ExtraDescriptors {
                count: news.descriptors.len(),
            }
            .into());
        }
        let context = lock(&self.state).calls.remove(&u64::from_le_bytes(id));
        if let Some(context) = context {
            context.cancel();
        }
        Ok(())
    }
}
