//! The synthetic interrupt controller, its timers, and the reference time.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::apic;
use crate::machine::clock::{halt_until, interrupt_window, spin, tsc, wait_for};
use crate::machine::hyperv::overlay;
use crate::machine::interrupts::{Action, count_here, set_action};
use crate::machine::memory::Page;
use crate::machine::probe::{GP, cpuid, rdmsr, wrmsr};
use crate::report::{Failure, TestResult};
use hv_defs::cpuid::HV_CPUID_FEATURES;
use hv_defs::msr::{
    HV_X64_MSR_EOM, HV_X64_MSR_REFERENCE_TSC, HV_X64_MSR_SCONTROL, HV_X64_MSR_SIEFP,
    HV_X64_MSR_SIMP, HV_X64_MSR_SINT0, HV_X64_MSR_STIMER0_CONFIG, HV_X64_MSR_SVERSION,
    HV_X64_MSR_TIME_REF_COUNT,
};
use hv_defs::synic::{HvMessageType, SyntheticSource, TimerConfig};
use x86_64::instructions::interrupts;
use x86_defs::apic::ApicRegister as Register;

pub(super) const TESTS: &[Test] = &[
    test(
        "synic.registers_keep_what_is_written",
        Needs::Host,
        registers,
    ),
    test(
        "synic.registers_refuse_what_is_illegal",
        Needs::Host,
        illegal_values,
    ),
    test(
        "synic.reference_time_goes_on",
        Needs::Host,
        reference_time_goes_on,
    ),
    test(
        "synic.reference_page_tells_the_same_time",
        Needs::Host,
        reference_page,
    ),
    test("synic.direct_timer_fires_once", Needs::Host, direct_timer),
    test(
        "synic.direct_timer_fires_again_and_again",
        Needs::Host,
        periodic_direct_timer,
    ),
    test(
        "synic.direct_timer_wakes_from_halt",
        Needs::Host,
        direct_timer_wakes,
    ),
    test(
        "synic.timer_is_never_early",
        Needs::Host,
        timer_is_never_early,
    ),
    test(
        "synic.timer_sends_a_message",
        Needs::Host,
        timer_sends_a_message,
    ),
    test(
        "synic.messages_wait_for_their_slot",
        Needs::Host,
        messages_wait,
    ),
    test(
        "synic.masked_source_is_silent",
        Needs::Host,
        masked_source_is_silent,
    ),
    test("synic.auto_eoi_ends_by_itself", Needs::Host, auto_eoi),
];

/// Source for messages.
const SINT: u8 = 3;
/// Its vector.
const VECTOR: u8 = 0x91;
/// Vector of direct timers.
const DIRECT: u8 = 0xa1;
/// Words of a message slot.
const SLOT_WORDS: usize = 32;
/// 100 us, in units of 100 ns.
const SHORT: u64 = 1_000;
/// HV_CPUID_FEATURES, EDX: timers have a direct mode.
const DIRECT_TIMERS: u32 = 1 << 19;

fn now() -> Result<u64, Failure> {
    Ok(rdmsr(HV_X64_MSR_TIME_REF_COUNT)?)
}

fn timer_msrs(timer: u32) -> (u32, u32) {
    let config = HV_X64_MSR_STIMER0_CONFIG + 2 * timer;
    (config, config + 1)
}

fn set_source(source: SyntheticSource) -> TestResult {
    wrmsr(HV_X64_MSR_SINT0 + u32::from(SINT), source.into_bits())?;
    Ok(())
}

/// A SynIC with a message page and one source; off again when dropped.
struct Synic;

impl Synic {
    fn new(source: SyntheticSource) -> Result<Self, Failure> {
        Page::MESSAGES.fill(0);
        wrmsr(HV_X64_MSR_SCONTROL, 1)?;
        wrmsr(HV_X64_MSR_SIMP, overlay(Page::MESSAGES))?;
        // An overlay may have a content of its own.
        for word in 0..16 * SLOT_WORDS {
            Page::MESSAGES.write(word, 0);
        }
        set_source(source)?;
        Ok(Self)
    }

