//! VPs that are moved while they work: from the sidecar to Linux, which the guest must not
//! notice. The partner moves them, from `note moves begin` on, and types a byte at the end.

use super::{Machine, Needs, Test, test};
use crate::acpi::MAX_PROCESSORS;
use crate::ensure;
use crate::machine::apic::{self, ASSERT};
use crate::machine::clock::{halt_until, wait_for};
use crate::machine::console::{COM1, Console, DATA_READY, LINE_STATUS};
use crate::machine::interrupts::count_here;
use crate::machine::ports::{inb, outb};
use crate::machine::shared::Shared;
use crate::machine::vps::{self, current};
use crate::report::TestResult;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use x86_64::instructions::interrupts;
use x86_defs::apic::ApicRegister as Register;

pub(super) const TESTS: &[Test] = &[test(
    "moves.nothing_is_lost",
    Needs::Partner,
    nothing_is_lost,
)];

/// Asks a VP, and answers VP 0.
const ASK: u8 = 0x91;
/// Tick of a VP's timer.
const TICK: u8 = 0x92;
/// Period of a tick for each VP of the machine, in units of the timer at division by 1: all
/// together tick as often whatever their number.
const PERIOD: u32 = 150_000;
const DIVIDE_BY_ONE: u32 = 0b1011;
/// Ticks after which a VP uses a device.
const TICKS_PER_EXIT: u64 = 16;
/// A register of COM1 that only keeps a byte.
const SCRATCH: u16 = COM1 + 7;

static ASKED: [AtomicU64; MAX_PROCESSORS] = [const { AtomicU64::new(0) }; MAX_PROCESSORS];
static ANSWERED: [AtomicU64; MAX_PROCESSORS] = [const { AtomicU64::new(0) }; MAX_PROCESSORS];
static TICKS: [AtomicU64; MAX_PROCESSORS] = [const { AtomicU64::new(0) }; MAX_PROCESSORS];
/// VPs that found their registers changed.
static CHANGED: [AtomicBool; MAX_PROCESSORS] = [const { AtomicBool::new(false) }; MAX_PROCESSORS];
/// VPs of the machine.
static VPS: AtomicU32 = AtomicU32::new(1);
static STOP: AtomicBool = AtomicBool::new(false);

/// What a VP does: arms its timer, halts until the tick is there, uses a device now and then,
/// looks at its registers, and answers if it is asked. A tick that is lost is waited for in vain, and so is its answer.
fn work() {
    let vp = current();
    let mut registers = Shared::new(vp as u64);
    registers.load();
    let period = VPS.load(Ordering::Relaxed).saturating_mul(PERIOD);
    apic::write(Register::TIMER_DIVIDE, DIVIDE_BY_ONE);
    apic::write(Register::LVT_TIMER, TICK.into());
    interrupts::enable();
    while !STOP.load(Ordering::Acquire) {
        let before = count_here(TICK);
        apic::write(Register::TIMER_INITIAL, period);
        halt_until(|| count_here(TICK) != before);
        let ticks = TICKS[vp].fetch_add(1, Ordering::Relaxed);
        if ticks.is_multiple_of(TICKS_PER_EXIT) {
            outb(SCRATCH, vp as u8);
        }
        if registers.difference().is_some() {
            CHANGED[vp].store(true, Ordering::Relaxed);
        }
        let asked = ASKED[vp].load(Ordering::Acquire);
        if ANSWERED[vp].swap(asked, Ordering::AcqRel) != asked {
            apic::send(0, ASSERT | u32::from(ASK));
        }
    }
    interrupts::disable();
}

fn nothing_is_lost(machine: &Machine<'_>) -> TestResult {
    VPS.store(machine.tables.processors.len() as u32, Ordering::Relaxed);
    for (vp, apic_id) in machine.other_vps()? {
        ensure!(vps::begin_on(vp, apic_id, work), "VP {vp} is busy");
    }
    interrupts::enable();
    // The console cannot fail.
    let _ = writeln!(Console, "note moves begin");
    while inb(LINE_STATUS) & DATA_READY == 0 {
        for (vp, apic_id) in machine.vps().skip(1) {
            let asked = ASKED[vp].fetch_add(1, Ordering::AcqRel) + 1;
            apic::send(apic_id, ASSERT | u32::from(ASK));
            halt_until(|| ANSWERED[vp].load(Ordering::Acquire) == asked);
        }
    }
    inb(COM1);
    STOP.store(true, Ordering::Release);
    for (vp, _) in machine.vps().skip(1) {
        ensure!(
            wait_for(|| vps::is_idle(vp)),
            "VP {vp} does not come to an end"
        );
        let ticks = TICKS[vp].load(Ordering::Relaxed);
        ensure!(ticks > 0, "VP {vp} has had no tick");
        let changed = CHANGED[vp].load(Ordering::Relaxed);
        ensure!(!changed, "VP {vp} found registers changed");
    }
    interrupts::disable();
    Ok(())
}
