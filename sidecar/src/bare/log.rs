//! Lines on the console of VTL2, while the console is nobody else's: as long as the first CPU
//! is in this kernel. Each line is written as a whole.

use core::fmt;
use core::fmt::Write;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use minimal_rt::serial::COM3;
use minimal_rt::serial::Serial;
use minimal_rt::x86_64::PortIo;
use spin::Mutex;

const RATE: u32 = 115_200;

static ON: AtomicBool = AtomicBool::new(false);
static PORT: Mutex<Option<Serial<PortIo>>> = Mutex::new(None);

/// From now on lines are written.
pub(super) fn open() {
    // SAFETY: the boot shim, which has called us, uses no other port than COM3, and that only
    // while it runs itself.
    let io = unsafe { PortIo::new() };
    *PORT.lock() = Some(Serial::new(io, COM3, RATE));
    ON.store(true, Relaxed);
}

/// From now on nothing is written, and nobody is about to.
pub(super) fn close() {
    ON.store(false, Relaxed);
    *PORT.lock() = None;
}

/// Writes a line.
pub(super) fn line(text: fmt::Arguments<'_>) {
    if !ON.load(Relaxed) {
        return;
    }
    if let Some(port) = &mut *PORT.lock() {
        // A port that is dead takes nothing, silently.
        let _ = writeln!(port, "sidecar: {text}\r");
    }
}
