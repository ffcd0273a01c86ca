//! The diagnostics server, and what it asks of the rest.

use crate::requests::ControlRequest;
use crate::requests::Refusal;
use crate::requests::StartOptions;
use crate::state::Paravisor;
use crate::state::RunningWorker;
use diag_proto::diag::StartRequest;
use diag_server::Code;
use diag_server::Exposure;
use diag_server::Handler;
use diag_server::InspectCall;
use diag_server::Limits;
use diag_server::Listener;
use diag_server::Listeners;
use diag_server::Options;
use diag_server::Status;
use diag_server::UpdateCall;
use diag_server::Visibility;
use inspect::Query;
use inspect::Sensitivity;
use mesh::CancelContext;
use mesh::RpcError;
use mesh::Sender;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use underhill_core::Request;

/// How long an inspection takes at most if its client sets no deadline, and how long a
/// worker may take to tell its state.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The most variables that a client may give to a worker.
const VARIABLES_MAX: usize = 64;

/// Answers for the paravisor.
pub(crate) struct Diagnostics {
    paravisor: Arc<Paravisor>,
    control: Sender<ControlRequest>,
}

impl Diagnostics {
    /// Answers out of `paravisor`, and lets `control` act.
    pub(crate) fn new(paravisor: Arc<Paravisor>, control: Sender<ControlRequest>) -> Arc<Self> {
        Arc::new(Self { paravisor, control })
    }

    async fn ask<I: Send>(
        &self,
        make: impl FnOnce(mesh::Rpc<I, Result<(), Refusal>>) -> ControlRequest + Send,
        input: I,
    ) -> Result<(), Status> {
        match self.control.call(make, input).await {
            Ok(outcome) => outcome.map_err(status),
            Err(error) => Err(Status::unavailable(format_args!(
                "the paravisor is ending: {error}"
            ))),
        }
    }

    fn worker(&self) -> Result<RunningWorker, Status> {
        let worker = self.paravisor.state().worker.clone();
        worker
            .ok_or_else(|| Status::failed_precondition("there is no VM worker that could be asked"))
    }

    /// Calls the worker, which answers by itself.
    async fn call_worker<T>(
        &self,
        make: impl FnOnce(mesh::Rpc<(), T>) -> Request + Send,
    ) -> Result<T, Status>
    where
        T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        let worker = self.worker()?;
        let context = CancelContext::new().with_timeout(ANSWER_DEADLINE);
        let answer = worker.requests.call_within(&context, make, ());
        answer.await.map_err(|error| {
            let code = match error {
                RpcError::Cancelled(_) => Code::DeadlineExceeded,
                _ => Code::Unavailable,
            };
            Status::new(code, format_args!("VM worker: {error}"))
        })
    }

    /// Calls the worker, which may refuse.
    async fn ask_worker<T>(
        &self,
        make: impl FnOnce(mesh::Rpc<(), Result<T, String>>) -> Request + Send,
    ) -> Result<T, Status>
    where
        T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        self.call_worker(make)
            .await?
            .map_err(Status::failed_precondition)
    }

    fn deadline(deadline: Option<std::time::Instant>) -> impl Future<Output = ()> + Send {
        let end = deadline.map_or_else(|| Instant::now() + ANSWER_DEADLINE, Instant::from_std);
        tokio::time::sleep_until(end)
    }
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::State(text) => Status::failed_precondition(text),
        Refusal::NotFound(text) => Status::not_found(text),
        Refusal::Failed(text) => Status::internal(text),
    }
}

impl Handler for Diagnostics {
    async fn inspect(&self, call: InspectCall) -> Result<diag_proto::inspect::Node, Status> {
        let max = match call.visibility {
            Visibility::Everything => Sensitivity::Sensitive,
            Visibility::Safe => Sensitivity::Safe,
        };
        let query = Query::new(call.path)
            .depth(u32::try_from(call.depth).unwrap_or(u32::MAX))
            .max_sensitivity(max);
        let node = query
            .answer_within(self.paravisor.as_ref(), Self::deadline(call.deadline))
            .await;
        Ok(node.into())
    }

    async fn update(&self, call: UpdateCall) -> Result<diag_proto::inspect::Value, Status> {
        let answer = inspect::update(
            &call.path,
            &call.value,
            Self::deadline(call.deadline),
            self.paravisor.as_ref(),
        );
        match answer.await {
            Ok(value) => Ok(value.into()),
            Err(error) => Err(not_updated(&call.path, &error)),
        }
    }

    async fn start(&self, request: StartRequest) -> Result<(), Status> {
        self.ask(ControlRequest::Start, start_options(request)?)
            .await
    }

    async fn restart(&self) -> Result<(), Status> {
        self.ask(ControlRequest::Restart, ()).await
    }

    async fn pause(&self) -> Result<(), Status> {
        self.ask_worker(Request::Pause).await
    }

    async fn resume(&self) -> Result<(), Status> {
        self.ask_worker(Request::Resume).await
    }

    async fn crash(&self, pid: i32) -> Result<(), Status> {
        self.ask(ControlRequest::Crash, pid).await
    }

    async fn dump_saved_state(&self) -> Result<Vec<u8>, Status> {
        let saved = self.ask_worker(Request::Save).await?;
        Ok(saved.0)
    }

