//! The end of the machine.

#![expect(unsafe_code, reason = "port output")]

use super::console;
use super::console::log;
use boot_events::HOST_ERROR_PREFIX;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use vsm_host::log_text;
use vsm_host_defs::{DEBUG_EXIT_PORT, ExitReason};
use x86_64::instructions::port::PortWriteOnly;
use x86_64::instructions::{hlt, interrupts};

/// Set by the first CPU that ends the machine; the others fall silent.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Claims the end of the machine: the first caller returns and shall report and call
/// [`end`]; for any other CPU this is where it stops.
pub(crate) fn claim() {
    if ENDING.swap(true, Ordering::AcqRel) {
        stop();
    }
}

/// Ends the machine with `reason` as QEMU's exit status. The caller has claimed it.
pub(crate) fn end(reason: ExitReason) -> ! {
    let mut port = PortWriteOnly::<u32>::new(DEBUG_EXIT_PORT);
    // SAFETY: the device ends the emulator and touches no memory; without the device
    // the write has no effect.
    unsafe { port.write(reason as u32) };
    log!("the machine has no isa-debug-exit device, this CPU stops here");
    stop()
}

/// Stops this CPU for ever.
pub(crate) fn stop() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    claim();
    console::take_by_force();
    let prefix = log_text(HOST_ERROR_PREFIX);
    match info.location() {
        Some(at) => log!("{prefix}{} at {}:{}", info.message(), at.file(), at.line()),
        None => log!("{prefix}{}", info.message()),
    }
    end(ExitReason::HostError)
}
