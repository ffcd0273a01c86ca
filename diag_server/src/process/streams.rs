//! Input and output of processes.

use crate::Status;
use crate::data::DataConnection;
use crate::data::DataConnections;
use crate::sys;
use crate::tasks::Tasks;
use byte_stream::Stream;
use diag_proto::diag::ExecRequest;
use nix::pty::Winsize;
use nix::sys::termios::LocalFlags;
use nix::sys::termios::SpecialCharacterIndices;
use nix::sys::termios::tcgetattr;
use std::future::pending;
use std::io;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// Bytes that are carried at once.
const CHUNK: usize = 4 << 10;

/// Size of a terminal of which the client has said nothing; there is no request for it.
const TERMINAL_SIZE: Winsize = Winsize {
    ws_row: 24,
    ws_col: 80,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// The connections that a request names.
pub(super) struct Connections {
    stdin: Option<DataConnection>,
    stdout: Option<DataConnection>,
    stderr: Option<DataConnection>,
}

/// Takes the connections that `request` names.
pub(super) fn take(request: &ExecRequest, data: &DataConnections) -> Result<Connections, Status> {
    // All are taken before any is missed: the client has given them away.
    let stdin = data.take_optional(request.stdin);
    let stdout = data.take_optional(request.stdout);
    let stderr = data.take_optional(request.stderr);
    Ok(Connections {
        stdin: stdin?,
        stdout: stdout?,
        stderr: stderr?,
    })
}

/// What is to be carried between a process and its connections.
#[derive(Default)]
pub(super) struct Plan {
    input: Option<(DataConnection, Stream)>,
    outputs: Vec<(Stream, DataConnection)>,
    terminal: Option<Terminal>,
    /// Connections that the process has itself.
    raw: Vec<DataConnection>,
}

struct Terminal {
    master: Stream,
    input: Option<Arc<DataConnection>>,
    output: Option<Arc<DataConnection>>,
}

/// What is carried for a process that runs.
pub(super) struct Running {
    input: Option<AbortHandle>,
    raw: Vec<DataConnection>,
    tasks: Arc<Tasks>,
}

impl Plan {
    /// Gives `command` its standard streams.
    pub(super) fn new(
        request: &ExecRequest,
        connections: Connections,
        command: &mut Command,
    ) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if request.tty {
            Self::terminal(connections, command)
        } else if request.raw_socket_io {
            Self::raw(request, connections, command)
        } else {
            Self::pipes(request, connections, command)
        }
    }

    fn pipes(
        request: &ExecRequest,
        connections: Connections,
        command: &mut Command,
    ) -> io::Result<Self> {
        let mut plan = Self::default();
        if let Some(connection) = connections.stdin {
            let (theirs, ours) = io::pipe()?;
            command.stdin(theirs);
            plan.input = Some((connection, Stream::unblocked(ours)?));
        }
        if let Some(connection) = connections.stdout {
            let (ours, theirs) = io::pipe()?;
            if request.combine_stderr {
                command.stderr(theirs.try_clone()?);
            }
            command.stdout(theirs);
            plan.outputs.push((Stream::unblocked(ours)?, connection));
        }
        if let Some(connection) = connections.stderr.filter(|_| !request.combine_stderr) {
            let (ours, theirs) = io::pipe()?;
            command.stderr(theirs);
            plan.outputs.push((Stream::unblocked(ours)?, connection));
        }
        Ok(plan)
    }

    /// The process gets the connections themselves: it goes on if this server does not.
    /// Its writes are its own, so that it has to keep them below 32 KiB itself (see
    /// `MAX_WRITE`).
    fn raw(
        request: &ExecRequest,
        connections: Connections,
        command: &mut Command,
    ) -> io::Result<Self> {
        let mut plan = Self::default();
        if let Some(connection) = connections.stdin {
            command.stdin(connection.blocking_clone()?);
            plan.raw.push(connection);
        }
        if let Some(connection) = connections.stdout {
            if request.combine_stderr {
                command.stderr(connection.blocking_clone()?);
            }
            command.stdout(connection.blocking_clone()?);
            plan.raw.push(connection);
        }
        if let Some(connection) = connections.stderr.filter(|_| !request.combine_stderr) {
            command.stderr(connection.blocking_clone()?);
            plan.raw.push(connection);
        }
        Ok(plan)
    }

    fn terminal(connections: Connections, command: &mut Command) -> io::Result<Self> {
        let (ours, theirs) = sys::terminal(&TERMINAL_SIZE)?;
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        let input = connections.stdin.map(Arc::new);
        let output = connections.stdout.map(Arc::new);
        Ok(Self {
            terminal: Some(Terminal {
                master: Stream::new(ours)?,
                // Without one of its own, the output goes where the input comes from.
                output: output.or_else(|| input.clone()),
                input,
            }),
            ..Self::default()
        })
    }

    /// Starts carrying.
    pub(super) fn start(self, tasks: &Arc<Tasks>) -> Running {
        for (pipe, connection) in self.outputs {
            tasks.spawn(async move {
                carry_output(&pipe, &connection).await;
                // If the client has gone, the process is told by its next write.
                drop(pipe);
                connection.finish().await;
            });
        }
        if let Some(terminal) = self.terminal {
            tasks.spawn(terminal.carry());
        }
        Running {
            input: self.input.map(|(connection, pipe)| {
                tasks.spawn(async move {
                    let _ = copy(&connection, &pipe).await;
                })
            }),
            raw: self.raw,
            tasks: tasks.clone(),
        }
    }
}

