//! The terminal of this machine, while a program in the VM uses it.
//!
//! A raw terminal passes every key on, Ctrl-C included. It is restored when [`Raw`] is
//! dropped: at the end, after an error, while a panic unwinds; and by [`crate::signals`]
//! before a signal ends the program. Only SIGKILL leaves it raw (`stty sane` helps).

use rustix::termios;
use rustix::termios::OptionalActions;
use rustix::termios::Termios;
use std::io;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// Whether a person types and reads.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The size of the terminal; `None` if it does not know.
pub(crate) fn size() -> Option<Size> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// What the terminal has to become again.
#[derive(Clone)]
pub(crate) struct Saved(Arc<Mutex<Option<Termios>>>);

impl Saved {
    /// Restores the terminal; the second time does nothing.
    pub(crate) fn restore(&self) {
        let saved = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(settings) = saved {
            // Not after the output has been drained: a terminal that is stopped (Ctrl-S)
            // would hold everything up. If it is gone, there is nothing to restore.
            _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &settings);
        }
    }
}

/// A terminal that passes every key on, until this is dropped.
pub(crate) struct Raw {
    saved: Saved,
}

impl Raw {
    /// Makes the terminal raw.
    pub(crate) fn enter() -> io::Result<Self> {
        let settings = termios::tcgetattr(io::stdin())?;
        let mut raw = settings.clone();
        raw.make_raw();
        let saved = Saved(Arc::new(Mutex::new(Some(settings))));
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { saved })
    }

    /// For whoever must restore it from elsewhere.
    pub(crate) fn saved(&self) -> Saved {
        self.saved.clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.saved.restore();
    }
}
