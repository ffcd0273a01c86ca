//! How the program ends.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | the VM, or this machine, could not do it |
//! | 2 | the command line is wrong |
//! | 3 | there is no such VM, or it cannot be reached |
//! | 4 | no answer in time |
//! | any | `exec`, `shell`: what the program in the VM has returned; 128 + its signal |

use diag_client::Error;
use diag_client::registry::RegistryError;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

const FAILED: u8 = 1;
const UNREACHABLE: u8 = 3;
const TIMED_OUT: u8 = 4;

/// Why a command has failed. Its text is one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The VM cannot be reached, or says no.
    #[error(transparent)]
    Vm(#[from] Error),
    /// There is no such VM, or too many.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The output cannot be written.
    #[error("output: {0}")]
    Output(#[source] io::Error),
    /// The connection broke while bytes were carried.
    #[error("{what}: {source}")]
    Stream {
        /// What they were.
        what: &'static str,
        /// How it broke.
        source: io::Error,
    },
    /// A file of this machine cannot be written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything that is said best in its own words.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        let code = match self {
            Self::Vm(error) if error.is_timeout() => TIMED_OUT,
            Self::Vm(error) if error.is_unreachable() => UNREACHABLE,
            Self::Registry(
                RegistryError::NoVm
                | RegistryError::Ambiguous { .. }
                | RegistryError::Unknown { .. },
            ) => UNREACHABLE,
            _ => FAILED,
        };
        code.into()
    }
}
