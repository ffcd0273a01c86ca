//! The local APIC of VP 0: priorities, order, modes, and what no guest should send.

use super::environment::X2APIC;
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::apic::{self, ASSERT, NMI, SMI, TO_ALL, TO_OTHERS, TO_SELF};
use crate::machine::clock::{interrupt_window, spin, wait_for};
use crate::machine::interrupts::{
    Action, ENDED, clear_sequence, count_here, nmis, sequence, set_action,
};
use crate::machine::probe::{GP, cpuid, rdmsr, wrmsr};
use crate::report::{Failure, TestResult};
use x86_64::instructions::interrupts;
use x86_64::registers::control::{Cr8, PriorityClass};
use x86_defs::apic::{ApicErrors, ApicRegister as Register, X2APIC_MSR_FIRST};

pub(super) const TESTS: &[Test] = &[
    test("apic.tells_what_it_is", Needs::Nothing, tells_what_it_is),
    test("apic.sends_to_itself", Needs::Nothing, sends_to_itself),
    test(
        "apic.keeps_what_is_in_service",
        Needs::Nothing,
        keeps_what_is_in_service,
    ),
    test(
        "apic.requests_of_one_vector_merge",
        Needs::Nothing,
        requests_of_one_vector_merge,
    ),
    test(
        "apic.task_priority_holds_back",
        Needs::Nothing,
        task_priority_holds_back,
    ),
    test(
        "apic.higher_priority_interrupts_lower",
        Needs::Nothing,
        higher_interrupts_lower,
    ),
    test(
        "apic.highest_request_comes_first",
        Needs::Nothing,
        highest_request_comes_first,
    ),
    test("apic.delivers_nmi", Needs::Nothing, delivers_nmi),
    test(
        "apic.switched_off_it_delivers_nothing",
        Needs::Nothing,
        switched_off,
    ),
    test(
        "apic.x2apic_mode_is_entered_and_left",
        Needs::Host,
        x2apic_mode,
    ),
    test(
        "apic.x2apic_refuses_reserved_bits",
        Needs::Host,
        x2apic_refuses_reserved_bits,
    ),
    test("apic.eoi_assist", Needs::Host, eoi_assist),
    test(
        "apic.illegal_vectors_are_errors",
        Needs::Host,
        illegal_vectors_are_errors,
    ),
    test(
        "apic.wild_messages_are_harmless",
        Needs::Host,
        wild_messages_are_harmless,
    ),
];

/// A vector for tests; its neighbours in the next priority classes are free as well.
const VECTOR: u8 = 0x60;

/// Interrupts that are pending are taken, then they are off again.
fn window() {
    interrupt_window();
    interrupts::disable();
}

fn sends_once(what: &str, send: impl Fn()) -> TestResult {
    let before = count_here(VECTOR);
    interrupts::enable();
    send();
    let arrived = wait_for(|| count_here(VECTOR) != before);
    interrupts::disable();
    let count = count_here(VECTOR).wrapping_sub(before);
    ensure!(
        arrived && count == 1,
        "{what}: {count} interrupts, expected 1"
    );
    Ok(())
}

fn tells_what_it_is(_: &Machine<'_>) -> TestResult {
    let id = apic::id();
    ensure!(id == 0, "id of VP 0 is {id}");
    ensure!(cpuid(1)[1] >> 24 == 0, "CPUID says {:#x}", cpuid(1)[1]);
    let version = apic::read(Register::VERSION);
    ensure!(
        (0x10..0x20).contains(&(version & 0xff)),
        "version is {version:#x}"
    );
    ensure!(version >> 16 & 0xff >= 3, "version is {version:#x}");
    let base = apic::base();
    ensure!(base.bsp() && base.enabled(), "base is {base:?}");
    Ok(())
}

fn sends_to_itself(_: &Machine<'_>) -> TestResult {
    let command = ASSERT | u32::from(VECTOR);
    sends_once("shorthand", || apic::send(0, TO_SELF | command))?;
    sends_once("physical id", || apic::send(0, command))?;
    sends_once("all", || apic::send(0, TO_ALL | command))?;
    sends_once("lowest priority", || apic::send(0, command | (1 << 8)))?;
    if !apic::is_x2apic() {
        apic::write(Register::DFR, u32::MAX);
        apic::write(Register::LDR, 1 << 24);
        sends_once("logical", || apic::send(1, command | (1 << 11)))?;
    }
    Ok(())
}

