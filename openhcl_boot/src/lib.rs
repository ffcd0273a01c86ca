//! The boot shim: first program in VTL2, between the host and the kernel.
//!
//! The host has loaded the IGVM image, filled its parameter areas and started VP 0 at the
//! shim's entry. The shim reads what the host says about the VM, decides how VTL2's memory
//! is used, and starts Linux with a command line, a device tree and a memory map that it
//! wrote itself.
//!
//! Promises:
//! - the host's input is checked as a whole before anything follows from it; each refusal
//!   names the thing, the value and what was expected ([`boot::BootError`]);
//! - on an isolated VM the host only describes the machine: what could weaken the VM is
//!   dropped and the log says so ([`partition`]);
//! - every byte of VTL2's RAM has exactly one purpose ([`memory::space`]);
//! - whatever was logged survives for usermode, and a failure reaches the person behind
//!   the host as text ([`log`]).
//!
//! Refuses: to restore state of an earlier VTL2, and to run on SNP or TDX; the places are
//! marked by typed refusals. It takes no interrupt and starts no other processor: that is
//! for the sidecar kernel, which it calls ([`sidecar`]), and for Linux.
//!
//! Everything here is logic that builds for the host as well and is tested there. The
//! binary of the same name adds entry code, hypercalls and ports for x86_64 and aarch64.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod boot;
pub mod fdt;
pub mod host_dt;
pub mod imported;
pub mod isolation;
pub mod linux;
pub mod log;
pub mod memory;
pub mod numa;
pub mod options;
pub mod params;
pub mod partition;
pub mod persisted;
pub mod sidecar;

pub use loader_defs::range;