impl Running {
    /// The process has ended: nobody reads its input, and what it wrote to a connection
    /// itself is all. Outputs through pipes go on to their ends.
    pub(super) fn ended(self) {
        if let Some(input) = self.input {
            input.abort();
        }
        for connection in self.raw {
            self.tasks.spawn(connection.finish());
        }
    }
}

impl Terminal {
    /// Carries bytes both ways until the terminal's other side is closed by all, or the
    /// client has hung up; then this side is closed, which ends the session.
    async fn carry(self) {
        let Self {
            master,
            input,
            output,
        } = self;
        let one_connection = match (&input, &output) {
            (Some(input), Some(output)) => Arc::ptr_eq(input, output),
            _ => false,
        };
        let inward = async {
            if let Some(connection) = &input
                && copy(connection, &master).await.is_ok()
                && !one_connection
            {
                end_input(&master).await;
            }
            if !one_connection {
                pending::<()>().await;
            }
        };
        let outward = async {
            match &output {
                // Its end is that of the input, after which nothing is left unread.
                Some(connection) if one_connection => drop(copy(&master, connection).await),
                Some(connection) => carry_output(&master, connection).await,
                None => discard(&master).await,
            }
        };
        tokio::select! {
            () = outward => {}
            () = inward => {}
        }
        drop(master);
        drop(input);
        if let Some(connection) = output.and_then(Arc::into_inner) {
            connection.finish().await;
        }
    }
}

/// Carries all that `from` gives, or until the client has hung up.
async fn carry_output(from: &Stream, to: &Stream) {
    tokio::select! {
        // An error is the end like any other: on a terminal, EIO is the only end there is.
        _ = copy(from, to) => {}
        () = to.hung_up() => {}
    }
}

async fn copy(from: &Stream, to: &Stream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count]).await?,
        }
    }
}

async fn discard(from: &Stream) {
    let mut buffer = [0; 512];
    while !matches!(from.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

/// Types the end-of-file character, if the program on the terminal reads lines. (Another
/// program has taken the meaning from it.)
async fn end_input(master: &Stream) {
    if let Ok(settings) = tcgetattr(master)
        && settings.local_flags.contains(LocalFlags::ICANON)
    {
        let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
        let _ = master.write_all(&[end]).await;
    }
}
