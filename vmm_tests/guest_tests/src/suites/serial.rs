//! Floods of the serial port, in both directions. The partner knows the patterns.
//!
//! The tests say `note serial ...` when the partner shall begin.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::console::{COM1, Console, DATA_READY, LINE_STATUS, OVERRUN, put};
use crate::machine::ports::{inb, outb};
use crate::pattern::{Checksum, LINE, Pattern, SEED_RECEIVED, SEED_SENT};
use crate::report::TestResult;
use core::fmt::Write;

pub(super) const TESTS: &[Test] = &[
    test("serial.sends", Needs::Partner, sends),
    test("serial.receives", Needs::Partner, receives),
    test("serial.echoes", Needs::Partner, echoes),
];

/// FIFO control register: both FIFOs are on and empty, as any driver has them.
const FIFO_CONTROL: (u16, u8) = (COM1 + 2, 0x07);

fn line(arguments: core::fmt::Arguments<'_>) {
    // The console cannot fail.
    let _ = Console.write_fmt(arguments);
    put(b'\n');
}

fn sends(machine: &Machine<'_>) -> TestResult {
    let count = machine.options.count as usize;
    line(format_args!("note serial sends {count}"));
    let mut sum = Checksum::EMPTY;
    for (position, byte) in Pattern::new(SEED_SENT).take(count).enumerate() {
        put(byte);
        sum = sum.with(byte);
        if position % LINE == LINE - 1 {
            put(b'\n');
        }
    }
    put(b'\n');
    line(format_args!("note serial sent {:#x}", sum.0));
    Ok(())
}

/// The next byte; the partner may take its time.
fn get() -> Result<u8, crate::report::Failure> {
    loop {
        let status = inb(LINE_STATUS);
        ensure!(status & OVERRUN == 0, "bytes were lost: status {status:#x}");
        if status & DATA_READY != 0 {
            return Ok(inb(COM1));
        }
        core::hint::spin_loop();
    }
}

fn receives(machine: &Machine<'_>) -> TestResult {
    let count = machine.options.count as usize;
    outb(FIFO_CONTROL.0, FIFO_CONTROL.1);
    line(format_args!("note serial receives {count}"));
    let mut sum = Checksum::EMPTY;
    for _ in 0..count {
        sum = sum.with(get()?);
    }
    let expected = Checksum::of_pattern(SEED_RECEIVED, count);
    ensure!(
        sum == expected,
        "checksum of {count} bytes is {:#x}, expected {:#x}",
        sum.0,
        expected.0
    );
    Ok(())
}

fn echoes(machine: &Machine<'_>) -> TestResult {
    let count = machine.options.count as usize;
    outb(FIFO_CONTROL.0, FIFO_CONTROL.1);
    line(format_args!("note serial echoes {count}"));
    // Both directions at once: what arrives is sent back.
    for expected in Pattern::new(SEED_RECEIVED).take(count) {
        let byte = get()?;
        put(byte);
        ensure!(
            byte == expected,
            "received {byte:#x}, expected {expected:#x}"
        );
    }
    put(b'\n');
    Ok(())
}
