//! How the run ends.

use super::clock::wait_for;
use super::console::Console;
use super::ports::{outb, outw};
use crate::acpi::Tables;
use core::fmt::Write;

/// PM1 control: go to sleep.
const SLEEP_ENABLE: u16 = 1 << 13;
/// PM1 control: shift of the sleep type.
const SLEEP_TYPE_SHIFT: u16 = 10;

/// Switches the machine off.
pub fn off(tables: &Tables) -> ! {
    let sleep_type = u16::from(tables.sleep_type_s5) << SLEEP_TYPE_SHIFT;
    outw(tables.pm1a_control, sleep_type | SLEEP_ENABLE);
    // The machine may take its time to end.
    wait_for(|| false);
    stop("power-off is ignored")
}

/// Resets the machine through the register that ACPI names.
pub fn reset(tables: &Tables) -> ! {
    match tables.reset {
        Some((port, value)) => {
            outb(port, value);
            wait_for(|| false);
        }
        None => stop("there is no reset register"),
    }
    stop("reset is ignored")
}

/// Says why nothing can follow, and stops this VP.
pub fn stop(reason: &str) -> ! {
    let _ = writeln!(Console, "fatal: {reason}");
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
