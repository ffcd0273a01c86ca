//! How the shim dies: log, serial port, crash registers of the host, end of the VM.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use boot_events::SHIM_PANIC_PREFIX;
use minimal_rt::crash::{CrashMessage, TAG_BOOT_SHIM};
use minimal_rt::single::SingleThreaded;
use openhcl_boot::log::BootLog;

use super::arch;

/// The log, once there is one.
// SAFETY: VTL2 starts with one VP, and the shim never starts another or takes an
// interrupt.
pub(crate) static LOG: SingleThreaded<Option<&'static BootLog<'static>>> =
    unsafe { SingleThreaded::new(None) };

// SAFETY: as above.
static MESSAGE: SingleThreaded<CrashMessage> = unsafe { SingleThreaded::new(CrashMessage::new()) };

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}

/// Ends the boot: the text goes to everybody who may be listening.
pub(crate) fn fail(reason: fmt::Arguments<'_>) -> ! {
    if let Some(log) = LOG.borrow().and_then(|log| *log) {
        log.error(format_args!("{SHIM_PANIC_PREFIX}{reason}"));
    }
    // Frozen: the host may read the text later than we write the registers.
    let message = MESSAGE.freeze(|message| {
        // A text that is too long is cut.
        let _ = write!(message, "{SHIM_PANIC_PREFIX}{reason}");
    });
    if let Some(message) = message {
        arch::report_crash(TAG_BOOT_SHIM, message);
    }
    arch::end()
}
