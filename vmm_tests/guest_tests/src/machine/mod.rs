//! The processors and the platform, as the tests see them. Bare-metal only.

pub mod apic;
pub mod clock;
pub mod console;
pub mod entry;
pub mod hyperv;
pub mod interrupts;
pub mod memory;
pub mod ports;
pub mod power;
pub mod probe;
pub mod shared;
pub mod vps;