    fn plain() -> Result<Self, Failure> {
        Self::new(SyntheticSource::new().with_vector(VECTOR))
    }

    fn slot(&self, word: usize) -> u64 {
        Page::MESSAGES.read(usize::from(SINT) * SLOT_WORDS + word)
    }

    fn message_type(&self) -> HvMessageType {
        HvMessageType(self.slot(0) as u32)
    }

    fn is_pending(&self) -> bool {
        self.slot(0) >> 40 & 1 != 0
    }

    fn empty_slot(&self) -> TestResult {
        Page::MESSAGES.write(usize::from(SINT) * SLOT_WORDS, 0);
        wrmsr(HV_X64_MSR_EOM, 0)?;
        Ok(())
    }
}

impl Drop for Synic {
    fn drop(&mut self) {
        for timer in 0..4 {
            let _ = wrmsr(timer_msrs(timer).0, 0);
        }
        let _ = set_source(SyntheticSource::new().with_masked(true));
        let _ = self.empty_slot();
        let _ = wrmsr(HV_X64_MSR_SIMP, 0);
        let _ = wrmsr(HV_X64_MSR_SCONTROL, 0);
        interrupt_window();
        interrupts::disable();
    }
}

fn start_timer(timer: u32, config: TimerConfig, count: u64) -> TestResult {
    let (config_msr, count_msr) = timer_msrs(timer);
    wrmsr(config_msr, 0)?;
    wrmsr(count_msr, count)?;
    wrmsr(config_msr, config.with_enabled(true).into_bits())?;
    Ok(())
}

fn to_source() -> TimerConfig {
    TimerConfig::new().with_sint(SINT)
}

fn direct() -> Result<TimerConfig, Failure> {
    if cpuid(HV_CPUID_FEATURES)[3] & DIRECT_TIMERS == 0 {
        return Err(Failure::Skipped("timers have no direct mode"));
    }
    Ok(TimerConfig::new().with_direct(true).with_vector(DIRECT))
}

fn registers(_: &Machine<'_>) -> TestResult {
    let version = rdmsr(HV_X64_MSR_SVERSION)?;
    ensure!(version == 1, "version is {version}");
    for (msr, page) in [
        (HV_X64_MSR_SIMP, Page::MESSAGES),
        (HV_X64_MSR_SIEFP, Page::EVENTS),
    ] {
        wrmsr(msr, overlay(page))?;
        let found = rdmsr(msr)?;
        wrmsr(msr, 0)?;
        ensure!(found == overlay(page), "MSR {msr:#x} is {found:#x}");
    }
    for sint in 0..16 {
        let source = SyntheticSource::new()
            .with_vector(0x40 + sint as u8)
            .with_masked(true);
        wrmsr(HV_X64_MSR_SINT0 + sint, source.into_bits())?;
        let found = rdmsr(HV_X64_MSR_SINT0 + sint)?;
        ensure!(found == source.into_bits(), "source {sint} is {found:#x}");
    }
    Ok(())
}

fn illegal_values(_: &Machine<'_>) -> TestResult {
    // A vector below 16 without a mask.
    let result = set_source(SyntheticSource::new().with_vector(5));
    ensure!(result.is_err(), "a source takes vector 5");
    let result = wrmsr(HV_X64_MSR_SVERSION, 2);
    ensure!(
        result.is_err_and(|fault| fault.vector == GP),
        "writing the version gives {result:?}"
    );
    let result = wrmsr(timer_msrs(0).0, TimerConfig::RESERVED);
    ensure!(
        result.is_err_and(|fault| fault.vector == GP),
        "reserved bits of a timer give {result:?}"
    );
    Ok(())
}

