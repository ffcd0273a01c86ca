//! Signals while the terminal is raw.

use crate::terminal::Saved;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;
use std::process;
use std::thread;

/// What a shell adds to a signal's number for an exit code.
const SIGNALED: i32 = 128;

/// Signals that end the program.
const ENDING: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// Signals that no longer do what they usually do. Threads that are started later inherit
/// that, so this comes before them.
pub(crate) struct Caught {
    source: SignalFd,
}

impl Caught {
    /// From now on signals wait for [`Caught::handle`].
    pub(crate) fn new() -> nix::Result<Self> {
        let mut set: SigSet = ENDING.into_iter().collect();
        set.add(Signal::SIGWINCH);
        set.thread_block()?;
        Ok(Self {
            source: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?,
        })
    }

    /// Handles them in a thread: a change of the window's size calls `resized`; one that
    /// ends the program restores the terminal first.
    pub(crate) fn handle(self, terminal: Saved, resized: impl Fn() + Send + 'static) {
        thread::spawn(move || {
            while let Ok(signal) = self.source.read_signal() {
                let number = signal.map_or(0, |signal| signal.ssi_signo as i32);
                if ENDING.iter().any(|ending| *ending as i32 == number) {
                    terminal.restore();
                    process::exit(SIGNALED + number);
                }
                if number == Signal::SIGWINCH as i32 {
                    resized();
                }
            }
        });
    }
}