    async fn online_cpu(&self, cpu: u32) -> Result<Option<String>, Status> {
        let worker = self.worker()?;
        // It takes as long as Linux needs. Who asks has a deadline, and what was begun goes on
        // without anybody who waits.
        let answer = worker.requests.call(Request::Online, cpu).await;
        match answer {
            Ok(outcome) => outcome.map_err(Status::failed_precondition),
            Err(error) => Err(Status::unavailable(format_args!("VM worker: {error}"))),
        }
    }

    async fn power_off(&self) -> Result<(), Status> {
        self.control
            .call(ControlRequest::PowerOff, ())
            .await
            .map_err(|error| Status::unavailable(format_args!("the paravisor is ending: {error}")))
    }
}

/// Why the value at `path` was not changed.
fn not_updated(path: &str, error: &inspect::Error) -> Status {
    use inspect::Error;
    let code = match error {
        Error::NotFound | Error::NotADirectory => Code::NotFound,
        Error::Immutable | Error::Refused(_) => Code::InvalidArgument,
        Error::Unresolved => Code::DeadlineExceeded,
        Error::Unreachable(_) => Code::Unavailable,
        Error::Internal | Error::Truncated => Code::Internal,
    };
    Status::new(code, format_args!("{path}: {error}"))
}

/// A worker takes variables of ours only: others could change how the program is run.
fn start_options(request: StartRequest) -> Result<StartOptions, Status> {
    if let Some(argument) = request.args.first() {
        return Err(Status::invalid_argument(format_args!(
            "argument {argument:?}: the VM worker takes no arguments"
        )));
    }
    if request.env.len() > VARIABLES_MAX {
        return Err(Status::invalid_argument(format_args!(
            "{} variables, expected at most {VARIABLES_MAX}",
            request.env.len()
        )));
    }
    let mut environment = Vec::new();
    for pair in request.env {
        let value = pair.value.unwrap_or_default();
        let is_ours = pair.name.starts_with("OPENHCL_") && !pair.name.contains(['=', '\0']);
        if !is_ours || value.contains('\0') {
            return Err(Status::invalid_argument(format_args!(
                "variable {:?}, expected OPENHCL_… without NUL",
                pair.name
            )));
        }
        environment.push((pair.name, value));
    }
    Ok(StartOptions { environment })
}

/// Serves until `shutdown` resolves. `isolated`: the host is not trusted.
pub(crate) fn serve(
    handler: Arc<Diagnostics>,
    isolated: bool,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<tokio::task::JoinHandle<()>> {
    let listeners = Listeners {
        control: Listener::vsock(diag_proto::PORT_CONTROL)?,
        data: Listener::vsock(diag_proto::PORT_DATA)?,
    };
    let options = options(&handler.paravisor, isolated);
    let stats = handler.paravisor.diag.clone();
    Ok(tokio::spawn(async move {
        if let Err(error) = diag_server::serve(listeners, handler, options, stats, shutdown).await {
            tracing::error!("diagnostics have ended: {}", kernel_log::chain(&error));
        }
    }))
}

fn options(paravisor: &Paravisor, isolated: bool) -> Options {
    let diag = &paravisor.config.diag;
    let count = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    Options {
        limits: Limits {
            control_connections: count(*diag.max_connections),
            data_connections: count(*diag.max_data_connections),
            requests_per_connection: count(*diag.max_requests),
            transfer: *diag.transfer_deadline,
            ..Limits::default()
        },
        exposure: if isolated {
            Exposure::SafeInspect
        } else {
            Exposure::Everything
        },
        ..Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diag_proto::diag::EnvPair;

    fn request(args: &[&str], env: &[(&str, &str)]) -> StartRequest {
        StartRequest {
            args: args.iter().map(|arg| arg.to_string()).collect(),
            env: env
                .iter()
                .map(|(name, value)| EnvPair {
                    name: name.to_string(),
                    value: Some(value.to_string()),
                })
                .collect(),
        }
    }

    #[test]
    fn a_late_answer_is_told_apart_from_a_wrong_path() {
        for (error, code) in [
            (inspect::Error::Unresolved, Code::DeadlineExceeded),
            (inspect::Error::NotADirectory, Code::NotFound),
            (
                inspect::Error::Unreachable("gone".into()),
                Code::Unavailable,
            ),
        ] {
            assert_eq!(not_updated("a/b", &error).code, code, "{error}");
        }
    }

    #[test]
    fn a_worker_takes_variables_of_ours_only() {
        let options = start_options(request(&[], &[("OPENHCL_A", "1")])).unwrap();
        assert_eq!(
            options.environment,
            [("OPENHCL_A".to_owned(), "1".to_owned())]
        );
        for bad in [
            request(&["--x"], &[]),
            request(&[], &[("LD_PRELOAD", "x")]),
            request(&[], &[("OPENHCL_A=B", "x")]),
            request(&[], &[("OPENHCL_A", "a\0b")]),
            request(&[], &vec![("OPENHCL_A", "1"); 65]),
        ] {
            assert_eq!(start_options(bad).unwrap_err().code, Code::InvalidArgument);
        }
    }
}
