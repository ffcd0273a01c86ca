//! Finding the QEMU binary and what it is.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Name of the binary; looked up in `PATH`.
const DEFAULT_BINARY: &str = "qemu-system-x86_64";

/// Environment variable that names another binary.
const BINARY_VARIABLE: &str = "QEMU_SYSTEM_X86_64";

/// The oldest version that this was ever run with. Older ones lack options that
/// [`Machine`](crate::Machine) gives.
const OLDEST: Version = Version { major: 7, minor: 2 };

/// A QEMU binary that answered, and its version.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    version: Version,
}

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

/// Why there is no QEMU to run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The binary could not be started.
    #[error(
        "{}: {source}; install it (Debian: apt-get install qemu-system-x86) or name another binary in {BINARY_VARIABLE}",
        program.display()
    )]
    Run {
        /// What was tried.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ran, but did not say which QEMU it is.
    #[error(
        "{}: `--version` printed {printed:?}, expected \"QEMU emulator version MAJOR.MINOR…\"",
        program.display()
    )]
    NotQemu {
        /// What was tried.
        program: PathBuf,
        /// The first line of its output.
        printed: String,
    },
    /// Too old.
    #[error("{}: version {found}, expected {OLDEST} or newer", program.display())]
    TooOld {
        /// What was tried.
        program: PathBuf,
        /// What it is.
        found: Version,
    },
}

impl Qemu {
    /// Finds the binary: the one that the environment names, else Debian's name in `PATH`.
    pub fn find() -> Result<Self, ProbeError> {
        let program = std::env::var_os(BINARY_VARIABLE)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| OsString::from(DEFAULT_BINARY));
        Self::probe(program)
    }

    /// Asks a binary for its version.
    pub fn probe(program: impl Into<PathBuf>) -> Result<Self, ProbeError> {
        let program = program.into();
        let output = match Command::new(&program).arg("--version").output() {
            Ok(output) => output,
            Err(source) => return Err(ProbeError::Run { program, source }),
        };
        let printed = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::from_banner(&printed) else {
            let printed = printed.lines().next().unwrap_or_default().to_owned();
            return Err(ProbeError::NotQemu { program, printed });
        };
        if version < OLDEST {
            return Err(ProbeError::TooOld {
                program,
                found: version,
            });
        }
        Ok(Self { program, version })
    }

    /// The binary.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Takes the binary's identity on trust; for tests of command lines and of waits.
    #[cfg(test)]
    pub(crate) fn unprobed(program: &str) -> Self {
        Self {
            program: program.into(),
            version: OLDEST,
        }
    }
}

impl Version {
    fn from_banner(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("QEMU emulator version ")?;
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_banner_of_debian() {
        let banner = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n";
        assert_eq!(
            Version::from_banner(banner),
            Some(Version { major: 7, minor: 2 })
        );
        assert_eq!(Version::from_banner("bash 5.2"), None);
        assert!(
            Version {
                major: 10,
                minor: 0
            } > OLDEST
        );
    }

    #[test]
    fn a_missing_binary_says_how_to_get_it() {
        let error = Qemu::probe("/nonexistent/qemu").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/qemu"), "{error}");
        assert!(error.contains("apt-get install qemu-system-x86"), "{error}");
    }

    #[test]
    fn another_program_is_not_taken_for_qemu() {
        let error = Qemu::probe("true").unwrap_err();
        assert!(matches!(error, ProbeError::NotQemu { .. }), "{error}");
    }
}
