//! tmk, the test micro-kernel: a VTL2 payload that tests the host from inside.
//!
//! It runs where `openhcl_boot` and Linux run otherwise: as VTL2 on `vsm_host`, packed
//! into a small IGVM image of its own. So it shows two things at once. The host loads
//! an image that follows the contract but has nothing else in common with ours (other
//! layout, every kind of parameter, fixed or relocatable), and the host stands up to a
//! VTL2 that does what Linux never does: malformed hypercalls, forbidden MSRs and
//! ports, memory that is not its own.
//!
//! What it promises: every check prints one line on COM3 (see [`report`]); a check that
//! provokes a fault catches it; when all is done the machine is powered off by
//! `HvCallEnterSleepState`. Which tests run is chosen by the host's boot arguments
//! (see [`options`]). Random tests have a fixed seed and repeat exactly.
//!
//! What it refuses: to be a kernel. No interrupts, no allocator, no memory management
//! beyond one identity map, and no reuse of code from the shim or the host: a test that
//! shares its subject's code shares its faults. Only the interface definitions
//! (`hv_defs`, `igvm_defs`, `vsm_host_defs`) are common.
//!
//! Where it stands in the boot flow: `vsm_host` enters it on VP 0 exactly as the image
//! says; it starts the other VPs itself.
//!
//! Everything that is not an instruction of the processor (parsing of parameters,
//! choice of random calls, expectations) builds on the development machine and is
//! unit-tested there; `machine` and `suites` exist in the bare-metal build only.

#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::result_large_err,
    reason = "a failure carries its text, there is no allocator, and failures are rare"
)]

pub mod abi;
pub mod acpi;
pub mod device_tree;
pub mod fuzz;
pub mod memory_map;
pub mod options;
pub mod parameters;
pub mod prng;
pub mod report;

#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod suites;
