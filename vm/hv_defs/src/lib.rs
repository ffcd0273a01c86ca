//! The Hyper-V interface that the host implements and VTL2 uses.
//!
//! Definitions only: numbers, bit layouts and structures of the Hypervisor Top-Level
//! Functional Specification (TLFS), declared once and used by both sides
//! (`vsm_host` below, `openhcl_boot` and usermode above). Nothing here has behaviour,
//! allocates or is unsafe. Protocol values are open enums: a value that we do not know
//! survives a round trip and can be printed.
//!
//! Names follow the TLFS; each module cites its chapter. All integers are
//! little-endian; a "GPA page" is 4 KiB.

#![no_std]
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod hypercall;
pub mod intercept;
pub mod msr;
pub mod register_page;
pub mod registers;
pub mod synic;
pub mod vp_context;
pub mod vsm;

/// Size of a GPA page in bytes.
pub const HV_PAGE_SIZE: u64 = 4096;

/// `HV_PARTITION_ID_SELF`: the caller's own partition.
pub const HV_PARTITION_ID_SELF: u64 = u64::MAX;

/// `HV_VP_INDEX_SELF`: the calling virtual processor.
pub const HV_VP_INDEX_SELF: u32 = 0xffff_fffe;
