//! Programs in VTL2.

use crate::Client;
use crate::DataStream;
use crate::Error;
use crate::client::decode;
use crate::client::env_pairs;
use crate::connection::Control;
use crate::connection::Method;
use diag_proto::diag;
use std::time::Duration;

/// A program to be started in VTL2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The program.
    pub command: String,
    /// Its arguments, without the name.
    pub args: Vec<String>,
    /// With a terminal: its input and output are one stream, which is both
    /// [`Process::stdin`] and [`Process::stdout`].
    pub tty: bool,
    /// Whether it gets an input; without one it reads the end at once.
    pub stdin: bool,
    /// Whether its output is wanted.
    pub stdout: bool,
    /// Whether its standard error is wanted.
    pub stderr: bool,
    /// Standard error goes where standard output goes.
    pub combine_stderr: bool,
    /// Changes to the environment: a value, or `None` to remove the variable.
    pub env: Vec<(String, Option<String>)>,
    /// Start from an empty environment.
    pub clear_env: bool,
}

/// A program that runs in VTL2. Dropping it closes its streams and forgets it.
#[derive(Debug)]
pub struct Process {
    /// Its process id in VTL2.
    pub pid: i32,
    /// Its input. Dropping it (or [`DataStream::finish`]) is the end of the input.
    pub stdin: Option<DataStream>,
    /// Its output.
    pub stdout: Option<DataStream>,
    /// Its standard error.
    pub stderr: Option<DataStream>,
    control: Control,
}

impl Client {
    /// Starts a program.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the program cannot be started.
    pub fn exec(&self, exec: &Exec) -> Result<Process, Error> {
        // A connection of its own, so that waiting for the end blocks no other call.
        let mut control = Control::open(self.address(), self.timeout())?;
        let open = |wanted: bool| match wanted {
            true => self.open_data().map(Some),
            false => Ok(None),
        };
        let stdin = open(exec.stdin || exec.tty)?;
        let stdout = open(exec.stdout && !exec.tty)?;
        let stderr = open(exec.stderr && !exec.tty && !exec.combine_stderr)?;
        let id = |connection: &Option<(u64, _)>| connection.as_ref().map_or(0, |(id, _)| *id);
        let request = diag::ExecRequest {
            command: exec.command.clone(),
            args: exec.args.clone(),
            tty: exec.tty,
            stdin: id(&stdin),
            stdout: id(&stdout),
            stderr: id(&stderr),
            combine_stderr: exec.combine_stderr,
            env: env_pairs(&exec.env),
            clear_env: exec.clear_env,
            raw_socket_io: false,
        };
        let method = Method {
            service: diag::UNDERHILL_DIAG,
            name: "Exec",
        };
        let timeout = Some(self.timeout());
        let response: diag::ExecResponse =
            control.call(method, &request, timeout, Duration::ZERO, decode)?;
        let stream = |connection: Option<(u64, _)>| connection.map(|(_, s)| DataStream::new(s));
        let stdin = stream(stdin);
        let stdout = match (&stdin, exec.tty) {
            (Some(terminal), true) => Some(terminal.try_clone().map_err(|source| Error::Io {
                what: "Exec".into(),
                source,
            })?),
            _ => stream(stdout),
        };
        Ok(Process {
            pid: response.pid,
            stdin,
            stdout,
            stderr: stream(stderr),
            control,
        })
    }
}

impl Process {
    /// Waits for its end; without a timeout for ever. The result is its exit code, or 128
    /// plus the signal that ended it.
    ///
    /// Take the streams out and read them first, or in other threads: a process whose
    /// output nobody reads does not end.
    ///
    /// # Errors
    ///
    /// As for all calls.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<i32, Error> {
        let method = Method {
            service: diag::UNDERHILL_DIAG,
            name: "Wait",
        };
        let request = diag::WaitRequest { pid: self.pid };
        let response: diag::WaitResponse =
            self.control
                .call(method, &request, timeout, Duration::ZERO, decode)?;
        Ok(response.exit_code)
    }
}
