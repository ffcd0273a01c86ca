//! COM1, polled.

use super::ports::{inb, outb};
use core::fmt;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// Line status register.
pub const LINE_STATUS: u16 = COM1 + 5;
/// Line status: a byte has arrived.
pub const DATA_READY: u8 = 1 << 0;
/// Line status: bytes were lost.
pub const OVERRUN: u8 = 1 << 1;
/// Line status: the transmitter takes a byte.
pub const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// Writer to COM1. Only VP 0 prints, so there is no lock.
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

/// Sends a byte. Waits as long as the other side makes it wait.
pub fn put(byte: u8) {
    while inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
    outb(COM1, byte);
}
