//! What needs the processor itself.

mod bios_area;
mod boot;
mod clock;
mod console;
mod cpu;
mod entry;
mod exit;
mod heap;
mod interrupts;
mod lapic;
mod memory;
mod smp;
mod timer;
