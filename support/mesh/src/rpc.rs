//! Calls: a request that carries the way back for its answer.

mod wire;

use crate::cancel::CancelContext;
use crate::cancel::CancelReason;
use crate::cancel::lock;
use crate::channel::SendError;
use crate::channel::Sender;
use crate::codec;
use crate::codec::DecodeError;
use crate::connection::Client;
use crate::connection::Connections;
use crate::connection::PendingCall;
use crate::connection::REPLY_HEAD;
use crate::connection::ReplyLink;
use crate::connection::Status;
use crate::message::Message;
use crate::socket::Packet;
use crate::wire::HEADER_LEN;
use crate::wire::Kind;
use crate::wire::WireError;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use thiserror::Error;

/// Why a call has no answer.
#[derive(Debug, Error)]
pub enum RpcError {
    /// The callee gave the call up without an answer.
    #[error("the call was dropped without an answer")]
    Dropped,
    /// The callee's process or receiver is gone.
    #[error("the peer is gone")]
    PeerGone,
    /// The caller's context was cancelled, or its deadline is over.
    #[error(transparent)]
    Cancelled(#[from] CancelReason),
    /// The callee has too many open calls of this process.
    #[error("the peer has too many open calls")]
    Busy,
    /// The callee's answer could not be encoded.
    #[error("the answer could not be sent")]
    Unsendable,
    /// The answer breaks the rules of the protocol.
    #[error("answer: {0}")]
    Wire(#[from] WireError),
    /// The request could not be sent.
    #[error("request: {0}")]
    Send(SendError),
}

impl From<SendError> for RpcError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed => Self::PeerGone,
            error => Self::Send(error),
        }
    }
}

/// A request with input `I`, to be answered with an `O`.
///
/// It is a field of a request type:
///
/// ```
/// #[derive(serde::Serialize, serde::Deserialize)]
/// enum Request {
///     Add(mesh::Rpc<(u32, u32), u32>),
///     Stop(mesh::Rpc<(), ()>),
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let (sender, mut receiver) = mesh::channel();
/// tokio::spawn(async move {
///     while let Ok(request) = receiver.recv().await {
///         match request {
///             Request::Add(rpc) => rpc.handle(async |(a, b)| a + b).await,
///             Request::Stop(rpc) => return rpc.complete(()),
///         }
///     }
/// });
/// assert_eq!(sender.call(Request::Add, (2, 3)).await?, 5);
/// sender.call(Request::Stop, ()).await?;
/// # Ok::<(), mesh::RpcError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropped without an answer it ends the call with [`RpcError::Dropped`].
#[derive(Debug)]
pub struct Rpc<I, O> {
    input: I,
    reply: Reply<O>,
}

/// The way back of a call.
pub struct Reply<O> {
    port: Mutex<Option<Port<O>>>,
    context: CancelContext,
}

enum Port<O> {
    /// The caller is in this process.
    Local(Arc<CallState<O>>),
    Remote(RemotePort),
}

struct RemotePort {
    link: Arc<ReplyLink>,
    id: u64,
}

/// A call that waits for its answer in this process.
struct CallState<O>(Mutex<CallInner<O>>);

struct CallInner<O> {
    result: Option<Result<O, RpcError>>,
    /// The caller does not wait any more.
    abandoned: bool,
    waker: Option<Waker>,
    /// Where the call is answered, if that is another process.
    remote: Option<(Weak<Client>, u64)>,
}

impl<T: Message> Sender<T> {
    /// Sends a request and waits for its answer. `make` makes the request, usually
    /// a variant of `T`. A future that is dropped before the answer cancels the call.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn call<I, O>(
        &self,
        make: impl FnOnce(Rpc<I, O>) -> T + Send,
        input: I,
    ) -> impl Future<Output = Result<O, RpcError>> + Send
    where
        I: Send,
        O: Message,
    {
        self.call_in(CancelContext::new(), make, input)
    }

    /// As [`call`](Self::call), as long as `context` lasts. The callee sees the deadline
    /// and the cancellation.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn call_within<I, O>(
        &self,
        context: &CancelContext,
        make: impl FnOnce(Rpc<I, O>) -> T + Send,
        input: I,
    ) -> impl Future<Output = Result<O, RpcError>> + Send
    where
        I: Send,
        O: Message,
    {
        self.call_in(context.child(), make, input)
    }

    async fn call_in<I, O>(
        &self,
        context: CancelContext,
        make: impl FnOnce(Rpc<I, O>) -> T + Send,
        input: I,
    ) -> Result<O, RpcError>
    where
        I: Send,
        O: Message,
    {
        let call = CallGuard {
            state: Arc::new(CallState::new()),
            context,
        };
        let work = async {
            self.send(make(Rpc::new(input, &call.state, &call.context)))
                .await?;
            call.state.wait().await
        };
        match call.context.run(work).await {
            // The callee may have given up for the same reason, and may be faster.
            Ok(Err(RpcError::Dropped)) => Err(match call.context.reason() {
                Some(reason) => reason.into(),
                None => RpcError::Dropped,
            }),
            Ok(result) => result,
            Err(reason) => Err(reason.into()),
        }
    }
}

/// Ends the call with its future.
struct CallGuard<O> {
    state: Arc<CallState<O>>,
    context: CancelContext,
}

impl<O> Drop for CallGuard<O> {
    fn drop(&mut self) {
        self.context.cancel();
        self.state.abandon();
    }
}

