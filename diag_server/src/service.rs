//! Carries out calls.

use crate::Exposure;
use crate::Handler;
use crate::InspectCall;
use crate::Limits;
use crate::Options;
use crate::Status;
use crate::UpdateCall;
use crate::Visibility;
use crate::call::Call;
use crate::call::Timeout;
use crate::data::DataConnections;
use crate::files;
use crate::process::Processes;
use crate::safe::keep_safe;
use crate::stats::Held;
use crate::stats::ServerStats;
use crate::status::Code;
use crate::tasks::Tasks;
use diag_proto::diag;
use diag_proto::inspect;
use diag_proto::openhcl;
use diag_proto::ttrpc::frame::encode_failure;
use diag_proto::ttrpc::frame::encode_success;
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout_at;

/// What all connections share.
pub(crate) struct Service<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) options: Options,
    pub(crate) stats: Arc<ServerStats>,
    pub(crate) data: Arc<DataConnections>,
    pub(crate) tasks: Arc<Tasks>,
    /// A permit per byte of a message.
    pub(crate) request_bytes: Arc<Semaphore>,
    pub(crate) small_request_bytes: Arc<Semaphore>,
    large_answers: Arc<Semaphore>,
    processes: Arc<Processes>,
}

/// The memory of a message, given back when this is dropped.
pub(crate) struct Room {
    pub(crate) _permit: OwnedSemaphorePermit,
    pub(crate) _counted: Held,
}

/// The bytes of a response's frame.
pub(crate) struct Answer {
    pub(crate) frame: Vec<u8>,
    /// Held until the frame is delivered.
    _large: Large,
}

/// The permits for an answer that can be large: of its connection, of all connections. None
/// for other answers.
type Large = Vec<OwnedSemaphorePermit>;

/// The message of a response, and the permits for its size.
type Reply = Result<(Vec<u8>, Large), Status>;

/// A request on its way.
pub(crate) struct Received {
    pub(crate) stream_id: u32,
    /// Bytes of a `Request`.
    pub(crate) message: Vec<u8>,
    pub(crate) room: Room,
    /// Has one permit for each connection, so that a peer that does not read cannot hold
    /// all of those that there are.
    pub(crate) large: Arc<Semaphore>,
}

/// What a call needs besides its message.
struct Context {
    deadline: Option<Instant>,
    /// Held until the call is done.
    _room: Room,
    large: Arc<Semaphore>,
}

impl<H: Handler> Service<H> {
    pub(crate) fn new(handler: Arc<H>, options: Options, stats: Arc<ServerStats>) -> Self {
        let limits = &options.limits;
        let tasks = Arc::<Tasks>::default();
        let data = Arc::new(DataConnections::new(limits, stats.clone(), tasks.clone()));
        let processes = Processes::new(limits, data.clone(), stats.clone(), tasks.clone());
        let bytes = |limit: usize, least: usize| {
            let permits = limit.max(least).min(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(permits))
        };
        Self {
            request_bytes: bytes(limits.request_bytes, limits.message_bytes),
            small_request_bytes: bytes(limits.small_request_bytes, Limits::SMALL_MESSAGE),
            large_answers: Arc::new(Semaphore::new(limits.large_answers.max(1))),
            processes: Arc::new(processes),
            handler,
            options,
            stats,
            data,
            tasks,
        }
    }

    /// Answers a request.
    pub(crate) async fn answer(&self, received: Received) -> Answer {
        let Received {
            stream_id,
            message,
            room,
            large,
        } = received;
        let parsed = Call::parse(&message, self.options.exposure, &self.options.limits);
        drop(message);
        let reply = match parsed {
            Ok((call, timeout)) => {
                let context = Context {
                    deadline: None,
                    _room: room,
                    large,
                };
                self.carry_out_in_time(call, timeout, context).await
            }
            Err(status) => Err(status),
        };
        self.encode(stream_id, reply)
    }

    /// The answer to a request that cannot be carried out.
    pub(crate) fn refuse(&self, stream_id: u32, status: Status) -> Answer {
        self.encode(stream_id, Err(status))
    }

    fn encode(&self, stream_id: u32, reply: Reply) -> Answer {
        let limit = self.options.limits.message_bytes;
        let encoded = reply.and_then(|(payload, large)| {
            let frame = encode_success(stream_id, &payload, limit).map_err(too_long)?;
            Ok((frame, large))
        });
        let (frame, large) = match encoded {
            Ok(encoded) => {
                self.stats.succeeded.count();
                encoded
            }
            Err(status) => {
                self.stats.failed.count();
                tracing::debug!(stream_id, %status, "request failed");
                // Its texts are bounded, so it is short.
                (
                    encode_failure(stream_id, status.into()).unwrap_or_default(),
                    Vec::new(),
                )
            }
        };
        Answer {
            frame,
            _large: large,
        }
    }

    async fn carry_out_in_time(&self, call: Call, timeout: Timeout, mut context: Context) -> Reply {
        let Some(timeout) = timeout else {
            return self.carry_out(call, context).await;
        };
        let deadline = Instant::now().checked_add(timeout);
        context.deadline = deadline;
        // An inspection is to be answered with what there is.
        let grace = match call {
            Call::Inspect(_) => self.options.limits.inspect_grace,
            _ => std::time::Duration::ZERO,
        };
        let reply = self.carry_out(call, context);
        // A deadline beyond the clock's range is none.
        match deadline.and_then(|deadline| deadline.checked_add(grace)) {
            Some(end) => timeout_at(end, reply).await.unwrap_or_else(|_| {
                let message = format_args!("not done within {timeout:?}");
                Err(Status::new(Code::DeadlineExceeded, message))
            }),
            None => reply.await,
        }
    }

