//! The timer of the local APIC.

use super::environment::TSC_DEADLINE;
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::apic;
use crate::machine::clock::{halt_until, interrupt_window, spin, tsc, wait_for};
use crate::machine::interrupts::count_here;
use crate::machine::probe::{cpuid, rdmsr, wrmsr};
use crate::report::{Failure, TestResult};
use hv_defs::msr::{HV_X64_MSR_APIC_FREQUENCY, HV_X64_MSR_TIME_REF_COUNT};
use x86_64::instructions::interrupts;
use x86_defs::apic::{self as apic_defs, ApicRegister as Register};

pub(super) const TESTS: &[Test] = &[
    test(
        "timer.counts_down_and_fires_once",
        Needs::Nothing,
        fires_once,
    ),
    test(
        "timer.fires_again_and_again",
        Needs::Nothing,
        fires_again_and_again,
    ),
    test(
        "timer.masked_does_not_fire",
        Needs::Nothing,
        masked_does_not_fire,
    ),
    test("timer.can_be_stopped", Needs::Nothing, can_be_stopped),
    test("timer.wakes_from_halt", Needs::Nothing, wakes_from_halt),
    test(
        "timer.is_not_lost_at_the_halt",
        Needs::Nothing,
        is_not_lost_at_the_halt,
    ),
    test("timer.is_never_early", Needs::Host, is_never_early),
    test("timer.divider_divides", Needs::Host, divider_divides),
    test(
        "timer.tsc_deadline_fires_once",
        Needs::Nothing,
        tsc_deadline_fires_once,
    ),
    test(
        "timer.tsc_deadline_is_never_early",
        Needs::Nothing,
        tsc_deadline_is_never_early,
    ),
    test(
        "timer.tsc_deadline_can_be_stopped",
        Needs::Nothing,
        tsc_deadline_can_be_stopped,
    ),
];

/// Vector of the timer.
const VECTOR: u8 = 0x71;
/// Modes in the vector table.
const PERIODIC: u32 = 1 << 17;
/// Mode in the vector table.
const DEADLINE: u32 = 2 << 17;
/// Divide by one.
const BY_1: u32 = 0xb;
/// Divide by 128.
const BY_128: u32 = 0xa;
/// A short time.
const SHORT: u32 = 100_000;
/// A time that no test waits for.
const LONG: u32 = u32::MAX;

fn arm(mode: u32, divider: u32, count: u32) {
    apic::write(Register::TIMER_DIVIDE, divider);
    apic::write(Register::LVT_TIMER, mode | u32::from(VECTOR));
    apic::write(Register::TIMER_INITIAL, count);
}

