//! `Exec` and `Wait`: processes that clients start.

mod streams;

use crate::Limits;
use crate::Status;
use crate::data::DataConnections;
use crate::stats::Held;
use crate::stats::ServerStats;
use crate::status::Code;
use crate::sys;
use crate::tasks::Tasks;
use byte_stream::Stream;
use diag_proto::diag::EnvPair;
use diag_proto::diag::ExecRequest;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use streams::Plan;
use tokio::sync::watch;

/// Exit code when the process was waited for by somebody else, so that nobody knows.
const UNKNOWN_EXIT_CODE: i32 = 255;

/// What is added to the signal that ended a process, as a shell does.
const SIGNALED: i32 = 128;

/// The processes of clients.
pub(crate) struct Processes {
    table: Mutex<Table>,
    most: usize,
    exit_codes: usize,
    data: Arc<DataConnections>,
    stats: Arc<ServerStats>,
    tasks: Arc<Tasks>,
}

#[derive(Default)]
struct Table {
    /// By id. `None` inside: it runs.
    processes: BTreeMap<i32, watch::Receiver<Option<i32>>>,
    /// Those that have ended, in this order.
    ended: VecDeque<i32>,
}

impl Processes {
    pub(crate) fn new(
        limits: &Limits,
        data: Arc<DataConnections>,
        stats: Arc<ServerStats>,
        tasks: Arc<Tasks>,
    ) -> Self {
        Self {
            table: Mutex::default(),
            most: limits.processes,
            exit_codes: limits.exit_codes,
            data,
            stats,
            tasks,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process and returns its id.
    ///
    /// The connections that the request names are used up whether or not it succeeds.
    pub(crate) fn exec(self: &Arc<Self>, request: &ExecRequest) -> Result<i32, Status> {
        let connections = streams::take(request, &self.data)?;
        let running = self.stats.processes.get();
        if running >= self.most as u64 {
            return Err(Status::resource_exhausted(format_args!(
                "{running} processes run, expected at most {}",
                self.most
            )));
        }
        let counted = self.stats.processes.hold(1);
        let mut command = command(request)?;
        let plan = Plan::new(request, connections, &mut command)
            .map_err(|error| Status::internal(format_args!("input and output: {error}")))?;
        sys::own_session(&mut command, request.tty);
        let child = command.spawn();
        // It holds the child's ends of pipes, which must end with the child.
        drop(command);
        let child = child.map_err(|error| start_error(&request.command, &error))?;
        self.watch(child, plan, counted)
    }

    /// Carries the bytes of a new child, and waits for its end.
    fn watch(self: &Arc<Self>, mut child: Child, plan: Plan, counted: Held) -> Result<i32, Status> {
        let pid = child.id() as i32;
        let ended = match sys::pidfd(&child)
            .map_err(io::Error::from)
            .and_then(Stream::new)
        {
            Ok(ended) => ended,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Status::internal(format_args!("process {pid}: {error}")));
            }
        };
        let (sender, receiver) = watch::channel(None);
        {
            let mut table = self.table();
            table.processes.insert(pid, receiver);
            // An earlier process with this id has nobody who could ask for it any more.
            table.ended.retain(|ended| *ended != pid);
        }
        let running = plan.start(&self.tasks);
        let this = self.clone();
        self.tasks.spawn(async move {
            let code = exit_code(&mut child, &ended).await;
            tracing::debug!(pid, code, "process ended");
            drop(counted);
            this.record_end(pid);
            sender.send_replace(Some(code));
            running.ended();
        });
        tracing::debug!(pid, "process started");
        Ok(pid)
    }

    fn record_end(&self, pid: i32) {
        let mut table = self.table();
        table.ended.retain(|ended| *ended != pid);
        table.ended.push_back(pid);
        if table.ended.len() > self.exit_codes
            && let Some(oldest) = table.ended.pop_front()
        {
            table.processes.remove(&oldest);
        }
    }

    /// Waits for the end of a process that `exec` has started. Its exit code is kept for a
    /// while, so it can be asked for after the end, and more than once.
    pub(crate) async fn wait(&self, pid: i32) -> Result<i32, Status> {
        let receiver = self.table().processes.get(&pid).cloned();
        let mut receiver = receiver
            .ok_or_else(|| Status::not_found(format_args!("no process {pid} was started here")))?;
        let code = receiver.wait_for(Option::is_some).await;
        code.ok()
            .and_then(|code| *code)
            .ok_or_else(|| Status::unavailable("the server ends"))
    }
}

/// The program, arguments and environment of a request.
fn command(request: &ExecRequest) -> Result<Command, Status> {
    let mut command = Command::new(&request.command);
    command.args(&request.args);
    if request.clear_env {
        command.env_clear();
    }
    for EnvPair { name, value } in &request.env {
        if name.is_empty() || name.contains('=') {
            let shown: String = name.chars().take(100).collect();
            return Err(Status::invalid_argument(format_args!(
                "variable {shown:?}: expected a name without `=`"
            )));
        }
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Ok(command)
}

fn start_error(program: &str, error: &io::Error) -> Status {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::PermissionDenied,
        // A NUL in a text.
        io::ErrorKind::InvalidInput => Code::InvalidArgument,
        io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidFilename => {
            Code::InvalidArgument
        }
        _ => Code::Internal,
    };
    let shown: String = program.chars().take(256).collect();
    Status::new(code, format_args!("{shown} cannot be started: {error}"))
}

/// Waits for the end of `child`, of no other.
async fn exit_code(child: &mut Child, ended: &Stream) -> i32 {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return code_of(status),
            Ok(None) => {}
            Err(_) => return UNKNOWN_EXIT_CODE,
        }
        if ended.wait_for_more().await.is_err() {
            return UNKNOWN_EXIT_CODE;
        }
    }
}

fn code_of(status: ExitStatus) -> i32 {
    let signaled = || status.signal().map(|signal| SIGNALED + signal);
    status.code().or_else(signaled).unwrap_or(UNKNOWN_EXIT_CODE)
}
