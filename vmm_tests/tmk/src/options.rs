//! What the payload is told through the host's boot arguments.
//!
//! Words of the form `tmk.NAME=VALUE`, separated by blanks; other words are ignored.
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `tmk.test=A,B` | suites to run | all that end with power-off |
//! | `tmk.count=N` | rounds of `fuzz` and exits of `stress` | 20000 |
//! | `tmk.seed=N` | seed of `fuzz` | 1 |
//! | `tmk.gpa=N` | address that `touch` accesses | start of the host's memory |
//! | `tmk.apic=N` | CPU that `sipi` aims at | 0, the parked one |
//! | `tmk.access=read\|write\|execute` | how `touch` accesses it | read |
//!
//! Numbers are decimal, or hexadecimal with 0x.

use thiserror::Error;
use vsm_host_defs::HOST_MEMORY_BASE;

/// How `touch` accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Load eight bytes.
    Read,
    /// Store eight bytes.
    Write,
    /// Jump there.
    Execute,
}

/// Declares [`Suite`] with its names.
macro_rules! suite_list {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $default:literal;)*) => {
        /// A group of checks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Suite { $($(#[$doc])* $variant,)* }

        impl Suite {
            /// All suites, in the order in which they run.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in `tmk.test=`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Runs if no suite is named.
            pub const fn runs_by_default(self) -> bool {
                match self { $(Self::$variant => $default,)* }
            }
        }
    };
}

suite_list! {
    /// Entry state and parameter areas.
    Params = "params", true;
    /// CPUID.
    Cpuid = "cpuid", true;
    /// Synthetic and forbidden MSRs.
    Msrs = "msrs", true;
    /// Instructions that the host must decode itself, and SVM's own.
    Instructions = "instructions", true;
    /// The host's own I/O ports.
    Ports = "ports", true;
    /// Malformed and well-formed hypercalls.
    Hypercalls = "hypercalls", true;
    /// Starting the other VPs, and what they send each other.
    Smp = "smp", true;
    /// Random hypercalls and MSR accesses.
    Fuzz = "fuzz", true;
    /// CPUID exits on VP 0 while the other VPs restore floating-point state.
    Stress = "stress", false;
    /// An access that the host must not allow; ends the machine.
    Touch = "touch", false;
    /// INIT and SIPI to the CPU with the APIC id `tmk.apic`.
    Sipi = "sipi", false;
    /// Crash report through the crash MSRs; ends the machine.
    CrashMessage = "crash_message", false;
    /// Triple fault; ends the machine.
    TripleFault = "triple_fault", false;
    /// Triple fault on the last VP; ends the machine.
    ApTripleFault = "ap_triple_fault", false;
    /// Reset MSR; ends the machine.
    Reset = "reset", false;
}

/// A parsed command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    suites: Option<&'a str>,
    /// Rounds of `fuzz` and exits of `stress`.
    pub count: u64,
    /// Seed of `fuzz`.
    pub seed: u64,
    /// Address for `touch`.
    pub gpa: u64,
    /// Kind of access for `touch`.
    pub access: Access,
    /// APIC id for `sipi`.
    pub apic: u64,
}

/// Why a word is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error<'a> {
    /// No such option.
    #[error("option {0:?} is unknown")]
    UnknownOption(&'a str),
    /// No such suite.
    #[error("suite {0:?} is unknown")]
    UnknownSuite(&'a str),
    /// Not a number.
    #[error("option {name}: {value:?} is not a number")]
    NotANumber {
        /// The option.
        name: &'a str,
        /// What it was given.
        value: &'a str,
    },
    /// Not a kind of access.
    #[error("access {0:?} is unknown, expected read, write or execute")]
    UnknownAccess(&'a str),
}

impl<'a> Options<'a> {
    /// Parses the boot arguments.
    pub fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let mut options = Self {
            suites: None,
            count: 20_000,
            seed: 1,
            gpa: HOST_MEMORY_BASE,
            access: Access::Read,
            apic: 0,
        };
        for word in text.split_ascii_whitespace() {
            let Some(word) = word.strip_prefix("tmk.") else {
                continue;
            };
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "test" => {
                    for suite in value.split(',') {
                        find_suite(suite)?;
                    }
                    options.suites = Some(value);
                }
                "count" => options.count = number(name, value)?,
                "seed" => options.seed = number(name, value)?,
                "gpa" => options.gpa = number(name, value)?,
                "apic" => options.apic = number(name, value)?,
                "access" => {
                    options.access = match value {
                        "read" => Access::Read,
                        "write" => Access::Write,
                        "execute" => Access::Execute,
                        _ => return Err(Error::UnknownAccess(value)),
                    }
                }
                _ => return Err(Error::UnknownOption(name)),
            }
        }
        Ok(options)
    }

    /// True if this suite shall run.
    pub fn selects(&self, suite: Suite) -> bool {
        match self.suites {
            None => suite.runs_by_default(),
            Some(list) => list.split(',').any(|name| name == suite.name()),
        }
    }
}

fn find_suite(name: &str) -> Result<Suite, Error<'_>> {
    Suite::ALL
        .iter()
        .copied()
        .find(|suite| suite.name() == name)
        .ok_or(Error::UnknownSuite(name))
}

fn number<'a>(name: &'a str, value: &'a str) -> Result<u64, Error<'a>> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| Error::NotANumber { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_options_the_suites_that_end_orderly_run() {
        let options = Options::parse("console=ttyS2 quiet").unwrap();
        assert!(options.selects(Suite::Params));
        assert!(!options.selects(Suite::TripleFault));
    }

    #[test]
    fn named_suites_run_alone() {
        let options = Options::parse("tmk.test=reset,cpuid tmk.gpa=0xfed00000").unwrap();
        let selected: Vec<_> = Suite::ALL.iter().filter(|s| options.selects(**s)).collect();
        assert_eq!(selected, [&Suite::Cpuid, &Suite::Reset]);
        assert_eq!(options.gpa, 0xfed0_0000);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            Options::parse("tmk.test=cpuid,nope"),
            Err(Error::UnknownSuite("nope"))
        );
        assert_eq!(Options::parse("tmk.x=1"), Err(Error::UnknownOption("x")));
        assert!(matches!(
            Options::parse("tmk.count=many"),
            Err(Error::NotANumber { .. })
        ));
        assert_eq!(
            Options::parse("tmk.access=smell"),
            Err(Error::UnknownAccess("smell"))
        );
    }
}
