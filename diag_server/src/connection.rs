//! A control connection: reads requests, carries them out at once, writes answers as they
//! come.

use crate::Handler;
use crate::Limits;
use crate::Status;
use crate::service::Answer;
use crate::service::Received;
use crate::service::Room;
use crate::service::Service;
use byte_stream::Stream;
use diag_proto::ttrpc::frame::Decoder;
use diag_proto::ttrpc::frame::FLAG_REMOTE_OPEN;
use diag_proto::ttrpc::frame::Frame;
use diag_proto::ttrpc::frame::Header;
use diag_proto::ttrpc::frame::Kind;
use diag_proto::ttrpc::frame::Step;
use nix::sys::socket::Shutdown;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio::time::timeout_at;

/// Bytes that are read at once.
const CHUNK: usize = 4 << 10;

/// What the smallest message counts: its task and its answer take memory, too.
const LEAST_ROOM: usize = 1 << 10;

/// Why a connection is read no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The peer sends no more.
    Closed,
    /// The peer has gone, or takes too long for what it has begun.
    Lost,
    /// The server ends.
    Stopped,
}

/// Resolves when the server ends: its sender is dropped.
pub(crate) type Stop = watch::Receiver<()>;

/// Serves a control connection to its end.
pub(crate) async fn run<H: Handler>(service: Arc<Service<H>>, stream: Stream, stop: Stop) {
    let _counted = service.stats.control_connections.hold(1);
    let limits = service.options.limits;
    let mut connection = Connection {
        link: Arc::new(Link {
            stream,
            turn: Mutex::new(()),
        }),
        service,
        stop,
        requests: JoinSet::new(),
        large: Arc::new(Semaphore::new(1)),
        last_stream: 0,
    };
    let end = match connection.read().await {
        Err(end) => end,
        Ok(never) => match never {},
    };
    connection.finish(end, &limits).await;
}

struct Connection<H> {
    service: Arc<Service<H>>,
    link: Arc<Link>,
    stop: Stop,
    requests: JoinSet<()>,
    /// A permit for one large answer.
    large: Arc<Semaphore>,
    /// The highest stream id so far.
    last_stream: u32,
}

/// Where answers go.
struct Link {
    stream: Stream,
    /// Answers are written one after the other, each whole.
    turn: Mutex<()>,
}

impl<H: Handler> Connection<H> {
    /// Reads and starts requests until the connection ends.
    async fn read(&mut self) -> Result<std::convert::Infallible, End> {
        let limits = self.service.options.limits;
        let mut decoder = Decoder::new(limits.message_bytes);
        let mut buffer = vec![0; CHUNK];
        // Of the message that is arriving: its memory, and when it must be complete.
        let mut arriving: Option<(Room, Instant)> = None;
        loop {
            let complete_by = arriving.as_ref().map(|(_, complete_by)| *complete_by);
            let mut input = self.read_some(&mut buffer, complete_by, &decoder).await?;
            while let Some(step) = decoder.advance(&mut input) {
                match step {
                    Step::Begin(header) => {
                        let room = self.room(header).await?;
                        arriving = Some((room, Instant::now() + limits.transfer));
                    }
                    Step::Frame(frame) => {
                        if let Some((room, _)) = arriving.take() {
                            self.frame(frame, room).await?;
                        }
                    }
                    Step::TooLong(header) => self.too_long(header).await?,
                }
            }
        }
    }

