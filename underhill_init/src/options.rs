//! What the command line asks of PID 1.
//!
//! The kernel turns a word `NAME=VALUE` that it does not know itself into an
//! environment variable of PID 1. All of them are passed on to the paravisor.

use std::ffi::OsStr;
use std::ffi::OsString;

/// Makes the kernel panic once the system is set up: `panic` is the only value.
pub const CRASH: &str = "OPENHCL_CRASH";
/// Starts a shell on the console, if the image has one.
pub const SHELL: &str = "OPENHCL_SHELL";
/// Set by the boot shim on an isolated VM: the host's entropy counts for nothing.
pub const CONFIDENTIAL: &str = "OPENHCL_CONFIDENTIAL";

/// The options of PID 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// See [`CRASH`].
    pub crash: bool,
    /// See [`SHELL`].
    pub shell: bool,
    /// See [`CONFIDENTIAL`].
    pub confidential: bool,
}

impl Options {
    /// Reads the options, and what is wrong with them, from environment variables.
    pub fn read(variables: impl Iterator<Item = (OsString, OsString)>) -> (Self, Vec<String>) {
        let mut options = Self::default();
        let mut complaints = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            match name {
                CRASH if value == "panic" => options.crash = true,
                CRASH => complaints.push(format!("{CRASH}={value:?} ignored, expected panic")),
                SHELL => options.shell = is_on(&value),
                CONFIDENTIAL => options.confidential = is_on(&value),
                _ => {}
            }
        }
        (options, complaints)
    }
}

/// Anything but nothing and `0` switches an option on.
fn is_on(value: &OsStr) -> bool {
    !value.is_empty() && value != "0"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Options, Vec<String>) {
        Options::read(
            variables
                .iter()
                .map(|(name, value)| (OsString::from(name), OsString::from(value))),
        )
    }

    #[test]
    fn nothing_is_on_by_default() {
        assert_eq!(
            read(&[("HOME", "/"), ("TERM", "linux")]),
            (Options::default(), vec![])
        );
    }

    #[test]
    fn an_option_with_value_0_is_off() {
        let (options, _) = read(&[(SHELL, "0"), (CONFIDENTIAL, "")]);
        assert_eq!(options, Options::default());
        let (options, _) = read(&[(SHELL, "1"), (CONFIDENTIAL, "1")]);
        assert!(options.shell && options.confidential);
    }

    #[test]
    fn an_unknown_kind_of_crash_is_named() {
        let (options, complaints) = read(&[(CRASH, "later")]);
        assert!(!options.crash);
        assert_eq!(
            complaints,
            ["OPENHCL_CRASH=\"later\" ignored, expected panic"]
        );
        assert!(read(&[(CRASH, "panic")]).0.crash);
    }
}
