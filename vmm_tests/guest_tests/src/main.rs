//! Entry of the bare-metal kernel; see the library for what it does.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use guest_tests as _;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("guest_tests runs only as a guest's kernel: build it for x86_64-unknown-none");
    std::process::ExitCode::FAILURE
}