fn reference_time_goes_on(_: &Machine<'_>) -> TestResult {
    let mut last = now()?;
    for _ in 0..200 {
        let next = now()?;
        ensure!(next >= last, "time goes back from {last} to {next}");
        last = next;
    }
    ensure!(
        wait_for(|| now().is_ok_and(|time| time > last)),
        "time stands still at {last}"
    );
    Ok(())
}

/// Time by the page: (TSC * scale >> 64) + offset.
fn time_by_page() -> Result<u64, Failure> {
    loop {
        let sequence = Page::REFERENCE_TSC.read(0) as u32;
        ensure!(sequence != 0, "the page has no time");
        let (scale, offset) = (Page::REFERENCE_TSC.read(1), Page::REFERENCE_TSC.read(2));
        let ticks = (u128::from(tsc()) * u128::from(scale)) >> 64;
        if Page::REFERENCE_TSC.read(0) as u32 == sequence {
            return Ok((ticks as u64).wrapping_add(offset));
        }
    }
}

fn reference_page(_: &Machine<'_>) -> TestResult {
    wrmsr(HV_X64_MSR_REFERENCE_TSC, overlay(Page::REFERENCE_TSC))?;
    let mut result = Ok(());
    for _ in 0..100 {
        let before = now()?;
        let by_page = time_by_page()?;
        let after = now()?;
        // Both are rounded down on their own.
        if by_page + 1 < before || by_page > after + 1 {
            result = Err(Failure::new(format_args!(
                "the page says {by_page}, the register {before} before and {after} after"
            )));
        }
    }
    wrmsr(HV_X64_MSR_REFERENCE_TSC, 0)?;
    result
}

fn direct_timer(_: &Machine<'_>) -> TestResult {
    let config = direct()?;
    let _synic = Synic::plain()?;
    for timer in 0..4 {
        let before = count_here(DIRECT);
        interrupts::enable();
        start_timer(timer, config, now()? + SHORT)?;
        ensure!(
            wait_for(|| count_here(DIRECT) != before),
            "timer {timer} does not fire"
        );
        spin(1_000_000);
        interrupts::disable();
        let count = count_here(DIRECT).wrapping_sub(before);
        ensure!(
            count == 1,
            "timer {timer} fires {count} times, expected once"
        );
        let found = rdmsr(timer_msrs(timer).0)?;
        ensure!(found & 1 == 0, "timer {timer} is still enabled: {found:#x}");
    }
    Ok(())
}

fn periodic_direct_timer(_: &Machine<'_>) -> TestResult {
    let config = direct()?.with_periodic(true);
    let _synic = Synic::plain()?;
    let before = count_here(DIRECT);
    interrupts::enable();
    start_timer(1, config, SHORT * 10)?;
    let fired = wait_for(|| count_here(DIRECT).wrapping_sub(before) >= 10);
    wrmsr(timer_msrs(1).0, 0)?;
    interrupt_window();
    let stopped = count_here(DIRECT);
    spin(10_000_000);
    interrupts::disable();
    ensure!(
        fired,
        "it fires {} times",
        count_here(DIRECT).wrapping_sub(before)
    );
    ensure!(
        count_here(DIRECT) == stopped,
        "it fires after it was stopped"
    );
    Ok(())
}

fn direct_timer_wakes(_: &Machine<'_>) -> TestResult {
    let config = direct()?;
    let _synic = Synic::plain()?;
    for _ in 0..50 {
        let before = count_here(DIRECT);
        start_timer(0, config, now()? + SHORT)?;
        halt_until(|| count_here(DIRECT) != before);
    }
    Ok(())
}

fn timer_is_never_early(_: &Machine<'_>) -> TestResult {
    let config = direct()?;
    let _synic = Synic::plain()?;
    interrupts::enable();
    for ahead in [0, SHORT, SHORT * 10, SHORT * 100] {
        let before = count_here(DIRECT);
        let deadline = now()? + ahead;
        start_timer(2, config, deadline)?;
        ensure!(
            wait_for(|| count_here(DIRECT) != before),
            "it does not fire"
        );
        let time = now()?;
        ensure!(
            time >= deadline,
            "it fires at {time}, expected {deadline} or later"
        );
    }
    Ok(())
}

