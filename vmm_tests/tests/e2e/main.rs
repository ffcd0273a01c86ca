//! The stack, booted for real. Started by `cargo xtask vmm-tests`.

mod alone;
mod boot;
mod command_line;
mod config;
mod crash;
mod debian;
mod diag;
mod guest_lifecycle;
mod guest_tests;
mod image;
mod numa;
mod ohcldiag;
mod sidecar;
mod sidecar_guest;
mod sidecar_worker;
mod tmk;
mod vsock;
mod worker;
