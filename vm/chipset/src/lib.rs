//! The PC devices that VTL0 finds where a PC has them: what its firmware, boot loader or
//! kernel expects before any paravirtual driver runs.
//!
//! | device | where | interrupt |
//! | --- | --- | --- |
//! | [`uart`] 16550A, COM1 and COM2 | ports 0x3f8, 0x2f8 | 4, 3 |
//! | [`ioapic`], 24 pins | 0xfec0_0000 | |
//! | [`rtc`] MC146818 with CMOS RAM | ports 0x70, 0x71 | 8 |
//! | [`acpi_pm`] fixed hardware | ports 0x600 to 0x60b | 9 (SCI) |
//! | [`i8042`] without keyboard and mouse | ports 0x60, 0x64, 0x92 | 1 |
//! | [`pci_config`] mechanism 1, reset control | ports 0xcf8 to 0xcff | |
//!
//! [`Chipset`] is all of them on one [`Bus`]. There is no 8259 and no 8254: the guest's
//! tables say so, and a kernel that asks for neither boots faster.
//!
//! What it promises:
//! - VTL0 is not trusted. No access, in any order, at any time, panics or makes memory
//!   grow; the fuzz target `chipset` tries.
//! - Nothing blocks and nothing has a thread: time passes in [`Device::poll`], and the
//!   owner learns from [`Chipset::poll`] when to call again. So the crate is independent
//!   of how the owner waits, and tests move the clock by hand.
//! - A device that is saved and restored behaves as if nothing had happened.
//! - All calls go one way: device, interrupt [`mod@line`], IOAPIC, [`ioapic::ApicBus`]. Each
//!   has a lock of its own, so VPs meet only at the device that both use.
//!
//! What it refuses: logging (counters and callbacks leave that to the owner), and device
//! behaviour that no guest can see, such as the voltage of an interrupt pin.
//!
//! No crate that we know does this: `vm-superio` has a UART without FIFO control, modem
//! lines, timeouts and back-pressure (a slow sink blocks the VP), an RTC for Arm only, and
//! an i8042 that can only reset.

#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod bus;
pub mod device;
pub mod i8042;
pub mod ioapic;
pub mod line;
mod machine;
pub mod pci_config;
pub mod power;
pub mod rtc;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod uart;
pub mod unclaimed;

pub use bus::Bus;
pub use device::Device;
pub use device::Lifecycle;
pub use machine::Chipset;
pub use machine::LifecycleError;
pub use machine::Outside;
pub use machine::Phase;
pub use machine::SavedChipset;
pub use machine::SavedDevice;
pub use machine::pin;
pub use unclaimed::Unclaimed;
pub use unclaimed::UnclaimedObserver;
