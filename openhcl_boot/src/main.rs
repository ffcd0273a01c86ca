//! The boot shim's image. All logic is in the library `openhcl_boot`; this is the entry
//! code and the machine around it.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("openhcl_boot runs as the first program of VTL2, not on an operating system");
    std::process::ExitCode::FAILURE
}
