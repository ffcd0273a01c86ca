//! The lines that the payload prints, and the count of results.
//!
//! They are the interface to the tests that start it: one line per check, one at the
//! end. A suite that ends the machine announces itself, because no line can follow.

use arrayvec::ArrayString;
use core::fmt::{Arguments, Write};

/// Every line starts so.
pub const LINE_PREFIX: &str = "tmk: ";

/// Text of a failure.
pub type FailureText = ArrayString<256>;

/// Why a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub FailureText);

impl Failure {
    /// A failure with this text; what does not fit is cut off.
    pub fn new(arguments: Arguments<'_>) -> Self {
        /// Takes what fits.
        struct Cut(FailureText);
        impl Write for Cut {
            fn write_str(&mut self, text: &str) -> core::fmt::Result {
                for c in text.chars() {
                    self.0.try_push(c).map_err(|_| core::fmt::Error)?;
                }
                Ok(())
            }
        }
        let mut cut = Cut(FailureText::new());
        // An error means that the text is full; its beginning is what matters.
        let _ = cut.write_fmt(arguments);
        Self(cut.0)
    }
}

/// Result of a check.
pub type CheckResult = Result<(), Failure>;

/// Leaves a check with a formatted failure.
#[macro_export]
macro_rules! fail {
    ($($argument:tt)*) => {
        return Err($crate::report::Failure::new(format_args!($($argument)*)))
    };
}

/// Leaves a check with a formatted failure unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($argument:tt)*) => {
        if !$condition { $crate::fail!($($argument)*); }
    };
}

/// Prints results and counts them.
#[derive(Debug)]
pub struct Reporter<W: Write> {
    out: W,
    passed: u32,
    failed: u32,
}

impl<W: Write> Reporter<W> {
    /// A reporter that prints to `out`.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            passed: 0,
            failed: 0,
        }
    }

    /// Prints one line of information.
    pub fn note(&mut self, text: Arguments<'_>) {
        // The console cannot fail, and there would be nobody to tell.
        let _ = writeln!(self.out, "{LINE_PREFIX}{text}");
    }

    /// Runs a check and prints its result.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> CheckResult) {
        self.result(name, check());
    }

    /// Prints the result of a check.
    pub fn result(&mut self, name: &str, result: CheckResult) {
        match result {
            Ok(()) => {
                self.passed += 1;
                self.note(format_args!("test {name}: pass"));
            }
            Err(Failure(text)) => {
                self.failed += 1;
                self.note(format_args!("test {name}: fail: {text}"));
            }
        }
    }

    /// Announces a suite after which no line can follow.
    pub fn last_words(&mut self, name: &str) {
        self.note(format_args!("test {name}: ends the machine"));
    }

    /// Prints the totals.
    pub fn done(&mut self) {
        let (passed, failed) = (self.passed, self.failed);
        self.note(format_args!("done {passed} passed {failed} failed"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_lines_and_totals() {
        let mut reporter = Reporter::new(String::new());
        reporter.check("a", || Ok(()));
        reporter.check("b", || {
            ensure!(1 + 1 == 3, "found {}, expected {}", 1 + 1, 3);
            Ok(())
        });
        reporter.done();
        assert_eq!(
            reporter.out,
            "tmk: test a: pass\ntmk: test b: fail: found 2, expected 3\n\
             tmk: done 1 passed 1 failed\n"
        );
    }

    #[test]
    fn long_failures_are_cut() {
        let failure = Failure::new(format_args!("{:0>1000}", 7));
        assert_eq!(failure.0.len(), failure.0.capacity());
    }
}
