//! Time stamps, and waiting with a deadline that only diagnoses.

#![expect(unsafe_code, reason = "RDTSC and HLT")]

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use x86_64::instructions::interrupts;

/// Ticks after which a wait has failed: tens of seconds on any machine, however loaded.
const DEADLINE_TICKS: u64 = 100_000_000_000;

/// Time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { _rdtsc() }
}

/// Spins until `condition` holds; false if it never does.
pub fn wait_for(condition: impl Fn() -> bool) -> bool {
    let start = tsc();
    while !condition() {
        if tsc().wrapping_sub(start) > DEADLINE_TICKS {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Halts until an interrupt has made `condition` true. Interrupts must be on; a wake-up
/// that gets lost hangs here, and the test's own deadline finds it.
pub fn halt_until(condition: impl Fn() -> bool) {
    loop {
        interrupts::disable();
        if condition() {
            interrupts::enable();
            return;
        }
        interrupts::enable_and_hlt();
    }
}

/// Lets interrupts in that are already pending.
pub fn interrupt_window() {
    // SAFETY: the shadow of STI lasts one instruction; after two, interrupts that are
    // pending have been taken.
    unsafe { asm!("sti", "nop", "nop") };
}

/// Spins for so many ticks. For things that must *not* happen in between: too short a
/// time can only hide them.
pub fn spin(ticks: u64) {
    let start = tsc();
    while tsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}
