//! More than one VP: start, interrupts between them, common memory and time.

use super::{Machine, Needs, Test, test};
use crate::acpi::MAX_PROCESSORS;
use crate::ensure;
use crate::machine::apic::{self, ASSERT, NMI, TO_ALL, TO_OTHERS};
use crate::machine::clock::{spin, tsc, wait_for};
use crate::machine::interrupts::{count, nmis};
use crate::machine::probe::{cpuid, cpuid_subleaf, rdmsr};
use crate::machine::vps::{self, current};
use crate::report::TestResult;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hv_defs::msr::HV_X64_MSR_VP_INDEX;
use x86_64::instructions::interrupts;

pub(super) const TESTS: &[Test] = &[
    test("smp.all_vps_start", Needs::Vps, all_vps_start),
    test(
        "smp.vps_know_who_they_are",
        Needs::Vps,
        vps_know_who_they_are,
    ),
    test(
        "smp.interrupts_reach_each_vp",
        Needs::Vps,
        interrupts_reach_each_vp,
    ),
    test("smp.broadcasts_reach_all", Needs::Vps, broadcasts_reach_all),
    test("smp.nmis_reach_each_vp", Needs::Vps, nmis_reach_each_vp),
    test(
        "smp.vps_answer_each_other",
        Needs::Vps,
        vps_answer_each_other,
    ),
    test("smp.memory_is_common", Needs::Vps, memory_is_common),
    test("smp.time_never_goes_back", Needs::Vps, time_never_goes_back),
    test(
        "smp.vps_start_again_after_init",
        Needs::Vps,
        vps_start_again_after_init,
    ),
    test(
        "smp.starting_a_running_vp_does_nothing",
        Needs::Vps,
        starting_a_running_vp,
    ),
];

/// A vector between VPs.
const VECTOR: u8 = 0x81;
/// Rounds of work in common.
const ROUNDS: u64 = 2_000;

fn all_vps_start(machine: &Machine<'_>) -> TestResult {
    for (vp, _) in machine.other_vps()? {
        ensure!(vps::is_online(vp), "VP {vp} does not run");
    }
    Ok(())
}

/// What each VP has found about itself.
static FOUND: [AtomicU64; MAX_PROCESSORS] = [const { AtomicU64::new(0) }; MAX_PROCESSORS];
static FOUND_TOPOLOGY: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];

fn look_at_oneself() {
    let by_apic = u64::from(apic::id());
    let by_cpuid = u64::from(cpuid(1)[1] >> 24);
    let index = rdmsr(HV_X64_MSR_VP_INDEX).unwrap_or(0xff);
    FOUND[current()].store(
        by_apic | (by_cpuid << 16) | (index << 32),
        Ordering::Release,
    );
    FOUND_TOPOLOGY[current()].store(cpuid_subleaf(0xb, 0)[3], Ordering::Release);
}

fn vps_know_who_they_are(machine: &Machine<'_>) -> TestResult {
    for (vp, apic_id) in machine.other_vps()? {
        ensure!(
            vps::run_on(vp, apic_id, look_at_oneself),
            "VP {vp} does nothing"
        );
        let found = FOUND[vp].load(Ordering::Acquire);
        let (by_apic, by_cpuid, index) = (found & 0xffff, found >> 16 & 0xffff, found >> 32);
        let expected = u64::from(apic_id);
        ensure!(
            by_apic == expected && by_cpuid == expected,
            "VP {vp} has id {by_apic} in its APIC, {by_cpuid} in CPUID, expected {apic_id}"
        );
        if machine.has_host {
            ensure!(index == vp as u64, "VP {vp} has number {index}");
            let topology = FOUND_TOPOLOGY[vp].load(Ordering::Acquire);
            ensure!(
                topology == apic_id,
                "VP {vp} has x2APIC id {topology} in CPUID"
            );
        }
    }
    Ok(())
}

fn interrupts_reach_each_vp(machine: &Machine<'_>) -> TestResult {
    for (vp, apic_id) in machine.other_vps()? {
        for round in 1..=20 {
            let before = count(vp, VECTOR);
            apic::send(apic_id, ASSERT | u32::from(VECTOR));
            ensure!(
                wait_for(|| count(vp, VECTOR) != before),
                "interrupt {round} does not reach VP {vp}"
            );
        }
    }
    Ok(())
}

fn broadcasts_reach_all(machine: &Machine<'_>) -> TestResult {
    machine.start_all()?;
    for (shorthand, itself) in [(TO_OTHERS, 0), (TO_ALL, 1)] {
        let mut before = [0; MAX_PROCESSORS];
        for (vp, _) in machine.vps() {
            before[vp] = count(vp, VECTOR);
        }
        interrupts::enable();
        apic::send(0, shorthand | ASSERT | u32::from(VECTOR));
        for (vp, _) in machine.vps().skip(1) {
            let arrived = wait_for(|| count(vp, VECTOR) == before[vp] + 1);
            ensure!(arrived, "it does not reach VP {vp}");
        }
        if itself == 1 {
            ensure!(
                wait_for(|| count(0, VECTOR) == before[0] + 1),
                "it does not reach its sender"
            );
        }
        interrupts::disable();
        ensure!(
            count(0, VECTOR) == before[0] + itself,
            "it reaches its sender"
        );
    }
    Ok(())
}

