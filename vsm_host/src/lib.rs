//! The host below VTL2: what Hyper-V is to OpenHCL, for plain QEMU.
//!
//! QEMU starts this program by `-kernel` and hands it an IGVM file as `-initrd`. The
//! library part, which also builds and is tested on the build machine, decides; the
//! binary part (`main.rs`) has the processor in its hands and carries out.
//!
//! What it does, in the order of the boot flow:
//! 1. [`platform`] learns the machine: PVH start information, ACPI tables, RAM.
//! 2. [`igvm_loader::Options`] reads the host's own command line.
//! 3. [`igvm_loader`] validates the whole file, chooses where it goes, makes what the file
//!    wants to know of the machine and yields a [`igvm_loader::LoadPlan`].
//! 4. The plan is executed; [`vtl`] gives each VTL its nested page table ([`nested`]).
//! 5. VP 0 begins in VTL2 as the image says; [`partition`] handles what makes a VP leave
//!    its VTL: [`cpuid`], MSRs, [`hypercall`]s, ports, faults. The other CPUs sleep until
//!    VTL2 starts their VPs. [`svm`] knows the processor's structures.
//! 6. The machine ends with a reason that QEMU's exit status tells (`vsm_host_defs`).
//!
//! What it promises: no byte of memory is written before the file is known to be
//! loadable, and a file that is not loadable is refused with the header, the reason,
//! what was found and what was expected. No VTL has a mapping of the host's memory or
//! clock. Whatever VTL2 passes to the host leads to an answer of the TLFS, an exception
//! in VTL2, or a reported end of the machine. What was refused is counted and shown.
//!
//! What it refuses: to trust anything that comes from the file or from VTL2; to own a
//! device other than the HPET; to schedule: a VP has a CPU of its own, and no interrupt
//! ever reaches the host. It does not defend itself against the devices that VTL2 owns
//! (there is no IOMMU): VTL2 is the more trusted guest, not an enemy.
//!
//! Unsafe code is in the binary part only, next to the instructions that need it.

#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod clock;
pub mod cpuid;
pub mod deadlines;
pub mod guest_memory;
pub mod hypercall;
pub mod nested;
pub mod partition;
pub mod platform;
pub mod shootdown;
pub mod svm;
pub mod vtl;

/// A line of the log as the console shows it, without what the console adds in front.
pub fn log_text(line: &'static str) -> &'static str {
    line.strip_prefix(boot_events::HOST_PREFIX).unwrap_or(line)
}
