//! Starts, waits for and ends processes.
#![expect(
    unsafe_code,
    reason = "a child is prepared between fork and exec, and real-time signals of an ended child are only in the raw status"
)]

use crate::console;
use crate::supervisor::Action;
use crate::supervisor::Child;
use crate::supervisor::Supervisor;
use boot_events::ParavisorExit;
use kernel_log::KernelLog;
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::signal::sigprocmask;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::process::ExitStatus;
use std::time::Duration;
use std::time::Instant;
use thiserror::Error;

/// The shell of images that are built for development.
const SHELL: &str = "/bin/sh";

/// Why PID 1 cannot do its work.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] Errno),
    /// A program cannot be started.
    #[error("{program} cannot be started")]
    Start {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
}

nix::ioctl_write_int_bad!(
    /// Makes a terminal the controlling terminal of the calling session.
    set_controlling_terminal,
    libc::TIOCSCTTY
);

/// Receives the signals that concern PID 1, as events instead of interruptions.
pub struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Begins to collect them. From here on a process that PID 1 starts must unblock
    /// signals for itself, which [`spawn`] sees to.
    pub fn collect() -> Result<Self, ProcessError> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            // Somebody asks for the end of the machine.
            Signal::SIGTERM,
            // Ctrl-Alt-Del, see `nix::sys::reboot::set_cad_enabled`.
            Signal::SIGINT,
        ] {
            set.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(ProcessError::Signals)?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(ProcessError::Signals)?;
        Ok(Self { descriptor })
    }

    /// Waits until a signal is there or `patience` is over; true if one of the signals
    /// asks for the end of the machine. Ended children are found by [`reap`].
    fn wait(&self, patience: Option<Duration>) -> Result<bool, ProcessError> {
        let timeout = match patience {
            None => PollTimeout::NONE,
            // Rounded up: waking up before the deadline would only mean another round.
            Some(patience) => {
                PollTimeout::try_from(patience.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut descriptors = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(ProcessError::Signals(error)),
        }
        let mut stop = false;
        while let Some(signal) = self
            .descriptor
            .read_signal()
            .map_err(ProcessError::Signals)?
        {
            stop |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        Ok(stop)
    }
}

/// Starts `command` with no signal blocked, and returns its process id.
pub fn spawn(mut command: Command) -> Result<Pid, ProcessError> {
    // SAFETY: the closure runs in the child between fork and exec; it only makes a system
    // call on a value on its stack, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|source| ProcessError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    Ok(pid(child.id()))
}

/// Starts a shell on the console, if the image has one.
pub fn spawn_shell(log: &KernelLog) {
    if !Path::new(SHELL).exists() {
        log.warning(&format!("{SHELL} is not in this image: no shell"));
        return;
    }
    match shell_command().map(spawn) {
        Ok(Ok(pid)) => log.info(&format!("shell started as process {pid}")),
        Ok(Err(error)) => log.error(&kernel_log::chain(&error)),
        Err(error) => log.error(&format!("no terminal for the shell: {error}")),
    }
}

fn shell_command() -> io::Result<Command> {
    // `/dev/console` itself can never be a controlling terminal, and without one the
    // shell has no job control and no Ctrl-C.
    let consoles = console::active(Path::new(console::TERMINALS))?;
    let terminal = consoles
        .last()
        .ok_or_else(|| io::Error::other("the kernel has no console"))?;
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev").join(terminal))?;
    let mut command = Command::new(SHELL);
    command
        .arg("-i")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    // SAFETY: as in `spawn`: two system calls, the second on descriptor 0, which is the
    // terminal because standard streams are set up before this closure runs.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            set_controlling_terminal(libc::STDIN_FILENO, 0)?;
            Ok(())
        });
    }
    Ok(command)
}

/// Watches over the paravisor until it ends, and reaps every other process that does.
pub fn supervise(
    signals: &Signals,
    paravisor: Pid,
    log: &KernelLog,
) -> Result<ParavisorExit, ProcessError> {
    let mut supervisor = Supervisor::new(paravisor.as_raw());
    loop {
        // Children first: one may have ended before signals were collected.
        while let Some((pid, status)) = reap() {
            if supervisor.child_ended(pid.as_raw(), status) == Child::Other {
                log.debug(&format!("process {pid} ended: {status}"));
            }
        }
        if let Some(exit) = supervisor.ended() {
            return Ok(exit);
        }
        let stop = signals.wait(supervisor.patience(Instant::now()))?;
        let now = Instant::now();
        let asked = stop.then(|| supervisor.stop_requested(now)).flatten();
        for action in [asked, supervisor.time_passed(now)].into_iter().flatten() {
            act(action, paravisor, log);
        }
    }
}

fn act(action: Action, paravisor: Pid, log: &KernelLog) {
    let signal = match action {
        Action::Terminate => {
            log.info("asked to stop, the paravisor is told");
            Signal::SIGTERM
        }
        Action::Kill => {
            log.warning("the paravisor did not end in time and is killed");
            Signal::SIGKILL
        }
    };
    // It may have ended by itself meanwhile; then its end is about to be seen.
    if let Err(error) = kill(paravisor, signal)
        && error != Errno::ESRCH
    {
        log.error(&format!("{signal} cannot be sent: {error}"));
    }
}

/// Ends every process but PID 1. None of them has anything that must be saved.
pub fn kill_all(log: &KernelLog) {
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // Nobody is there.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => log.warning(&format!("processes cannot be ended: {error}")),
    }
}

/// A child that has ended, if there is one.
fn reap() -> Option<(Pid, ExitStatus)> {
    let mut status = 0;
    // SAFETY: `status` is a live integer, the only thing that the call writes.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    // 0: none has ended. -1: there is none, the only error that this call can give.
    (pid > 0).then(|| (Pid::from_raw(pid), ExitStatus::from_raw(status)))
}

fn pid(id: u32) -> Pid {
    // The kernel's process ids are positive `i32`; std returns them as `u32`.
    Pid::from_raw(id.cast_signed())
}
