//! Interrupts of devices: COM1 through the I/O APIC.

use super::mmio::{IoApic, MASKED};
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::apic;
use crate::machine::clock::{spin, wait_for};
use crate::machine::console::{COM1, LINE_STATUS, TRANSMITTER_EMPTY};
use crate::machine::interrupts::{Action, count_here, set_action};
use crate::machine::ports::{inb, outb};
use crate::report::TestResult;
use x86_64::instructions::interrupts;
use x86_defs::apic::ApicRegister as Register;

pub(super) const TESTS: &[Test] = &[
    test(
        "devices.serial_port_interrupts_by_edge",
        Needs::Nothing,
        edge,
    ),
    test(
        "devices.serial_port_interrupts_by_level",
        Needs::Nothing,
        level,
    ),
    test(
        "devices.level_stays_until_it_is_served",
        Needs::Nothing,
        level_stays,
    ),
    test(
        "devices.masked_pin_is_silent",
        Needs::Nothing,
        masked_pin_is_silent,
    ),
];

/// COM1's interrupt.
const PIN: u8 = 4;
/// Where it goes.
const VECTOR: u8 = 0x54;
/// An entry that is level triggered.
const LEVEL: u32 = 1 << 15;
/// An entry whose level interrupt waits for its end.
const REMOTE_IRR: u32 = 1 << 14;
/// Interrupt enable register.
const ENABLE: u16 = COM1 + 1;
/// Interrupt identification register.
const IDENTIFICATION: u16 = COM1 + 2;
/// Modem control register.
const MODEM: u16 = COM1 + 4;
/// Interrupt when the transmitter is empty.
const ENABLE_TRANSMITTER: u8 = 1 << 1;
/// The identification of that interrupt.
const IS_TRANSMITTER: u8 = 2;
/// Modem control: the port's interrupt is connected.
const OUT2: u8 = 1 << 3;

/// COM1 with its interrupt routed; put back when dropped.
struct Port {
    io_apic: IoApic,
}

impl Port {
    fn routed(machine: &Machine<'_>, low: u32) -> Result<Self, crate::report::Failure> {
        let io_apic = IoApic::find(machine)?;
        ensure!(
            wait_for(|| inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0),
            "the transmitter is never empty"
        );
        outb(ENABLE, 0);
        let _ = inb(IDENTIFICATION);
        outb(MODEM, OUT2 | 3);
        io_apic.route(PIN, low | u32::from(VECTOR), 0);
        Ok(Self { io_apic })
    }

    /// The transmitter is empty, so this raises the line.
    fn raise(&self) {
        outb(ENABLE, ENABLE_TRANSMITTER);
    }

    fn lower(&self) {
        outb(ENABLE, 0);
        let _ = inb(IDENTIFICATION);
    }

    fn is_pending_in_apic(&self) -> bool {
        self.io_apic.entry(PIN) & REMOTE_IRR != 0
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        interrupts::disable();
        self.lower();
        self.io_apic.route(PIN, MASKED, 0);
    }
}

fn edge(machine: &Machine<'_>) -> TestResult {
    let port = Port::routed(machine, 0)?;
    for _ in 0..20 {
        let before = count_here(VECTOR);
        interrupts::enable();
        port.raise();
        ensure!(
            wait_for(|| count_here(VECTOR) != before),
            "no interrupt arrives"
        );
        let cause = inb(IDENTIFICATION) & 0xf;
        ensure!(
            cause == IS_TRANSMITTER,
            "cause is {cause:#x}, expected {IS_TRANSMITTER:#x}"
        );
        port.lower();
        interrupts::disable();
        let count = count_here(VECTOR).wrapping_sub(before);
        ensure!(count == 1, "{count} interrupts of an edge");
    }
    Ok(())
}

fn level(machine: &Machine<'_>) -> TestResult {
    let port = Port::routed(machine, LEVEL)?;
    set_action(VECTOR, Action::Leave);
    for _ in 0..20 {
        let before = count_here(VECTOR);
        interrupts::enable();
        port.raise();
        ensure!(
            wait_for(|| count_here(VECTOR) != before),
            "no interrupt arrives"
        );
        ensure!(
            apic::bit(Register::TMR0, VECTOR),
            "the APIC takes it for an edge"
        );
        ensure!(
            port.is_pending_in_apic(),
            "the I/O APIC does not wait for its end"
        );
        port.lower();
        apic::eoi();
        ensure!(
            wait_for(|| !port.is_pending_in_apic()),
            "its end is not told"
        );
        interrupts::disable();
        let count = count_here(VECTOR).wrapping_sub(before);
        ensure!(count == 1, "{count} interrupts of one that was served");
    }
    Ok(())
}

fn level_stays(machine: &Machine<'_>) -> TestResult {
    let port = Port::routed(machine, LEVEL)?;
    set_action(VECTOR, Action::Leave);
    let before = count_here(VECTOR);
    let count = || count_here(VECTOR).wrapping_sub(before);
    interrupts::enable();
    port.raise();
    // Ended without being served, it comes again, as often as it likes.
    for arrived in 1..=3 {
        ensure!(
            wait_for(|| count() >= arrived),
            "interrupt {arrived} does not arrive"
        );
        if arrived < 3 {
            apic::eoi();
        }
    }
    port.lower();
    apic::eoi();
    let end = count();
    spin(1_000_000);
    interrupts::disable();
    ensure!(count() == end, "it comes again after it was served");
    Ok(())
}

fn masked_pin_is_silent(machine: &Machine<'_>) -> TestResult {
    let port = Port::routed(machine, MASKED | LEVEL)?;
    let before = count_here(VECTOR);
    interrupts::enable();
    port.raise();
    spin(1_000_000);
    ensure!(count_here(VECTOR) == before, "it arrives");
    // A level that is up while the pin is opened arrives then.
    // Ended by its handler, it would come again without end.
    set_action(VECTOR, Action::Leave);
    port.io_apic.route(PIN, LEVEL | u32::from(VECTOR), 0);
    let arrived = wait_for(|| count_here(VECTOR) != before);
    port.lower();
    apic::eoi();
    interrupts::disable();
    ensure!(arrived, "a level that was up before does not arrive");
    Ok(())
}
