//! What exits, interrupts and messages between VPs cost, in ticks of the time stamp
//! counter. Prints figures and judges nothing.

use super::apic::in_x2apic_mode;
use super::smp::ping_pong;
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::apic;
use crate::machine::clock::{halt_until, interrupt_window, tsc, wait_for};
use crate::machine::console::{COM1, Console};
use crate::machine::hyperv::{raw, tsc_frequency};
use crate::machine::interrupts::count_here;
use crate::machine::memory::{read32, write32};
use crate::machine::ports::{inb, outb};
use crate::machine::probe::{cpuid, rdmsr, wrmsr};
use crate::machine::vps;
use crate::report::TestResult;
use core::fmt::Write;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};
use hv_defs::msr::HV_X64_MSR_VP_INDEX;
use x86_64::instructions::interrupts;
use x86_defs::apic::{ApicRegister as Register, TSC_DEADLINE};

pub(super) const TESTS: &[Test] = &[
    test("bench.port_read", Needs::Nothing, port_read),
    test("bench.port_write", Needs::Nothing, port_write),
    test(
        "bench.port_write_elsewhere",
        Needs::Vps,
        port_write_elsewhere,
    ),
    test("bench.mmio_read", Needs::Nothing, mmio_read),
    test("bench.cpuid", Needs::Nothing, cpuid_leaf),
    test("bench.msr_read", Needs::Host, msr_read),
    test("bench.hypercall", Needs::Host, hypercall),
    test("bench.apic_read", Needs::Nothing, apic_read),
    test("bench.self_ipi", Needs::Host, self_ipi),
    test("bench.self_ipi_xapic", Needs::Nothing, self_ipi_xapic),
    test("bench.timer_tick", Needs::Nothing, timer_tick),
    test(
        "bench.timer_tick_by_deadline",
        Needs::Host,
        timer_tick_by_deadline,
    ),
    test("bench.ipi_ping_pong", Needs::Vps, ipi_ping_pong),
    test("bench.work", Needs::Nothing, work),
];

/// A register of COM1 that only keeps a byte.
const SCRATCH: u16 = COM1 + 7;
/// Vector of the benches.
const VECTOR: u8 = 0xb1;
/// Rounds before the measurement.
const WARM_UP: u64 = 32;
/// Exits before the measurement on another VP: so many that it has left the sidecar if exits
/// are a reason.
const WARM_UP_ELSEWHERE: u64 = 512;

/// Prints a figure.
fn figure(name: &str, count: u64, ticks: u64) {
    let frequency = tsc_frequency();
    // The console cannot fail.
    let _ = writeln!(
        Console,
        "bench {name} count={count} ticks={ticks} hz={frequency}"
    );
}

/// Measures `work`.
fn measure<T>(name: &str, machine: &Machine<'_>, mut work: impl FnMut() -> T) -> TestResult {
    let count = machine.options.count.max(1);
    for _ in 0..WARM_UP {
        black_box(work());
    }
    let start = tsc();
    for _ in 0..count {
        black_box(work());
    }
    figure(name, count, tsc() - start);
    Ok(())
}

fn port_read(machine: &Machine<'_>) -> TestResult {
    measure("port_read", machine, || inb(SCRATCH))
}

fn port_write(machine: &Machine<'_>) -> TestResult {
    measure("port_write", machine, || outb(SCRATCH, 1))
}

static ELSEWHERE_COUNT: AtomicU64 = AtomicU64::new(0);
static ELSEWHERE_TICKS: AtomicU64 = AtomicU64::new(0);

/// As [`port_write`], on a VP whose CPU may be in the sidecar.
fn port_write_elsewhere(machine: &Machine<'_>) -> TestResult {
    let count = machine.options.count.max(1);
    ELSEWHERE_COUNT.store(count, Ordering::Relaxed);
    let Some((vp, apic_id)) = machine.other_vps()?.last() else {
        return Ok(());
    };
    let done = vps::run_on(vp, apic_id, || {
        for _ in 0..WARM_UP_ELSEWHERE {
            outb(SCRATCH, 1);
        }
        let start = tsc();
        for _ in 0..ELSEWHERE_COUNT.load(Ordering::Relaxed) {
            outb(SCRATCH, 1);
        }
        ELSEWHERE_TICKS.store(tsc() - start, Ordering::Relaxed);
    });
    ensure!(done, "VP {vp} does not come to an end");
    let ticks = ELSEWHERE_TICKS.load(Ordering::Relaxed);
    figure("port_write_elsewhere", count, ticks);
    Ok(())
}

