//! What the builder of the IGVM image and the code inside it agree on.
//!
//! `igvm_builder` writes these structures into the image, `openhcl_boot` (and later
//! usermode) reads them. Every address in them is an offset in bytes from the boot
//! shim's own image base, because the host may relocate the image. Each constant
//! exists here and nowhere else.

#![no_std]
#![forbid(unsafe_code)]

pub mod linux;
pub mod memory_type;
pub mod paravisor;
pub mod shim;

/// Size of a GPA page in bytes.
pub const PAGE_SIZE: u64 = 4096;
