//! The bare-metal program; see the library's root for what it is.
//!
//! All logic is in the library, where it is tested on the build machine. Here is what
//! needs the processor itself: entry, stacks, interrupt table, clock, local APIC, and
//! the VMRUN loop. Built for any other target the program only says so.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("vsm_host runs on bare metal only: start it with `cargo xtask run`");
    std::process::ExitCode::FAILURE
}