    async fn read_some<'a>(
        &mut self,
        buffer: &'a mut [u8],
        complete_by: Option<Instant>,
        decoder: &Decoder,
    ) -> Result<&'a [u8], End> {
        let read = self.link.stream.read(buffer);
        let read = async {
            match complete_by {
                Some(complete_by) => timeout_at(complete_by, read).await.map_err(|_| {
                    self.service.stats.stalled_connections.count();
                    tracing::debug!("a request arrives too slowly");
                    End::Lost
                }),
                None => Ok(read.await),
            }
        };
        let read = tokio::select! {
            read = read => read?,
            _ = self.stop.changed() => return Err(End::Stopped),
        };
        match read {
            Ok(0) => {
                if !decoder.is_between_frames() {
                    self.service.stats.truncated_messages.count();
                    tracing::debug!("a connection ended within a message");
                }
                Err(End::Closed)
            }
            Ok(count) => Ok(&buffer[..count]),
            Err(error) => {
                tracing::debug!(%error, "a connection is lost");
                Err(End::Lost)
            }
        }
    }

    /// Waits for the memory that a message takes.
    async fn room(&mut self, header: Header) -> Result<Room, End> {
        let bytes = (header.length as usize).max(LEAST_ROOM);
        let budget = if bytes <= Limits::SMALL_MESSAGE {
            &self.service.small_request_bytes
        } else {
            &self.service.request_bytes
        };
        // The decoder begins no message that is longer than its 24-bit limit.
        let bytes = bytes as u32;
        let permit = budget.clone().acquire_many_owned(bytes);
        let permit = unless_gone(
            &self.link,
            &mut self.stop,
            &self.service.options.limits,
            permit,
        );
        Ok(Room {
            // The semaphore is never closed.
            _permit: permit.await?.map_err(|_| End::Stopped)?,
            _counted: self.service.stats.request_bytes.hold(bytes.into()),
        })
    }

    async fn frame(&mut self, frame: Frame, room: Room) -> Result<(), End> {
        let Header {
            stream_id,
            kind,
            flags,
            ..
        } = frame.header;
        let refusal = match kind {
            Kind::REQUEST | Kind::DATA if stream_id % 2 == 0 => Status::invalid_argument(
                format_args!("stream id {stream_id}, expected an odd one from a client"),
            ),
            Kind::REQUEST if stream_id <= self.last_stream => {
                Status::invalid_argument(format_args!(
                    "stream id {stream_id}, expected more than {}",
                    self.last_stream
                ))
            }
            Kind::REQUEST => {
                self.last_stream = stream_id;
                if flags & FLAG_REMOTE_OPEN == 0 {
                    let service = self.service.clone();
                    let received = Received {
                        stream_id,
                        message: frame.message,
                        room,
                        large: self.large.clone(),
                    };
                    let answer = async move { service.answer(received).await };
                    return self.start(answer).await;
                }
                Status::unimplemented("no method here takes a stream of messages")
            }
            Kind::DATA => {
                Status::invalid_argument(format_args!("stream {stream_id} takes no data"))
            }
            _ => {
                // As ttrpc demands, for what it may define one day.
                self.service.stats.ignored_frames.count();
                tracing::debug!(?kind, "a frame of an unknown kind is ignored");
                return Ok(());
            }
        };
        drop(frame);
        self.refuse(stream_id, refusal, Some(room)).await
    }

    async fn too_long(&mut self, header: Header) -> Result<(), End> {
        let limit = self.service.options.limits.message_bytes;
        self.service.stats.oversized_messages.count();
        if header.kind == Kind::REQUEST {
            self.last_stream = self.last_stream.max(header.stream_id);
        }
        let status = Status::resource_exhausted(format_args!(
            "a message of {} bytes, expected at most {limit}",
            header.length
        ));
        self.refuse(header.stream_id, status, None).await
    }

    async fn refuse(
        &mut self,
        stream_id: u32,
        status: Status,
        room: Option<Room>,
    ) -> Result<(), End> {
        let answer = self.service.refuse(stream_id, status);
        self.start(async move {
            drop(room);
            answer
        })
        .await
    }

    /// Starts a request as soon as there are few enough, and delivers its answer.
    async fn start(
        &mut self,
        answer: impl Future<Output = Answer> + Send + 'static,
    ) -> Result<(), End> {
        let limits = self.service.options.limits;
        while self.requests.try_join_next().is_some() {}
        while self.requests.len() >= limits.requests_per_connection.max(1) {
            let ended = self.requests.join_next();
            unless_gone(&self.link, &mut self.stop, &limits, ended).await?;
        }
        let (link, stats) = (self.link.clone(), self.service.stats.clone());
        self.requests.spawn(async move {
            let _counted = stats.requests.hold(1);
            let answer = answer.await;
            let _turn = link.turn.lock().await;
            let delivered = link.stream.write_all(&answer.frame);
            match timeout(limits.transfer, delivered).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::debug!(%error, "an answer could not be delivered"),
                Err(_) => {
                    stats.stalled_connections.count();
                    tracing::debug!("an answer is not fetched");
                }
            }
            // Part of it may be on its way, so nothing can follow.
            link.stream.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    /// Lets requests end that a client may still wait for.
    async fn finish(mut self, mut end: End, limits: &Limits) {
        let all = async { while self.requests.join_next().await.is_some() {} };
        let mut all = pin!(all);
        if end == End::Lost {
            return;
        }
        if end == End::Closed {
            tokio::select! {
                _ = timeout(limits.half_closed, &mut all) => return,
                _ = self.stop.changed() => end = End::Stopped,
            }
        }
        let _ = timeout(limits.drain, all).await;
        if end == End::Stopped {
            // The machine may end with this server: the peer shall have its answers first.
            // (It is not told of the end before, because then it could not be seen to have
            // closed its side.)
            let _ = timeout(limits.drain, self.link.stream.hung_up()).await;
        }
    }
}

/// Waits for `event`, but only for a while if the peer sends no more, and not if the server
/// ends.
async fn unless_gone<T>(
    link: &Link,
    stop: &mut Stop,
    limits: &Limits,
    event: impl Future<Output = T>,
) -> Result<T, End> {
    let gone = async {
        link.stream.hung_up().await;
        sleep(limits.half_closed).await;
    };
    tokio::select! {
        value = event => Ok(value),
        () = gone => Err(End::Lost),
        _ = stop.changed() => Err(End::Stopped),
    }
}
