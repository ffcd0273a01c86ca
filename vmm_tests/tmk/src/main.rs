//! Entry of the bare-metal payload; see the library for what it does.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use tmk as _;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("tmk runs only as VTL2 payload: build it for x86_64-unknown-none");
    std::process::ExitCode::FAILURE
}
