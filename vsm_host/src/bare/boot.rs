//! The way from the entry to the first VMRUN.

#![expect(unsafe_code, reason = "called from assembly")]

use super::clock;
use super::console::log;
use super::exit;
use super::heap;
use super::interrupts;
use super::lapic;
use vsm_host_defs::ExitReason;

/// Masks every line of the two interrupt controllers of old. The firmware leaves the
/// timer of old running into the first one; VTL2 does not know either of them, and would
/// take its interrupt for a double fault.
fn mask_8259() {
    use x86_64::instructions::port::PortWriteOnly;
    for data_port in [0x21, 0xa1] {
        // SAFETY: writes the mask register of an interrupt controller, which nobody uses.
        unsafe { PortWriteOnly::<u8>::new(data_port).write(0xff) };
    }
}

/// Where the first CPU enters Rust, with the address of `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn bsp_main(start_info: u64) -> ! {
    interrupts::load();
    heap::init();
    clock::start();
    log!("{} started", env!("CARGO_PKG_VERSION"));
    mask_8259();
    let f = clock::calibrate();
    log!(
        "start info at {start_info:#x}, APIC id {}, {f:?}",
        lapic::id()
    );
    exit::claim();
    exit::end(ExitReason::PowerOff)
}

/// Where every other CPU enters Rust; `arrival` counts from 0.
#[unsafe(no_mangle)]
extern "C" fn ap_main(arrival: u32) -> ! {
    interrupts::load();
    log!("AP {arrival}");
    exit::stop()
}