fn keeps_what_is_in_service(_: &Machine<'_>) -> TestResult {
    set_action(VECTOR, Action::Leave);
    apic::send_self(VECTOR);
    ensure!(apic::bit(Register::IRR0, VECTOR), "it is not requested");
    ensure!(
        !apic::bit(Register::ISR0, VECTOR),
        "it is in service already"
    );
    window();
    ensure!(!apic::bit(Register::IRR0, VECTOR), "it is still requested");
    ensure!(apic::bit(Register::ISR0, VECTOR), "it is not in service");
    ensure!(
        !apic::bit(Register::TMR0, VECTOR),
        "it counts as level triggered"
    );
    let priority = apic::read(Register::PPR);
    ensure!(
        priority & 0xf0 == u32::from(VECTOR),
        "priority is {priority:#x}"
    );
    apic::eoi();
    ensure!(
        !apic::bit(Register::ISR0, VECTOR),
        "it is in service after its end"
    );
    let priority = apic::read(Register::PPR);
    ensure!(priority == 0, "priority is {priority:#x} after the end");
    // An end of nothing.
    apic::eoi();
    Ok(())
}

fn requests_of_one_vector_merge(_: &Machine<'_>) -> TestResult {
    let before = count_here(VECTOR);
    for _ in 0..3 {
        apic::send_self(VECTOR);
    }
    window();
    window();
    let count = count_here(VECTOR).wrapping_sub(before);
    ensure!(
        count == 1,
        "{count} interrupts of three requests, expected 1"
    );
    // While it is in service, one more is kept.
    set_action(VECTOR, Action::Leave);
    apic::send_self(VECTOR);
    window();
    apic::send_self(VECTOR);
    apic::send_self(VECTOR);
    window();
    let count = count_here(VECTOR).wrapping_sub(before);
    ensure!(
        count == 2,
        "{count} interrupts while in service, expected 2"
    );
    apic::eoi();
    window();
    apic::eoi();
    window();
    let count = count_here(VECTOR).wrapping_sub(before);
    ensure!(count == 3, "{count} interrupts after the end, expected 3");
    Ok(())
}

fn cr8() -> u8 {
    Cr8::read_raw() as u8
}

/// Writes CR8.
fn set_cr8(class: u8) {
    if let Some(class) = PriorityClass::new(class) {
        Cr8::write(Some(class));
    } else {
        Cr8::write(None);
    }
}

fn task_priority_holds_back(_: &Machine<'_>) -> TestResult {
    set_cr8(6);
    let found = apic::read(Register::TPR);
    ensure!(found == 0x60, "CR8 is 6, TPR is {found:#x}");
    apic::write(Register::TPR, 0x7f);
    ensure!(cr8() == 7, "TPR is 0x7f, CR8 is {:#x}", cr8());
    let priority = apic::read(Register::PPR);
    ensure!(priority == 0x7f, "TPR is 0x7f, PPR is {priority:#x}");

    let before = (count_here(VECTOR), count_here(VECTOR + 0x20));
    set_cr8(6);
    apic::send_self(VECTOR);
    apic::send_self(VECTOR + 0x20);
    window();
    let counts = || {
        (
            count_here(VECTOR).wrapping_sub(before.0),
            count_here(VECTOR + 0x20).wrapping_sub(before.1),
        )
    };
    let held = counts();
    set_cr8(5);
    window();
    let released = counts();
    apic::write(Register::TPR, 0);
    ensure!(held == (0, 1), "at priority 6: {held:?}, expected (0, 1)");
    ensure!(
        released == (1, 1),
        "at priority 5: {released:?}, expected (1, 1)"
    );
    Ok(())
}

fn expect_sequence(expected: &[u32]) -> TestResult {
    let mut all = [0; 16];
    let length = sequence(&mut all);
    let found = &all[..length];
    ensure!(
        found == expected,
        "order is {found:x?}, expected {expected:x?}"
    );
    Ok(())
}