fn mmio_read(machine: &Machine<'_>) -> TestResult {
    let Some(address) = machine.tables.io_apic else {
        crate::fail!("the MADT names no I/O APIC");
    };
    let address = u64::from(address);
    write32(address, 1);
    measure("mmio_read", machine, || read32(address + 0x10))
}

fn cpuid_leaf(machine: &Machine<'_>) -> TestResult {
    measure("cpuid", machine, || cpuid(0))
}

fn msr_read(machine: &Machine<'_>) -> TestResult {
    measure("msr_read", machine, || rdmsr(HV_X64_MSR_VP_INDEX))
}

fn hypercall(machine: &Machine<'_>) -> TestResult {
    crate::machine::hyperv::enable_hypercalls()?;
    measure("hypercall", machine, || raw(0xfff, 0, 0))
}

fn apic_read(machine: &Machine<'_>) -> TestResult {
    measure("apic_read", machine, || apic::read(Register::ID))
}

/// Runs `work` with the APIC as a Linux that knows its host uses it: by MSRs, and ending
/// interrupts in memory.
fn as_linux_does(work: impl FnOnce() -> TestResult) -> TestResult {
    in_x2apic_mode(|| {
        apic::set_eoi_assist(true)?;
        let result = work();
        apic::set_eoi_assist(false)?;
        result
    })
}

fn self_ipi(machine: &Machine<'_>) -> TestResult {
    as_linux_does(|| self_ipis("self_ipi", machine))
}

fn self_ipi_xapic(machine: &Machine<'_>) -> TestResult {
    self_ipis("self_ipi_xapic", machine)
}

fn self_ipis(name: &str, machine: &Machine<'_>) -> TestResult {
    interrupts::enable();
    let result = measure(name, machine, || {
        let before = count_here(VECTOR);
        apic::send_self(VECTOR);
        while count_here(VECTOR) == before {
            core::hint::spin_loop();
        }
    });
    interrupts::disable();
    result
}

/// From arming, past expiry, to the end of the interrupt: the timer is set to expire at
/// once, so nothing is waited for.
fn ticks(name: &str, machine: &Machine<'_>, mut arm: impl FnMut()) -> TestResult {
    let before = count_here(VECTOR);
    interrupts::enable();
    arm();
    let fires = wait_for(|| count_here(VECTOR) != before);
    interrupts::disable();
    ensure!(fires, "the timer does not fire");
    let result = measure(name, machine, || {
        let before = count_here(VECTOR);
        arm();
        halt_until(|| count_here(VECTOR) != before);
        interrupts::disable();
    });
    apic::write(Register::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    interrupt_window();
    interrupts::disable();
    result
}

fn timer_tick(machine: &Machine<'_>) -> TestResult {
    apic::write(Register::TIMER_DIVIDE, 0xb);
    apic::write(Register::LVT_TIMER, VECTOR.into());
    ticks("timer_tick", machine, || {
        apic::write(Register::TIMER_INITIAL, 1)
    })
}

fn timer_tick_by_deadline(machine: &Machine<'_>) -> TestResult {
    apic::write(Register::LVT_TIMER, (2 << 17) | u32::from(VECTOR));
    as_linux_does(|| {
        ticks("timer_tick_by_deadline", machine, || {
            // A fault here shows in the tick that does not come.
            let _ = wrmsr(TSC_DEADLINE, tsc());
        })
    })
}

fn ipi_ping_pong(machine: &Machine<'_>) -> TestResult {
    let Some((vp, apic_id)) = machine.other_vps()?.next() else {
        return Ok(());
    };
    ping_pong(vp, apic_id, WARM_UP)?;
    let count = machine.options.count.max(1);
    let start = tsc();
    ping_pong(vp, apic_id, count)?;
    figure("ipi_ping_pong", count, tsc() - start);
    Ok(())
}

fn work(machine: &Machine<'_>) -> TestResult {
    // No exits at all: what the guest's own instructions cost.
    let mut sum = crate::pattern::Checksum::EMPTY;
    let result = measure("work", machine, || {
        for byte in 0..=u8::MAX {
            sum = black_box(sum.with(byte));
        }
    });
    black_box(sum);
    result
}
