//! What those who put something into guest memory and those who find it there agree on.
//!
//! - [`shim`], [`paravisor`], [`memory_type`]: `igvm_builder` writes these structures into
//!   the image, `openhcl_boot` (and later usermode) reads them. Every address in them is
//!   an offset in bytes from the boot shim's own image base, because the host may relocate
//!   the image.
//! - [`linux`]: the boot protocols of Linux, which `openhcl_boot` speaks to the kernel of
//!   VTL2 and `vm_loader` to that of a guest.
//! - [`range`]: ranges of guest physical addresses, with which both compute.
//!
//! Each constant exists here and nowhere else.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod linux;
pub mod memory_type;
pub mod paravisor;
pub mod range;
pub mod shim;

/// Size of a GPA page in bytes.
pub const PAGE_SIZE: u64 = 4096;