fn higher_interrupts_lower(_: &Machine<'_>) -> TestResult {
    higher_interrupts_lower_here()
}

fn higher_interrupts_lower_here() -> TestResult {
    set_action(VECTOR, Action::Nest);
    clear_sequence();
    apic::send_self(VECTOR);
    window();
    window();
    let [own, above, below] = [VECTOR, VECTOR + 0x10, VECTOR - 0x10].map(u32::from);
    expect_sequence(&[own, above, own | ENDED, below])
}

fn highest_request_comes_first(_: &Machine<'_>) -> TestResult {
    clear_sequence();
    for vector in [0x41, 0x93, 0x52, 0x92, 0xa0] {
        apic::send_self(vector);
    }
    for _ in 0..5 {
        window();
    }
    expect_sequence(&[0xa0, 0x93, 0x92, 0x52, 0x41])
}

fn delivers_nmi(_: &Machine<'_>) -> TestResult {
    // Interrupts are off: it does not care.
    let before = nmis(0);
    apic::send(apic::id(), NMI | ASSERT);
    ensure!(wait_for(|| nmis(0) != before), "it does not arrive");
    let count = nmis(0).wrapping_sub(before);
    ensure!(count == 1, "{count} arrive, expected 1");
    Ok(())
}

fn switched_off(machine: &Machine<'_>) -> TestResult {
    let before = count_here(VECTOR);
    apic::write(Register::SVR, apic::SPURIOUS.into());
    apic::send(0, ASSERT | u32::from(VECTOR));
    window();
    let off = count_here(VECTOR).wrapping_sub(before);
    let lvt = apic::read(Register::LVT_LINT0);
    apic::enable();
    window();
    ensure!(off == 0, "{off} interrupts arrive");
    ensure!(
        // QEMU's leaves it open.
        !machine.has_host || lvt & apic::MASKED != 0,
        "LINT0 is {lvt:#x}, expected masked"
    );
    sends_once("switched on again", || apic::send_self(VECTOR))
}

/// The host says in memory when an interrupt may end without a word (TLFS "EOI Assist").
fn eoi_assist(_: &Machine<'_>) -> TestResult {
    apic::set_eoi_assist(true)?;
    let before = apic::assisted();
    let one_by_one = (0..4).try_for_each(|_| sends_once("alone", || apic::send_self(VECTOR)));
    let assisted = apic::assisted() - before;
    // One that waits for the end of another needs the access: else it would wait for ever.
    let in_turn = higher_interrupts_lower_here();
    apic::set_eoi_assist(false)?;
    one_by_one?;
    in_turn?;
    ensure!(
        assisted == 4,
        "{assisted} of 4 interrupts end without an access"
    );
    let before = apic::assisted();
    sends_once("without a page", || apic::send_self(VECTOR))?;
    ensure!(
        apic::assisted() == before,
        "a page that was taken back is in use"
    );
    Ok(())
}

/// Runs `work` in x2APIC mode and goes back to the mode before.
pub(super) fn in_x2apic_mode(work: impl FnOnce() -> TestResult) -> TestResult {
    if cpuid(1)[2] & X2APIC == 0 {
        return Err(Failure::Skipped("there is no x2APIC"));
    }
    let before = apic::is_x2apic();
    apic::set_x2apic(true)?;
    let result = work();
    apic::set_x2apic(before)?;
    result
}

fn x2apic_mode(_: &Machine<'_>) -> TestResult {
    in_x2apic_mode(|| {
        let id = rdmsr(X2APIC_MSR_FIRST + u32::from(Register::ID.0))?;
        ensure!(id == 0, "id is {id:#x}");
        let logical = apic::read(Register::LDR);
        ensure!(logical == 1, "logical id of APIC 0 is {logical:#x}");
        sends_once("shorthand", || apic::send_self(VECTOR))?;
        sends_once("physical id", || apic::send(0, ASSERT | u32::from(VECTOR)))?;
        sends_once("logical id", || {
            apic::send(1, ASSERT | (1 << 11) | u32::from(VECTOR))
        })?;
        sends_once("own register", || {
            apic::write(Register::SELF_IPI, VECTOR.into());
        })?;
        set_cr8(3);
        let found = apic::read(Register::TPR);
        set_cr8(0);
        ensure!(found == 0x30, "CR8 is 3, TPR is {found:#x}");
        Ok(())
    })?;
    // Back in the other mode, all of it works again.
    sends_once("after the switch", || apic::send_self(VECTOR))
}