impl<I, O> Rpc<I, O> {
    fn new(input: I, state: &Arc<CallState<O>>, context: &CancelContext) -> Self {
        Self {
            input,
            reply: Reply {
                port: Mutex::new(Some(Port::Local(state.clone()))),
                context: context.clone(),
            },
        }
    }

    /// What the caller gave.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// Whether the caller still waits, and until when.
    pub fn context(&self) -> &CancelContext {
        &self.reply.context
    }

    /// Input and way back, for an answer from elsewhere.
    pub fn into_parts(self) -> (I, Reply<O>) {
        (self.input, self.reply)
    }
}

impl<I, O: Message> Rpc<I, O> {
    /// Answers with what `f` makes of the input. `f` runs to its end even if the caller
    /// has gone; see [`handle_while_wanted`](Self::handle_while_wanted).
    pub async fn handle(self, f: impl AsyncFnOnce(I) -> O) {
        let (input, reply) = self.into_parts();
        reply.complete(f(input).await);
    }

    /// As [`handle`](Self::handle), but `f` is dropped when the caller does not wait any
    /// more or the deadline is over.
    pub async fn handle_while_wanted(self, f: impl AsyncFnOnce(I) -> O) {
        let (input, reply) = self.into_parts();
        if let Ok(output) = reply.context.run(f(input)).await {
            reply.complete(output);
        }
    }

    /// Answers.
    pub fn complete(self, output: O) {
        self.reply.complete(output);
    }
}

impl<O> Reply<O> {
    /// Whether the caller still waits, and until when.
    pub fn context(&self) -> &CancelContext {
        &self.context
    }

    fn take(&self) -> Option<Port<O>> {
        lock(&self.port).take()
    }
}

impl<O: Message> Reply<O> {
    /// Answers. An answer that nobody waits for is dropped; one that cannot be sent ends
    /// the call with [`RpcError::Unsendable`].
    pub fn complete(self, output: O) {
        match self.take() {
            Some(Port::Local(state)) => state.set(Ok(output)),
            Some(Port::Remote(RemotePort { link, id })) => {
                let packet = reply_packet(id, &output).unwrap_or_else(|error| {
                    tracing::warn!(%error, "answer to a call cannot be sent");
                    status_packet(id, Status::Unsendable)
                });
                if let Some(packet) = packet {
                    link.answer(id, packet);
                }
            }
            None => {}
        }
    }
}

impl<O> Drop for Reply<O> {
    fn drop(&mut self) {
        match self.take() {
            Some(Port::Local(state)) => state.set(Err(RpcError::Dropped)),
            Some(Port::Remote(RemotePort { link, id })) => {
                if let Some(packet) = status_packet(id, Status::Dropped) {
                    link.answer(id, packet);
                }
            }
            None => {}
        }
    }
}

impl<O> std::fmt::Debug for Reply<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

/// The packet of an answer.
fn reply_packet<O: Message>(id: u64, output: &O) -> Result<Option<Packet>, codec::EncodeError> {
    let mut encoded = codec::encode(output, None, HEADER_LEN + REPLY_HEAD)?;
    let head = &mut encoded.bytes[HEADER_LEN..HEADER_LEN + REPLY_HEAD];
    head[..8].copy_from_slice(&id.to_le_bytes());
    head[8] = Status::Done as u8;
    // What the answer refers to is in the socket's hands from here on, or lost with it.
    encoded.guards.sent();
    Ok(Some(Packet::new(
        Kind::Reply,
        encoded.bytes,
        encoded.descriptors,
    )?))
}

/// The packet that says that there is no answer. None would mean that even ten bytes
/// cannot be sent.
pub(crate) fn status_packet(id: u64, status: Status) -> Option<Packet> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes.extend(id.to_le_bytes());
    bytes.push(status as u8);
    Packet::new(Kind::Reply, bytes, Vec::new()).ok()
}

impl<O> CallState<O> {
    fn new() -> Self {
        Self(Mutex::new(CallInner {
            result: None,
            abandoned: false,
            waker: None,
            remote: None,
        }))
    }

    fn set(&self, result: Result<O, RpcError>) {
        let mut inner = lock(&self.0);
        if inner.abandoned || inner.result.is_some() {
            return;
        }
        inner.result = Some(result);
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<O, RpcError>> {
        let mut inner = lock(&self.0);
        match inner.result.take() {
            Some(result) => {
                inner.abandoned = true;
                Poll::Ready(result)
            }
            None => {
                inner.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    async fn wait(&self) -> Result<O, RpcError> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// The caller does not wait any more.
    fn abandon(&self) {
        let (result, remote) = {
            let mut inner = lock(&self.0);
            inner.abandoned = true;
            (inner.result.take(), inner.remote.take())
        };
        drop(result);
        if let Some((client, id)) = remote
            && let Some(client) = client.upgrade()
        {
            client.cancel(id);
        }
    }
}

impl<O: Message> PendingCall for Arc<CallState<O>> {
    fn complete(self: Box<Self>, reply: Result<(&[u8], Vec<OwnedFd>), RpcError>) {
        let result = reply.and_then(|(body, descriptors)| {
            codec::decode(body, descriptors, &mut Connections::default()).map_err(|error| {
                match error {
                    DecodeError::Wire(error) => RpcError::Wire(error),
                    DecodeError::Busy => RpcError::Busy,
                }
            })
        });
        self.set(result);
    }
}
