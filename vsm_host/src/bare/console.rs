//! The log: lines on QEMU's debug console, stamped with the time since the host began.
//!
//! Any CPU may log at any time, so a line is written under a lock. A CPU that faults
//! while it holds the lock would wait for itself; the fault path therefore takes the
//! console by force.

#![expect(unsafe_code, reason = "port output; breaking the lock after a fault")]

use super::clock;
use core::fmt;
use core::fmt::Write;
use spin::Mutex;
use vsm_host_defs::DEBUG_CONSOLE_PORT;
use x86_64::instructions::port::PortWriteOnly;

static CONSOLE: Mutex<DebugConsole> = Mutex::new(DebugConsole);

struct DebugConsole;

impl Write for DebugConsole {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut port = PortWriteOnly::<u8>::new(DEBUG_CONSOLE_PORT);
        for byte in text.bytes() {
            // SAFETY: the debug console takes a byte and touches no memory; without
            // the device the write has no effect.
            unsafe { port.write(byte) };
        }
        Ok(())
    }
}

/// Writes one line: `[   12.345 ms] vsm_host: text`.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let us = clock::since_start().as_micros();
    let mut console = CONSOLE.lock();
    // Writing to the port cannot fail, and there is nowhere to report to.
    let _ = writeln!(
        console,
        "[{:>5}.{:03} ms] vsm_host: {text}",
        us / 1000,
        us % 1000
    );
}

/// Makes sure that this CPU can log although it may have stopped in the middle of a line.
pub(crate) fn take_by_force() {
    // SAFETY: only called on the way to the end of the machine, by a CPU that will
    // never return to the code that may hold the lock. Another CPU's line may get
    // mixed with ours, which harms nothing: the console has no state.
    unsafe { CONSOLE.force_unlock() };
}

/// Logs one line.
macro_rules! log {
    ($($argument:tt)*) => {
        $crate::bare::console::line(format_args!($($argument)*))
    };
}
pub(crate) use log;