fn x2apic_refuses_reserved_bits(_: &Machine<'_>) -> TestResult {
    in_x2apic_mode(|| {
        let msr = |register: Register| X2APIC_MSR_FIRST + u32::from(register.0);
        for (register, value) in [
            (Register::TPR, 0x100),
            (Register::EOI, 1),
            (Register::SVR, 1 << 16),
            (Register::ICR, 1 << 13),
            (Register::ICR, 1 << 20),
            (Register::ESR, 1),
            (Register::ID, 0),
            (Register::VERSION, 0),
            (Register::LDR, 1),
            (Register::PPR, 0),
            (Register::IRR0, 0),
            (Register::LVT_TIMER, 1 << 20),
            (Register::TIMER_DIVIDE, 0x10),
            (Register::TIMER_INITIAL, 1 << 32),
            (Register::TIMER_CURRENT, 1),
            (Register::SELF_IPI, 0x100),
            (Register::DFR, 0),
            (Register::ICR_HIGH, 0),
            (Register(0x00), 0),
            (Register(0x3d), 0),
        ] {
            let result = wrmsr(msr(register), value);
            ensure!(
                result.is_err_and(|fault| fault.vector == GP),
                "writing {value:#x} to {register:x?} gives {result:?}"
            );
        }
        for register in [
            Register::EOI,
            Register::SELF_IPI,
            Register::DFR,
            Register::ICR_HIGH,
            Register(0x00),
            Register(0x3d),
        ] {
            let result = rdmsr(msr(register));
            ensure!(
                result.is_err_and(|fault| fault.vector == GP),
                "reading {register:x?} gives {result:x?}"
            );
        }
        Ok(())
    })
}

fn errors() -> ApicErrors {
    // The write latches what has happened.
    apic::write(Register::ESR, 0);
    ApicErrors::from_bits(apic::read(Register::ESR))
}

fn illegal_vectors_are_errors(_: &Machine<'_>) -> TestResult {
    let _ = errors();
    apic::send(0, TO_SELF | ASSERT | 5);
    let found = errors();
    ensure!(
        found.send_illegal_vector() || found.receive_illegal_vector(),
        "vector 5 gives {found:?}"
    );
    let found = errors();
    ensure!(found == ApicErrors::new(), "it stays: {found:?}");
    ensure!(!apic::bit(Register::IRR0, 5), "vector 5 is requested");
    Ok(())
}

fn wild_messages_are_harmless(machine: &Machine<'_>) -> TestResult {
    let count = machine.tables.processors.len() as u32;
    let wild = |destination: u32, command: u32| apic::send(destination, command);
    // SMIs, remote reads, reserved modes: to all, to itself, to others.
    for shorthand in [TO_SELF, TO_ALL, TO_OTHERS, 0] {
        wild(0, SMI | ASSERT | shorthand);
        wild(0, (3 << 8) | ASSERT | shorthand | u32::from(VECTOR));
    }
    // INIT and start-up to itself are not possible, and to nobody do nothing.
    wild(0, apic::STARTUP | 0x10);
    wild(0, TO_SELF | apic::STARTUP | 0x10);
    for nobody in [count, 0x40, 0x7f, 0xfe] {
        wild(nobody, apic::INIT);
        wild(nobody, apic::STARTUP | 0x10);
        wild(nobody, NMI | ASSERT);
        wild(nobody, ASSERT | u32::from(VECTOR));
    }
    // A de-assertion of INIT to all does nothing on processors of this century.
    wild(0, TO_ALL | (5 << 8) | (1 << 15));
    for vector in 0..16 {
        wild(0, TO_SELF | ASSERT | vector);
    }
    spin(100_000);
    window();
    let _ = errors();
    sends_once("afterwards", || apic::send_self(VECTOR))
}
