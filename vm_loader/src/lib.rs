//! Linux Direct: puts a Linux kernel, its initrd and its command line into the memory of a
//! VM and says how the first processor starts, without any firmware in between.
//!
//! Two parties use it: the paravisor for its guest, and the host where it starts a guest
//! without a paravisor. So it needs no operating system, touches no memory itself and
//! knows nothing of either.
//!
//! What it promises:
//! - [`x86_64::LinuxDirect::plan`] and [`aarch64::LinuxDirect::plan`] turn files and a
//!   description of the VM into a [`Plan`]: a list of pieces (address and contents) and
//!   the initial registers. Nothing is written before the whole plan has been validated:
//!   pieces do not overlap, and each lies in RAM that the caller has given, below the
//!   caller's limit.
//! - A plan borrows the files; only what is made here (zero page, page tables, ACPI tables,
//!   device tree) is allocated, less than 1 MiB.
//! - Same input, same plan: nothing is random.
//! - Any bytes as kernel give a typed error or a valid plan, never a panic. An error names
//!   the thing, its value and what was expected; the caller adds the name of the file.
//!
//! What it refuses: kernels without a 64-bit entry, compressed arm64 images, real-mode
//! entries, anything above 4 GiB on x86_64.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod aarch64;
pub mod acpi;
pub mod bz_image;
pub mod elf;
pub mod memory;
pub mod plan;
pub mod x86_64;

pub use loader_defs::range::GpaRange;
pub use memory::{MemoryError, MemoryLayout, Ram};
pub use plan::{ImportPages, Piece, Plan, PlanError};

/// A MiB in bytes.
pub(crate) const MIB: u64 = 1 << 20;
/// A GiB in bytes.
pub(crate) const GIB: u64 = 1 << 30;
