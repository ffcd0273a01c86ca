//! The guest's test kernel: checks from VTL0, ring 0, what a guest may and may not do.
//!
//! It is loaded where a guest's Linux would be, as a vmlinux by the 64-bit boot protocol,
//! and looks at its machine from there: processor, local APICs, timers, SynIC, hypercalls,
//! chipset. It also does what no Linux does: it reaches for the memory of VTL2 and of the
//! host, for registers and protections of VTL2, for MSRs and instructions of a hypervisor.
//!
//! What it promises:
//! - every test prints one line on COM1 (see [`report`]), the last line is `done`; then the
//!   machine is powered off through ACPI;
//! - a test that provokes a fault catches it; a fault that no test expects is told and ends
//!   the run;
//! - which tests run is chosen by the command line (see [`options`]);
//! - nothing passes or fails by how fast it was: a deadline only ends what hangs.
//!
//! QEMU's own `-kernel` starts it too (PVH), without a paravisor. Tests that need our host
//! are skipped there; the others show that they ask for what a PC does, and not for what
//! our host happens to do.
//!
//! What it refuses: to be a kernel. No allocator, no memory management beyond one identity
//! map, and no code in common with paravisor or host: a test that shares its subject's code
//! shares its faults. Only definitions of interfaces are common.
//!
//! What is not an instruction of the processor (tables, options, patterns) builds on the
//! development machine and is tested there; `machine` and `suites` exist in the bare-metal
//! build only.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    any(test, target_os = "none"),
    expect(
        clippy::result_large_err,
        reason = "a failure carries its text, there is no allocator, and failures are rare"
    )
)]

pub mod acpi;
pub mod boot_info;
pub mod options;
pub mod pattern;
pub mod report;

#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
mod suites;
