//! The host's clock: the time-stamp counter, measured against the HPET.
//!
//! The HPET tells its own period, so it needs no calibration. It is the clock until the
//! frequency of the TSC is known, and the ruler for it and for the timer of the local
//! APIC: one sample when the host begins, one when it has loaded the image. What lies
//! between is work that has to be done anyway, so that measuring costs no time.

#![expect(unsafe_code, reason = "HPET and local APIC registers")]

use super::lapic;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use spin::Once;
use vsm_host::clock::{Frequencies, HPET_BASE, Sample};

const CAPABILITIES: u64 = 0x00;
const CONFIGURATION: u64 = 0x10;
const MAIN_COUNTER: u64 = 0xf0;
const CONFIGURATION_ENABLE: u64 = 1;
/// Bit of the capabilities.
const COUNTER_HAS_64_BITS: u64 = 1 << 13;

/// Sampling is repeated to find one that no other activity of the machine stretched.
const SAMPLE_TRIES: u32 = 8;

/// Shorter measurements would be less exact than Linux wants its clock.
const SHORTEST_MEASUREMENT: Duration = Duration::from_millis(10);

static HPET_PERIOD_FS: AtomicU64 = AtomicU64::new(0);
static FIRST_SAMPLE: Once<Sample> = Once::new();
static FREQUENCIES: Once<Frequencies> = Once::new();

/// Reads a register of the HPET.
pub(crate) fn hpet_read(register: u64) -> u64 {
    // SAFETY: the register lies in the HPET's page, which the machine has (checked in
    // `start`) and which is identity-mapped; reading has no side effect.
    unsafe { core::ptr::read_volatile((HPET_BASE + register) as *const u64) }
}

/// The main counter of the HPET.
pub(crate) fn hpet_counter() -> u64 {
    hpet_read(MAIN_COUNTER)
}

/// Highest value of the main counter.
pub(crate) fn hpet_mask() -> u64 {
    if hpet_read(CAPABILITIES) & COUNTER_HAS_64_BITS != 0 {
        u64::MAX
    } else {
        u32::MAX.into()
    }
}

/// Femtoseconds per tick of the main counter.
pub(crate) fn hpet_period_fs() -> u64 {
    HPET_PERIOD_FS.load(Ordering::Relaxed)
}

/// Number of comparators.
pub(crate) fn hpet_timers() -> u64 {
    (hpet_read(CAPABILITIES) >> 8 & 0x1f) + 1
}

fn sample() -> Sample {
    let mut best: Option<(u64, Sample)> = None;
    for _ in 0..SAMPLE_TRIES {
        let before = tsc();
        let lapic = lapic::timer_elapsed();
        let hpet = hpet_counter();
        let after = tsc();
        let window = after.wrapping_sub(before);
        if best.is_none_or(|(shortest, _)| window < shortest) {
            best = Some((
                window,
                Sample {
                    hpet,
                    tsc: before.wrapping_add(window / 2),
                    lapic,
                },
            ));
        }
    }
    best.expect("at least one try").1
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every CPU that has long mode has RDTSC, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Starts the clock. Panics if the machine has no HPET.
pub(crate) fn start() {
    let period = hpet_read(CAPABILITIES) >> 32;
    // The HPET specification permits at most 100 ns; all ones means that nobody answers.
    assert!(
        (1..=100_000_000).contains(&period),
        "no HPET at {HPET_BASE:#x}: period {period} fs, expected 1 to 100000000"
    );
    HPET_PERIOD_FS.store(period, Ordering::Relaxed);
    let configuration = hpet_read(CONFIGURATION);
    // SAFETY: starts the main counter; no comparator is armed, so no interrupt follows.
    unsafe {
        core::ptr::write_volatile(
            (HPET_BASE + CONFIGURATION) as *mut u64,
            configuration | CONFIGURATION_ENABLE,
        );
    }
    lapic::timer_start();
    FIRST_SAMPLE.call_once(sample);
}

/// Ends the measurement of the frequencies; from here the TSC is the clock.
pub(crate) fn calibrate() -> Frequencies {
    *FREQUENCIES.call_once(|| {
        while since_start() < SHORTEST_MEASUREMENT {
            core::hint::spin_loop();
        }
        let first = FIRST_SAMPLE.get().expect("the clock was started");
        let last = sample();
        lapic::timer_stop();
        Frequencies::from_samples(first, &last, hpet_period_fs())
    })
}

/// Time since the host began.
pub(crate) fn since_start() -> Duration {
    let Some(first) = FIRST_SAMPLE.get() else {
        return Duration::ZERO;
    };
    match FREQUENCIES.get() {
        Some(frequencies) => frequencies.tsc_duration(tsc().saturating_sub(first.tsc)),
        None => {
            let ticks = hpet_counter().wrapping_sub(first.hpet);
            let fs = u128::from(ticks) * u128::from(hpet_period_fs());
            Duration::from_nanos((fs / 1_000_000) as u64)
        }
    }
}

/// TSC value at which the host began: zero of the partition's reference time.
pub(crate) fn start_tsc() -> u64 {
    FIRST_SAMPLE.get().map_or(0, |first| first.tsc)
}
