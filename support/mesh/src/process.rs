//! Processes: starting another persona of this program, and learning how it ended.
//!
//! The parameters are one message. It lies in the queue of a socket before the child
//! exists, and the socket is the child's standard input: no descriptor can leak into
//! another child, no environment variable tells where it is, and the child never waits
//! for it. After that the two talk through the channel ends in the parameters.

mod monitor;

use crate::codec;
use crate::codec::DecodeError;
use crate::codec::EncodeError;
use crate::connection::Connections;
use crate::link::Link;
use crate::link::Outgoing;
use crate::message::Message;
use crate::socket;
use crate::socket::ReceiveError;
use crate::wire;
use crate::wire::WireError;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::watch;

/// Most lines of a child's standard error that its [`Death`] tells.
pub const LAST_LINES: usize = 32;
/// Most bytes of a line of a child's standard error; longer ones are divided.
pub const LINE_MAX: usize = 1024;

/// What to start.
pub struct ProcessConfig {
    name: OsString,
    executable: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    sink: Sink,
}

/// Takes the lines of a child's standard error.
type Sink = Box<dyn FnMut(&str) + Send>;

/// A child. Dropped, the process lives on, and is still reaped when it ends.
pub struct Child {
    pid: u32,
    process: Arc<OwnedFd>,
    death: watch::Receiver<Option<Death>>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// What ended it.
    pub cause: Cause,
    /// The end of its standard error, at most [`LAST_LINES`] lines.
    pub last_lines: Vec<String>,
}

/// What ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It has exited with this code.
    Code(i32),
    /// This signal has killed it, and the kernel has written a core file or not.
    Signal(i32, bool),
    /// Nobody knows: another part of this process took the status, or the runtime ended.
    Unknown,
}

/// Why no process was started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The parameters cannot be sent.
    #[error("parameters of {name}: {source}")]
    Parameters {
        /// The persona.
        name: String,
        /// What is wrong with them.
        source: EncodeError,
    },
    /// No socket, no memory, no process.
    #[error("{name}: {step}: {source}")]
    Io {
        /// The persona.
        name: String,
        /// What was tried.
        step: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
}

/// Why a process has no parameters.
#[derive(Debug, Error)]
pub enum InvitationError {
    /// It was started in another way.
    #[error("standard input is not the socket of a parent, expected a start by mesh")]
    NotInvited,
    /// The parent is not this program, or of another version.
    #[error("parameters: {0}")]
    Wire(#[from] WireError),
    /// The socket failed.
    #[error("socket of the parent: {0}")]
    Io(#[from] io::Error),
}

impl ProcessConfig {
    /// Starts this program again under the name `persona`. Environment, working directory
    /// and standard output are inherited; the lines of standard error go to the log.
    pub fn new(persona: impl AsRef<OsStr>) -> Self {
        let name = persona.as_ref().to_os_string();
        let label = name.to_string_lossy().into_owned();
        Self {
            name,
            executable: "/proc/self/exe".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            sink: Box::new(move |line| tracing::info!(process = label, "{line}")),
        }
    }

    /// Starts another program.
    #[must_use]
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = path.into();
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_os_string());
        self
    }

    /// Adds an environment variable, or replaces an inherited one.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let variable = (name.as_ref().to_os_string(), value.as_ref().to_os_string());
        self.environment.push(variable);
        self
    }

    /// Gives the lines of standard error to `sink`, without their ends.
    #[must_use]
    pub fn stderr_sink(mut self, sink: impl FnMut(&str) + Send + 'static) -> Self {
        self.sink = Box::new(sink);
        self
    }
}

/// Starts a process with its parameters. Must run in a tokio runtime, which watches the
/// process.
///
/// # Errors
/// No process runs then.
pub fn launch<P: Message>(config: ProcessConfig, parameters: P) -> Result<Child, LaunchError> {
    let name = || config.name.to_string_lossy().into_owned();
    let failed = |step| {
        let name = name();
        move |source: io::Error| LaunchError::Io { name, step, source }
    };
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|error| failed("watching it")(io::Error::other(error)))?;
    let (own, theirs) = socket::pair().map_err(failed("socket for its parameters"))?;
    let link = Link::new(own);
    let outgoing = codec::encode_for_packet(&parameters, Some(&link))
        .and_then(|encoded| Ok(Outgoing::new(encoded)?))
        .map_err(|source| LaunchError::Parameters {
            name: name(),
            source,
        })?;
    // Channel ends have left; what stays of them must not keep the channels open.
    drop(parameters);
    link.try_send(outgoing)
        .map_err(|(error, _)| failed("sending its parameters")(error))?;
    drop(link);
    let mut child = Command::new(&config.executable)
        .arg0(&config.name)
        .args(&config.arguments)
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("starting it"))?;
    let pid = child.id();
    // It is our child and nobody has waited for it: the number is still its own.
    let process = match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK) {
        Ok(process) => Arc::new(process),
        Err(error) => {
            // Nobody would watch it. Both calls succeed for a child that nobody waits for.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("descriptor of the process")(error.into()));
        }
    };
    let (sender, death) = watch::channel(None);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let monitor = monitor::Monitor::new(process.clone(), stderr, config.sink);
    runtime.spawn(async move {
        let death = monitor.run().await;
        sender.send_replace(Some(death));
    });
    Ok(Child {
        pid,
        process,
        death,
    })
}

/// The parameters that this process was started with. Only the first call gets them;
/// standard input is `/dev/null` then.
///
/// # Errors
/// The process was not started by [`launch`], or with a `P` of another program.
pub fn invitation<P: Message>() -> Result<P, InvitationError> {
    let stdin = io::stdin();
    if !socket::is_port(stdin.as_fd()) {
        return Err(InvitationError::NotInvited);
    }
    let invitation = stdin.as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
    let received = socket::receive(invitation.as_fd(), wire::MESSAGE_MAX, |received| {
        if received.kind != wire::Kind::Message {
            return Err(DecodeError::Wire(WireError::Kind {
                kind: received.kind as u8,
            }));
        }
        let mut connections = Connections::default();
        codec::decode(&received.body, received.descriptors, &mut connections)
    });
    match received {
        Ok(Ok(parameters)) => Ok(parameters),
        Ok(Err(DecodeError::Wire(error))) | Err(ReceiveError::Wire(error)) => Err(error.into()),
        Ok(Err(DecodeError::Busy)) | Err(ReceiveError::Closed) => Err(InvitationError::NotInvited),
        Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(InvitationError::NotInvited)
        }
        Err(ReceiveError::Io(error)) => Err(error.into()),
    }
}

impl Child {
    /// Its process id. It is reused some time after its end: use [`kill`](Self::kill) for
    /// signals.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal by its number.
    ///
    /// # Errors
    /// There is no such signal, or the process has ended.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(rustix::process::pidfd_send_signal(&self.process, signal)?)
    }

    /// Waits for its end. It can be asked as often as one likes, and keeps the answer.
    pub fn exited(&self) -> impl Future<Output = Death> + Send + use<> {
        let mut death = self.death.clone();
        async move {
            match death.wait_for(Option::is_some).await {
                Ok(death) => death.clone(),
                Err(_) => None,
            }
            .unwrap_or(Death {
                cause: Cause::Unknown,
                last_lines: Vec::new(),
            })
        }
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ProcessConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessConfig")
            .field("name", &self.name)
            .field("executable", &self.executable)
            .field("arguments", &self.arguments)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal, dumped) => {
                write!(f, "signal {signal}")?;
                f.write_str(if *dumped { ", core dumped" } else { "" })
            }
            Self::Unknown => f.write_str("unknown cause"),
        }
    }
}
