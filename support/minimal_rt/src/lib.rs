//! The runtime below a program that runs on the bare virtual machine in VTL2.
//!
//! The boot shim and the sidecar kernel have no operating system: they relocate themselves,
//! bring their memory, talk to the hypervisor and must be able to tell a person why they
//! died. That is what this crate offers, for x86_64 and aarch64, and no more.
//!
//! Promises: every hypercall goes through one typed wrapper ([`hypercall`]) that checks
//! the status *and* the number of repetitions; a crash reaches the host with a text
//! ([`crash`]); nothing waits for ever on a device ([`serial`]).
//!
//! Refuses: threads and interrupts. What has state of its own assumes one CPU, an identity
//! mapping (virtual address = GPA) and interrupts off, as the first VP of VTL2 starts;
//! [`hypercall`] has none, and works over the pages of any CPU.
//!
//! What needs instructions or registers of an architecture lives in `x86_64` and
//! `aarch64` and is used by the binaries only; the logic around it builds and is tested
//! on the host.

#![no_std]

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod bump;
pub mod crash;
pub mod hypercall;
pub mod relocate;
pub mod serial;
pub mod single;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// A page of memory, aligned like one.
#[derive(Debug, Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; 4096]);
}
