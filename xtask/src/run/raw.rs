//! A terminal in raw mode, put right again on every way out.

use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signal::Signal;
use nix::sys::signal::sigprocmask;
use nix::sys::termios;
use nix::sys::termios::SetArg;
use nix::sys::termios::Termios;
use std::os::fd::AsFd;

/// Signals that would end the program and leave the terminal as it is.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// A terminal that passes on every key at once and every byte as it is. Put right again when
/// dropped, also by a panic; for signals see [`block_signals`].
pub(super) struct RawTerminal<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> RawTerminal<F> {
    /// Makes the terminal raw.
    pub(super) fn enter(terminal: F) -> nix::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let raw = Self { terminal, before };
        raw.renew()?;
        Ok(raw)
    }

    /// Makes it raw again, after a shell has had it in between.
    pub(super) fn renew(&self) -> nix::Result<()> {
        let mut raw = self.before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &raw)
    }
}

impl<F: AsFd> Drop for RawTerminal<F> {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// Signals that end the program, and the one that tells that it goes on, are kept for
/// [`wait_for_signal`] from now on: in this thread and in those that it starts, but not in
/// its processes.
pub(super) fn block_signals() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals()), None)
}

/// Waits for one of the blocked signals; `None`: the program goes on after a stop.
pub(super) fn wait_for_signal() -> nix::Result<Option<Signal>> {
    let signal = signals().wait()?;
    Ok(Some(signal).filter(|signal| ENDING.contains(signal)))
}

fn signals() -> SigSet {
    ENDING.into_iter().chain([Signal::SIGCONT]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;
    use nix::sys::termios::OutputFlags;
    use std::os::fd::OwnedFd;

    fn settings(terminal: &OwnedFd) -> (LocalFlags, OutputFlags) {
        let settings = termios::tcgetattr(terminal).unwrap();
        (settings.local_flags, settings.output_flags)
    }

    #[test]
    fn the_terminal_is_raw_for_a_while() {
        let pty = openpty(None, None).unwrap();
        let before = settings(&pty.slave);
        let raw = RawTerminal::enter(&pty.slave).unwrap();
        let (local, output) = settings(&pty.slave);
        let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        assert!(!local.intersects(cooked) && !output.contains(OutputFlags::OPOST));
        drop(raw);
        assert_eq!(settings(&pty.slave), before);
    }

    #[test]
    fn a_panic_puts_the_terminal_right() {
        let pty = openpty(None, None).unwrap();
        let before = settings(&pty.slave);
        let slave = pty.slave.try_clone().unwrap();
        let panicked = std::thread::spawn(move || {
            let _raw = RawTerminal::enter(slave).unwrap();
            panic!("in raw mode");
        });
        panicked.join().unwrap_err();
        assert_eq!(settings(&pty.slave), before);
    }

    #[test]
    fn something_else_than_a_terminal_is_an_error() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(RawTerminal::enter(reader).is_err());
    }
}
