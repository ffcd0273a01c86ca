//! The sidecar kernel's image. What can be tested on a host is in the library `sidecar`; this
//! is the entry code and the machine around it.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("sidecar runs on processors of VTL2 that have no operating system");
    std::process::ExitCode::FAILURE
}