fn disarm() {
    apic::write(Register::TIMER_INITIAL, 0);
    apic::write(Register::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    interrupts::enable();
    interrupt_window();
    interrupts::disable();
}

/// Runs with interrupts on, and with the timer off afterwards.
fn timed<T>(work: impl FnOnce() -> T) -> T {
    interrupts::enable();
    let result = work();
    disarm();
    result
}

fn fires_once(_: &Machine<'_>) -> TestResult {
    let before = count_here(VECTOR);
    let fired = timed(|| {
        arm(0, BY_1, SHORT);
        wait_for(|| count_here(VECTOR) != before)
    });
    ensure!(fired, "it does not fire");
    arm(0, BY_1, SHORT);
    disarm();
    let start = count_here(VECTOR);
    timed(|| {
        arm(0, BY_1, SHORT);
        wait_for(|| count_here(VECTOR) != start);
        spin(10_000_000);
    });
    let count = count_here(VECTOR).wrapping_sub(start);
    ensure!(count == 1, "it fires {count} times, expected once");
    // It goes down, never up.
    arm(0, BY_128, LONG);
    let mut last = apic::read(Register::TIMER_CURRENT);
    let first = last;
    let moved = wait_for(|| apic::read(Register::TIMER_CURRENT) != first);
    for _ in 0..100 {
        let now = apic::read(Register::TIMER_CURRENT);
        ensure!(now <= last, "it went up from {last:#x} to {now:#x}");
        last = now;
    }
    disarm();
    ensure!(moved, "it stands still at {first:#x}");
    Ok(())
}

fn fires_again_and_again(_: &Machine<'_>) -> TestResult {
    let before = count_here(VECTOR);
    let fired = timed(|| {
        arm(PERIODIC, BY_1, SHORT * 10);
        wait_for(|| count_here(VECTOR).wrapping_sub(before) >= 10)
    });
    let count = count_here(VECTOR).wrapping_sub(before);
    ensure!(fired, "it fires {count} times, expected 10 and more");
    let stopped = count_here(VECTOR);
    interrupts::enable();
    spin(10_000_000);
    interrupts::disable();
    ensure!(
        count_here(VECTOR) == stopped,
        "it fires after it was stopped"
    );
    Ok(())
}

fn masked_does_not_fire(_: &Machine<'_>) -> TestResult {
    let before = count_here(VECTOR);
    timed(|| {
        arm(apic::MASKED, BY_1, SHORT);
        wait_for(|| apic::read(Register::TIMER_CURRENT) == 0);
        spin(1_000_000);
    });
    let count = count_here(VECTOR).wrapping_sub(before);
    ensure!(count == 0, "it fires {count} times");
    Ok(())
}

fn can_be_stopped(_: &Machine<'_>) -> TestResult {
    let before = count_here(VECTOR);
    arm(0, BY_128, LONG);
    apic::write(Register::TIMER_INITIAL, 0);
    let current = apic::read(Register::TIMER_CURRENT);
    disarm();
    ensure!(current == 0, "it still counts: {current:#x}");
    ensure!(count_here(VECTOR) == before, "it fires");
    Ok(())
}

fn wakes_from_halt(_: &Machine<'_>) -> TestResult {
    for _ in 0..50 {
        let before = count_here(VECTOR);
        arm(0, BY_1, SHORT);
        halt_until(|| count_here(VECTOR) != before);
    }
    disarm();
    Ok(())
}

/// The timer expires before, between and behind STI and HLT. One that comes between them
/// and is taken there is waited for again, for ever.
fn is_not_lost_at_the_halt(_: &Machine<'_>) -> TestResult {
    const ROUNDS: u32 = 4_000;
    const STEP: u32 = 128;
    for round in 0..ROUNDS {
        let before = count_here(VECTOR);
        interrupts::disable();
        arm(0, BY_1, 1 + round % 400 * STEP);
        halt_until(|| count_here(VECTOR) != before);
    }
    disarm();
    Ok(())
}

/// Time of the partition, in 100 ns.
fn reference_time() -> Result<u64, Failure> {
    Ok(rdmsr(HV_X64_MSR_TIME_REF_COUNT)?)
}

/// Waits for one interrupt; how long that took, in 100 ns.
fn duration(divider: u32, count: u32) -> Result<u64, Failure> {
    let before = count_here(VECTOR);
    let start = reference_time()?;
    let fired = timed(|| {
        arm(0, divider, count);
        wait_for(|| count_here(VECTOR) != before)
    });
    ensure!(fired, "it does not fire");
    Ok(reference_time()? - start)
}

fn is_never_early(_: &Machine<'_>) -> TestResult {
    let frequency = rdmsr(HV_X64_MSR_APIC_FREQUENCY)?;
    ensure!(frequency > 0, "the frequency is 0");
    for count in [SHORT, SHORT * 10, SHORT * 50] {
        let expected = u64::from(count) * 10_000_000 / frequency;
        let found = duration(BY_1, count)?;
        // Both clocks are read with a granularity.
        ensure!(
            found + 2 >= expected,
            "{count} ticks took {found} * 100 ns, expected {expected} at least"
        );
    }
    Ok(())
}

fn divider_divides(_: &Machine<'_>) -> TestResult {
    let frequency = rdmsr(HV_X64_MSR_APIC_FREQUENCY)?;
    let expected = u64::from(SHORT) * 128 * 10_000_000 / frequency;
    let found = duration(BY_128, SHORT)?;
    ensure!(
        found + 2 >= expected,
        "{SHORT} ticks by 128 took {found} * 100 ns, expected {expected} at least"
    );
    Ok(())
}

fn with_deadline(work: impl FnOnce() -> TestResult) -> TestResult {
    if cpuid(1)[2] & TSC_DEADLINE == 0 {
        return Err(Failure::Skipped("there is no TSC deadline"));
    }
    apic::write(Register::LVT_TIMER, DEADLINE | u32::from(VECTOR));
    let result = timed(work);
    wrmsr(apic_defs::TSC_DEADLINE, 0)?;
    result
}

fn tsc_deadline_fires_once(_: &Machine<'_>) -> TestResult {
    with_deadline(|| {
        let before = count_here(VECTOR);
        // One in the past fires at once.
        wrmsr(apic_defs::TSC_DEADLINE, 1)?;
        ensure!(
            wait_for(|| count_here(VECTOR) != before),
            "it does not fire"
        );
        spin(1_000_000);
        let count = count_here(VECTOR).wrapping_sub(before);
        ensure!(count == 1, "it fires {count} times, expected once");
        let armed = rdmsr(apic_defs::TSC_DEADLINE)?;
        ensure!(
            armed == 0,
            "the deadline is {armed:#x} afterwards, expected 0"
        );
        Ok(())
    })
}

fn tsc_deadline_is_never_early(_: &Machine<'_>) -> TestResult {
    with_deadline(|| {
        for ticks in [0, 1000, 100_000, 10_000_000] {
            let before = count_here(VECTOR);
            let deadline = tsc() + ticks;
            wrmsr(apic_defs::TSC_DEADLINE, deadline)?;
            ensure!(
                wait_for(|| count_here(VECTOR) != before),
                "it does not fire"
            );
            let now = tsc();
            ensure!(
                now >= deadline,
                "it fires at {now}, expected {deadline} or later"
            );
        }
        Ok(())
    })
}

fn tsc_deadline_can_be_stopped(_: &Machine<'_>) -> TestResult {
    with_deadline(|| {
        let before = count_here(VECTOR);
        let deadline = tsc() + 50_000_000_000;
        wrmsr(apic_defs::TSC_DEADLINE, deadline)?;
        let armed = rdmsr(apic_defs::TSC_DEADLINE)?;
        ensure!(
            armed == deadline,
            "deadline is {armed:#x}, expected {deadline:#x}"
        );
        wrmsr(apic_defs::TSC_DEADLINE, 0)?;
        let armed = rdmsr(apic_defs::TSC_DEADLINE)?;
        ensure!(armed == 0, "deadline is {armed:#x}, expected 0");
        spin(1_000_000);
        ensure!(count_here(VECTOR) == before, "it fires");
        Ok(())
    })
}
