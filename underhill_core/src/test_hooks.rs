//! Ways to fail, for tests of whoever watches over a worker.
//!
//! They exist only if the configuration switches them on, which only an image for
//! development permits.

use nix::sys::signal::Signal;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// How to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// At once.
    Fatal(Fatal),
    /// When its guest is to be handed over, and only then.
    Unsaved,
}

/// A failure that ends the worker, or might as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fatal {
    /// Answer nothing any more.
    Hang,
    /// End by SIGABRT.
    Abort,
    /// End by SIGSEGV.
    Segfault,
    /// Panic, with a message.
    Panic,
    /// End with a code.
    Exit(i32),
}

/// A text that is no failure.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("failure is {found:?}, expected hang, abort, segfault, panic, exit:CODE or unsaved")]
pub(crate) struct UnknownFailure {
    found: String,
}

impl FromStr for Failure {
    type Err = UnknownFailure;

    fn from_str(text: &str) -> Result<Self, UnknownFailure> {
        let unknown = || UnknownFailure {
            found: text.to_owned(),
        };
        Ok(Self::Fatal(match text {
            "unsaved" => return Ok(Self::Unsaved),
            "hang" => Fatal::Hang,
            "abort" => Fatal::Abort,
            "segfault" => Fatal::Segfault,
            "panic" => Fatal::Panic,
            text => {
                let code = text.strip_prefix("exit:").ok_or_else(unknown)?;
                Fatal::Exit(code.parse().map_err(|_| unknown())?)
            }
        }))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fatal(fatal) => fatal.fmt(f),
            Self::Unsaved => f.write_str("unsaved"),
        }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hang => f.write_str("hang"),
            Self::Abort => f.write_str("abort"),
            Self::Segfault => f.write_str("segfault"),
            Self::Panic => f.write_str("panic"),
            Self::Exit(code) => write!(f, "exit:{code}"),
        }
    }
}

impl Fatal {
    /// Does it.
    pub(crate) fn happen(self) -> ! {
        eprintln!("test hook: {self}");
        match self {
            Self::Hang => loop {
                std::thread::park();
            },
            Self::Abort => std::process::abort(),
            Self::Segfault => {
                // The first one only makes the handler of Rust's runtime, which looks for
                // stack overflows, give way to the default.
                for _ in 0..2 {
                    let _ = nix::sys::signal::raise(Signal::SIGSEGV);
                }
                std::process::abort()
            }
            Self::Panic => panic!("a test hook asks for it"),
            Self::Exit(code) => std::process::exit(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_a_name_and_others_are_refused() {
        for text in ["hang", "abort", "segfault", "panic", "exit:3", "unsaved"] {
            assert_eq!(text.parse::<Failure>().unwrap().to_string(), text);
        }
        for text in ["", "die", "exit:", "exit:x"] {
            assert!(text.parse::<Failure>().is_err(), "{text}");
        }
    }
}
