//! A 16550 serial port: output only, never blocking for ever.

use core::fmt;

/// Base port of COM3.
pub const COM3: u16 = 0x3e8;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;

const LINE_8N1: u8 = 0x03;
const LINE_DIVISOR_ACCESS: u8 = 0x80;
const FIFO_ENABLE_AND_CLEAR: u8 = 0x07;
const MODEM_DTR_RTS: u8 = 0x03;
const STATUS_TRANSMITTER_EMPTY: u8 = 0x20;

const FIFO_SIZE: usize = 16;

/// Polls of the line status after which the port counts as dead. 16 bytes at 115200
/// baud take 1.4 ms; a port access takes about 1 µs.
const POLL_LIMIT: u32 = 20_000;

/// Clock of the divisor at rate 1.
const BASE_RATE: u32 = 115_200;

/// How to reach the registers.
pub trait Io {
    /// Reads a port.
    fn read(&mut self, port: u16) -> u8;
    /// Writes a port.
    fn write(&mut self, port: u16, value: u8);
}

/// The writer. A port that stops taking bytes is given up silently: the log in memory
/// has the same text, and a dead console must not stop the boot.
#[derive(Debug)]
pub struct Serial<I> {
    io: I,
    base: u16,
    dead: bool,
}

impl<I: Io> Serial<I> {
    /// Sets the port up: 8N1, FIFO on, no interrupts.
    pub fn new(mut io: I, base: u16, rate: u32) -> Self {
        let divisor = u16::try_from(BASE_RATE / rate.clamp(1, BASE_RATE)).unwrap_or(u16::MAX);
        let [low, high] = divisor.to_le_bytes();
        for (register, value) in [
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, LINE_8N1 | LINE_DIVISOR_ACCESS),
            (DATA, low),
            (INTERRUPT_ENABLE, high),
            (LINE_CONTROL, LINE_8N1),
            (FIFO_CONTROL, FIFO_ENABLE_AND_CLEAR),
            (MODEM_CONTROL, MODEM_DTR_RTS),
        ] {
            io.write(base + register, value);
        }
        Self {
            io,
            base,
            dead: false,
        }
    }

    /// Writes bytes as they are: one look at the line status per full FIFO, because each
    /// port access costs about a microsecond under emulation.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(FIFO_SIZE) {
            if self.dead || !self.wait_for_room() {
                return;
            }
            for &byte in chunk {
                self.io.write(self.base + DATA, byte);
            }
        }
    }

    fn wait_for_room(&mut self) -> bool {
        for _ in 0..POLL_LIMIT {
            if self.io.read(self.base + LINE_STATUS) & STATUS_TRANSMITTER_EMPTY != 0 {
                return true;
            }
            core::hint::spin_loop();
        }
        self.dead = true;
        false
    }
}

impl<I: Io> fmt::Write for Serial<I> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.write_bytes(line.as_bytes());
                    self.write_bytes(b"\r\n");
                }
                None => self.write_bytes(line.as_bytes()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use core::fmt::Write;
    use std::vec::Vec;

    #[derive(Default)]
    struct Port {
        sent: Vec<u8>,
        reads: u32,
        stuck: bool,
        divisor_access: bool,
    }

    impl Io for &mut Port {
        fn read(&mut self, port: u16) -> u8 {
            assert_eq!(port, COM3 + LINE_STATUS);
            self.reads += 1;
            if self.stuck {
                0
            } else {
                STATUS_TRANSMITTER_EMPTY
            }
        }

        fn write(&mut self, port: u16, value: u8) {
            match port - COM3 {
                LINE_CONTROL => self.divisor_access = value & LINE_DIVISOR_ACCESS != 0,
                DATA if !self.divisor_access => self.sent.push(value),
                _ => {}
            }
        }
    }

    #[test]
    fn text_arrives_with_carriage_returns() {
        let mut port = Port::default();
        write!(Serial::new(&mut port, COM3, 115_200), "one\ntwo").unwrap();
        assert_eq!(port.sent, b"one\r\ntwo");
    }

    #[test]
    fn the_status_is_read_once_per_fifo() {
        let mut port = Port::default();
        Serial::new(&mut port, COM3, 115_200).write_bytes(&[b'x'; 33]);
        assert_eq!(port.reads, 3);
    }

    #[test]
    fn a_stuck_port_is_given_up() {
        let mut port = Port {
            stuck: true,
            ..Port::default()
        };
        let mut serial = Serial::new(&mut port, COM3, 0);
        serial.write_bytes(b"a");
        serial.write_bytes(b"b");
        assert_eq!(port.reads, POLL_LIMIT);
        assert!(port.sent.is_empty());
    }
}
