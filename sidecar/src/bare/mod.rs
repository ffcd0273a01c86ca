//! The machine: entry code, the first CPU's work, and what each sidecar CPU does.

#![expect(
    unsafe_code,
    reason = "entry code, page tables, privileged registers, and pages at fixed addresses"
)]

mod apic;
mod calls;
mod commands;
mod cpu;
mod entry;
mod interrupts;
mod log;
mod panic;
mod run;
mod start;
