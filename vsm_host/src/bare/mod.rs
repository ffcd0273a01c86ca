//! What needs the processor itself.

mod boot;
mod clock;
mod console;
mod entry;
mod exit;
mod heap;
mod interrupts;
mod lapic;
