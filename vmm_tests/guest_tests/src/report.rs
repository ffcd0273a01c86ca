//! The lines that the kernel prints: the interface to the tests that start it.
//!
//! ```text
//! plan N                            tests that follow
//! test NAME ok
//! test NAME skipped: REASON
//! test NAME failed: REASON
//! test NAME ends the machine        the last line, if NAME does what it should
//! bench NAME count=N ticks=T hz=F   a measurement
//! note TEXT                         for people
//! fatal: TEXT                       the kernel itself has failed
//! done P ok, F failed, S skipped    then it powers off
//! ```

use arrayvec::ArrayString;
use core::fmt::{Arguments, Write};

/// Text of a failure.
pub type FailureText = ArrayString<200>;

/// Why a test has no good end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The machine does not do what it should.
    Wrong(FailureText),
    /// The machine has not what the test needs.
    Skipped(&'static str),
}

/// Result of a test.
pub type TestResult = Result<(), Failure>;

impl Failure {
    /// A failure with this text; what does not fit is cut off.
    pub fn new(arguments: Arguments<'_>) -> Self {
        struct Cut(FailureText);
        impl Write for Cut {
            fn write_str(&mut self, text: &str) -> core::fmt::Result {
                text.chars()
                    .try_for_each(|c| self.0.try_push(c))
                    .map_err(|_| core::fmt::Error)
            }
        }
        let mut cut = Cut(FailureText::new());
        // An error means that the text is full; its beginning is what matters.
        let _ = cut.write_fmt(arguments);
        Self::Wrong(cut.0)
    }
}

/// Leaves a test with a formatted failure.
#[macro_export]
macro_rules! fail {
    ($($argument:tt)*) => {
        return Err($crate::report::Failure::new(format_args!($($argument)*)))
    };
}

/// Leaves a test with a formatted failure unless the condition holds.
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
    ok: u32,
    failed: u32,
    skipped: u32,
}

impl<W: Write> Reporter<W> {
    /// A reporter that prints to `out`.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            ok: 0,
            failed: 0,
            skipped: 0,
        }
    }

    /// Prints a line.
    pub fn line(&mut self, text: Arguments<'_>) {
        // The console cannot fail, and there would be nobody to tell.
        let _ = writeln!(self.out, "{text}");
    }

    /// Prints the result of a test.
    pub fn result(&mut self, name: &str, result: TestResult) {
        match result {
            Ok(()) => {
                self.ok += 1;
                self.line(format_args!("test {name} ok"));
            }
            Err(Failure::Skipped(reason)) => {
                self.skipped += 1;
                self.line(format_args!("test {name} skipped: {reason}"));
            }
            Err(Failure::Wrong(text)) => {
                self.failed += 1;
                self.line(format_args!("test {name} failed: {text}"));
            }
        }
    }

    /// Prints the totals.
    pub fn done(&mut self) {
        let (ok, failed, skipped) = (self.ok, self.failed, self.skipped);
        self.line(format_args!(
            "done {ok} ok, {failed} failed, {skipped} skipped"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_lines_and_totals() {
        let mut reporter = Reporter::new(String::new());
        let check = |value: u32| -> TestResult {
            ensure!(value == 3, "found {value}, expected {}", 3);
            Ok(())
        };
        reporter.result("a", check(3));
        reporter.result("b", check(2));
        reporter.result("c", Err(Failure::Skipped("no host")));
        reporter.done();
        assert_eq!(
            reporter.out,
            "test a ok\ntest b failed: found 2, expected 3\ntest c skipped: no host\n\
             done 1 ok, 1 failed, 1 skipped\n"
        );
    }

    #[test]
    fn long_failures_are_cut() {
        let Failure::Wrong(text) = Failure::new(format_args!("{:0>1000}", 7)) else {
            panic!("a failure is wrong");
        };
        assert_eq!(text.len(), text.capacity());
    }
}