    async fn carry_out(&self, call: Call, context: Context) -> Reply {
        let handler = &self.handler;
        match call {
            Call::Ping => nothing(Ok(())),
            Call::Exec(request) => {
                let pid = self.processes.exec(&request)?;
                message(&diag::ExecResponse { pid })
            }
            Call::Wait(request) => {
                // It takes as long as it likes, and needs the message no more.
                drop(context);
                let exit_code = self.processes.wait(request.pid).await?;
                message(&diag::WaitResponse { exit_code })
            }
            Call::Kmsg(request) => {
                let path = &self.options.kernel_log;
                nothing(self.send_file(path, request.follow, request.conn))
            }
            Call::ReadFile(request) => {
                let path = Path::new(&request.file_path);
                nothing(self.send_file(path, request.follow, request.conn))
            }
            Call::Start(request) => nothing(handler.start(request).await),
            Call::Crash(request) => nothing(handler.crash(request.pid).await),
            Call::Restart => nothing(handler.restart().await),
            Call::Pause => nothing(handler.pause().await),
            Call::Resume => nothing(handler.resume().await),
            Call::OnlineCpu(request) => {
                let reason = handler.online_cpu(request.cpu).await?;
                message(&openhcl::OnlineCpuResponse { reason })
            }
            Call::PowerOff => nothing(handler.power_off().await),
            Call::DumpSavedState => {
                let large = self.large_answer(&context).await?;
                let data = handler.dump_saved_state().await?;
                let response = diag::DumpSavedStateResponse { data };
                self.large_message(&response, large)
            }
            Call::Inspect(request) => self.inspect(request, &context).await,
            Call::Update(request) => self.update(request, &context).await,
        }
    }

    /// Starts to send a file; the bytes follow the answer.
    fn send_file(&self, path: &Path, follow: bool, connection: u64) -> Result<(), Status> {
        let connection = self.data.take(connection)?;
        let source = files::open(path)?;
        let stats = self.stats.clone();
        self.tasks
            .spawn(files::send(source, follow, connection, stats));
        Ok(())
    }

    async fn inspect(&self, request: inspect::InspectRequest, context: &Context) -> Reply {
        self.check_length("path", &request.path)?;
        let large = self.large_answer(context).await?;
        let visibility = match self.options.exposure {
            Exposure::Everything => Visibility::Everything,
            Exposure::SafeInspect => Visibility::Safe,
        };
        let call = InspectCall {
            path: request.path,
            depth: match request.depth {
                u32::MAX => usize::MAX,
                depth => depth as usize,
            },
            deadline: context.deadline.map(Instant::into_std),
            visibility,
        };
        let mut result = self.handler.inspect(call).await?;
        if visibility == Visibility::Safe {
            keep_safe(&mut result);
        }
        let result = Some(result);
        self.large_message(&inspect::InspectResponse { result }, large)
    }

    async fn update(&self, request: inspect::UpdateRequest, context: &Context) -> Reply {
        if self.options.exposure == Exposure::SafeInspect {
            let message = "this VM is isolated: its host changes nothing";
            return Err(Status::new(Code::PermissionDenied, message));
        }
        self.check_length("path", &request.path)?;
        self.check_length("value", &request.value)?;
        let call = UpdateCall {
            path: request.path,
            value: request.value,
            deadline: context.deadline.map(Instant::into_std),
        };
        let new_value = Some(self.handler.update(call).await?);
        message(&inspect::UpdateResponse { new_value })
    }

    fn check_length(&self, what: &str, text: &str) -> Result<(), Status> {
        let (length, most) = (text.len(), self.options.limits.path_bytes);
        if length > most {
            return Err(Status::resource_exhausted(format_args!(
                "a {what} of {length} bytes, expected at most {most}"
            )));
        }
        Ok(())
    }

    async fn large_answer(&self, context: &Context) -> Result<Large, Status> {
        let mut permits = Vec::new();
        for semaphore in [&context.large, &self.large_answers] {
            let permit = semaphore.clone().acquire_owned().await;
            // They are never closed.
            permits.push(permit.map_err(|_| Status::unavailable("the server ends"))?);
        }
        Ok(permits)
    }

    /// A message that is not encoded if it is over the limit.
    fn large_message(&self, response: &impl Message, large: Large) -> Reply {
        let (length, limit) = (response.encoded_len(), self.options.limits.message_bytes);
        if length > limit {
            return Err(too_long(diag_proto::ttrpc::frame::TooLong {
                length,
                limit,
            }));
        }
        Ok((response.encode_to_vec(), large))
    }
}

fn too_long(error: diag_proto::ttrpc::frame::TooLong) -> Status {
    Status::resource_exhausted(format_args!("the answer is {error}"))
}

fn message(response: &impl Message) -> Reply {
    Ok((response.encode_to_vec(), Vec::new()))
}

fn nothing(done: Result<(), Status>) -> Reply {
    done.and_then(|()| message(&diag::Empty {}))
}
