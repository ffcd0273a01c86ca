//! `ohcldiag`, built for the end-to-end tests: cargo tells a test only where programs of
//! its own package are.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ohcldiag::main()
}
