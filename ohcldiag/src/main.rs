//! `ohcldiag`: asks a running paravisor. Everything is in the library.

#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ohcldiag::main()
}