fn nmis_reach_each_vp(machine: &Machine<'_>) -> TestResult {
    for (vp, apic_id) in machine.other_vps()? {
        let before = nmis(vp);
        apic::send(apic_id, NMI | ASSERT);
        ensure!(wait_for(|| nmis(vp) != before), "it does not reach VP {vp}");
    }
    Ok(())
}

/// Whose turn it is.
static TURN: AtomicU64 = AtomicU64::new(0);

fn answer() {
    // VP 0 asks by interrupts; every odd turn is this VP's.
    loop {
        let turn = TURN.load(Ordering::Acquire);
        if turn == u64::MAX {
            return;
        }
        if turn % 2 == 1 {
            TURN.store(turn + 1, Ordering::Release);
            apic::send(0, ASSERT | u32::from(VECTOR));
        } else {
            interrupts::disable();
            if TURN.load(Ordering::Acquire) == turn {
                interrupts::enable_and_hlt();
            } else {
                interrupts::enable();
            }
        }
    }
}

fn vps_answer_each_other(machine: &Machine<'_>) -> TestResult {
    for (vp, apic_id) in machine.other_vps()? {
        ping_pong(vp, apic_id, 100)?;
    }
    Ok(())
}

/// Sends `rounds` interrupts to a VP and waits, halted, for the answer of each.
pub(super) fn ping_pong(vp: usize, apic_id: u32, rounds: u64) -> TestResult {
    TURN.store(0, Ordering::Release);
    ensure!(vps::begin_on(vp, apic_id, answer), "VP {vp} is busy");
    interrupts::enable();
    for round in 0..rounds {
        TURN.store(2 * round + 1, Ordering::Release);
        apic::send(apic_id, ASSERT | u32::from(VECTOR));
        crate::machine::clock::halt_until(|| TURN.load(Ordering::Acquire) != 2 * round + 1);
    }
    TURN.store(u64::MAX, Ordering::Release);
    apic::send(apic_id, ASSERT | u32::from(VECTOR));
    let ended = wait_for(|| vps::is_idle(vp));
    interrupts::disable();
    ensure!(ended, "VP {vp} does not come to an end");
    Ok(())
}

static SUM: AtomicU64 = AtomicU64::new(0);

fn add() {
    for _ in 0..ROUNDS {
        SUM.fetch_add(1, Ordering::AcqRel);
    }
}

fn memory_is_common(machine: &Machine<'_>) -> TestResult {
    machine.start_all()?;
    let others = machine.tables.processors.len() as u64 - 1;
    SUM.store(0, Ordering::Release);
    for (vp, apic_id) in machine.vps().skip(1) {
        ensure!(vps::begin_on(vp, apic_id, add), "VP {vp} is busy");
    }
    add();
    for (vp, _) in machine.vps().skip(1) {
        ensure!(
            wait_for(|| vps::is_idle(vp)),
            "VP {vp} does not come to an end"
        );
    }
    let (found, expected) = (SUM.load(Ordering::Acquire), (others + 1) * ROUNDS);
    ensure!(found == expected, "the sum is {found}, expected {expected}");
    Ok(())
}

static LATEST: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU64 = AtomicU64::new(0);

fn watch_time() {
    for _ in 0..ROUNDS {
        let latest = LATEST.load(Ordering::SeqCst);
        let now = tsc();
        if now < latest {
            BACKWARDS.fetch_max(latest - now, Ordering::SeqCst);
        }
        LATEST.fetch_max(now, Ordering::SeqCst);
    }
}

fn time_never_goes_back(machine: &Machine<'_>) -> TestResult {
    machine.start_all()?;
    LATEST.store(0, Ordering::SeqCst);
    for (vp, apic_id) in machine.vps().skip(1) {
        ensure!(vps::begin_on(vp, apic_id, watch_time), "VP {vp} is busy");
    }
    watch_time();
    for (vp, _) in machine.vps().skip(1) {
        ensure!(
            wait_for(|| vps::is_idle(vp)),
            "VP {vp} does not come to an end"
        );
    }
    let back = BACKWARDS.load(Ordering::SeqCst);
    ensure!(
        back == 0,
        "the time stamp counter differs by {back} between VPs"
    );
    Ok(())
}

fn vps_start_again_after_init(machine: &Machine<'_>) -> TestResult {
    for (vp, apic_id) in machine.other_vps()? {
        for round in 1..=3 {
            vps::forget(vp);
            ensure!(
                vps::start(vp, apic_id),
                "VP {vp} does not start again, round {round}"
            );
            ensure!(
                vps::run_on(vp, apic_id, look_at_oneself),
                "VP {vp} does nothing"
            );
        }
        // INIT alone stops it.
        let before = count(vp, VECTOR);
        apic::send(apic_id, apic::INIT);
        spin(1_000_000);
        apic::send(apic_id, ASSERT | u32::from(VECTOR));
        spin(10_000_000);
        ensure!(count(vp, VECTOR) == before, "VP {vp} runs after INIT");
        vps::forget(vp);
        ensure!(vps::start(vp, apic_id), "VP {vp} does not start after INIT");
    }
    Ok(())
}

fn starting_a_running_vp(machine: &Machine<'_>) -> TestResult {
    for (vp, apic_id) in machine.other_vps()? {
        apic::send(apic_id, apic::STARTUP | 0x10);
        ensure!(
            vps::run_on(vp, apic_id, look_at_oneself),
            "VP {vp} does nothing"
        );
    }
    Ok(())
}
