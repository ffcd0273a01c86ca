//! COM3, polled.

#![expect(unsafe_code, reason = "port I/O")]

use core::arch::asm;
use core::fmt;

/// First port of COM3.
const COM3: u16 = 0x3e8;
/// Line status register.
const LINE_STATUS: u16 = COM3 + 5;
/// Line status: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Polls after which a byte is sent regardless: a machine without COM3 must not hang.
const MAX_POLLS: u32 = 100_000;

/// Writer to COM3. Only VP 0 prints, so there is no lock.
#[derive(Debug, Clone, Copy)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    for _ in 0..MAX_POLLS {
        if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    outb(COM3, byte);
}

fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: reads a register of COM3, which belongs to this payload.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

fn outb(port: u16, value: u8) {
    // SAFETY: writes a register of COM3, which belongs to this payload.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}