fn timer_sends_a_message(_: &Machine<'_>) -> TestResult {
    let synic = Synic::plain()?;
    let before = count_here(VECTOR);
    interrupts::enable();
    let deadline = now()? + SHORT;
    start_timer(1, to_source(), deadline)?;
    ensure!(
        wait_for(|| count_here(VECTOR) != before),
        "no interrupt arrives"
    );
    let found = synic.message_type();
    ensure!(
        found == HvMessageType::TIMER_EXPIRED,
        "the message is {found:?}"
    );
    // Timer, expiration, delivery.
    let (timer, expired, delivered) = (synic.slot(2), synic.slot(3), synic.slot(4));
    ensure!(
        timer == 1 && expired == deadline && delivered >= expired,
        "timer {timer} expired at {expired} (expected {deadline}), delivered at {delivered}"
    );
    synic.empty_slot()
}

fn messages_wait(_: &Machine<'_>) -> TestResult {
    let synic = Synic::plain()?;
    let before = count_here(VECTOR);
    let count = || count_here(VECTOR).wrapping_sub(before);
    interrupts::enable();
    start_timer(0, to_source(), now()?)?;
    ensure!(
        wait_for(|| count() == 1),
        "the first message does not arrive"
    );
    start_timer(2, to_source(), now()?)?;
    ensure!(
        wait_for(|| synic.is_pending()),
        "the second message does not mark the first: {:#x}",
        synic.slot(0)
    );
    ensure!(count() == 1, "the slot is full and an interrupt arrives");
    ensure!(
        synic.slot(2) == 0,
        "the slot has the message of timer {}",
        synic.slot(2)
    );
    synic.empty_slot()?;
    ensure!(
        wait_for(|| count() == 2),
        "the second message does not follow"
    );
    ensure!(
        synic.slot(2) == 2,
        "the slot has the message of timer {}",
        synic.slot(2)
    );
    synic.empty_slot()
}

fn masked_source_is_silent(_: &Machine<'_>) -> TestResult {
    let synic = Synic::new(SyntheticSource::new().with_vector(VECTOR).with_masked(true))?;
    let before = count_here(VECTOR);
    interrupts::enable();
    start_timer(0, to_source(), now()?)?;
    spin(10_000_000);
    ensure!(count_here(VECTOR) == before, "an interrupt arrives");
    drop(synic);
    Ok(())
}

fn auto_eoi(_: &Machine<'_>) -> TestResult {
    let synic = Synic::new(
        SyntheticSource::new()
            .with_vector(VECTOR)
            .with_auto_eoi(true),
    )?;
    set_action(VECTOR, Action::Leave);
    for _ in 0..3 {
        let before = count_here(VECTOR);
        interrupts::enable();
        start_timer(0, to_source(), now()?)?;
        ensure!(
            wait_for(|| count_here(VECTOR) != before),
            "no interrupt arrives"
        );
        interrupts::disable();
        ensure!(!apic::bit(Register::ISR0, VECTOR), "it is in service");
        synic.empty_slot()?;
    }
    Ok(())
}

/// Has the host write a message, wherever the message page is.
pub(super) fn one_timer_message(timer: u32) {
    let send = || -> TestResult {
        wrmsr(HV_X64_MSR_SCONTROL, 1)?;
        set_source(SyntheticSource::new().with_vector(VECTOR))?;
        start_timer(timer, to_source(), now()?)?;
        spin(5_000_000);
        wrmsr(timer_msrs(timer).0, 0)?;
        wrmsr(HV_X64_MSR_SCONTROL, 0)?;
        Ok(())
    };
    // What is refused has reached nothing.
    let _ = send();
    interrupt_window();
    interrupts::disable();
}
