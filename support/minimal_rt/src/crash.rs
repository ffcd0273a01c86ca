//! What the host learns when a program in VTL2 gives up.
//!
//! The guest crash registers carry five parameters and a control word. We use them so:
//! P0 is an eight-letter tag of the program, first letter in the highest byte, so that
//! it reads well in a hexadecimal dump; P1 and P2 are zero; P3 and P4 are GPA and length
//! of a text, as the control word says.

use core::fmt;
use hv_defs::msr::CrashControl;

/// Bytes of text that are kept. The text stays in one page, so that a host which copies
/// page-wise sees all of it.
pub const MESSAGE_CAPACITY: usize = 4096;

/// Tag of the boot shim.
pub const TAG_BOOT_SHIM: [u8; 8] = *b"OHCLBOOT";
/// Tag of the sidecar kernel.
pub const TAG_SIDECAR: [u8; 8] = *b"SIDECARK";

/// Collects the text; what does not fit is cut at a character boundary.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct CrashMessage {
    text: [u8; MESSAGE_CAPACITY],
    length: usize,
}

impl CrashMessage {
    /// An empty text.
    pub const fn new() -> Self {
        Self {
            text: [0; MESSAGE_CAPACITY],
            length: 0,
        }
    }

    /// The text so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

impl Default for CrashMessage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for CrashMessage {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MESSAGE_CAPACITY - self.length;
        let fits = text.floor_char_boundary(room);
        self.text[self.length..self.length + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// Values of the crash registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashRegisters {
    /// P0 to P4.
    pub parameters: [u64; 5],
    /// Control word, written last.
    pub control: u64,
}

impl CrashRegisters {
    /// For a program and a text at `message_gpa`.
    pub fn new(tag: [u8; 8], message_gpa: u64, message_length: usize) -> Self {
        let control = CrashControl::new()
            .with_pre_os_id_low(true)
            .with_no_crash_dump(true)
            .with_crash_message(message_length != 0)
            .with_crash_notify(true);
        Self {
            parameters: [
                u64::from_be_bytes(tag),
                0,
                0,
                message_gpa,
                message_length as u64,
            ],
            control: control.into_bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn the_tag_reads_from_left_to_right() {
        let registers = CrashRegisters::new(TAG_BOOT_SHIM, 0x1000, 5);
        assert_eq!(
            registers.parameters,
            [0x4f48_434c_424f_4f54, 0, 0, 0x1000, 5]
        );
        assert_eq!(registers.control >> 61, 0b111);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let mut message = CrashMessage::new();
        for _ in 0..MESSAGE_CAPACITY - 1 {
            message.write_char('x').unwrap();
        }
        assert!(message.write_str("é").is_err());
        assert_eq!(message.as_bytes().len(), MESSAGE_CAPACITY - 1);
        assert!(core::str::from_utf8(message.as_bytes()).is_ok());
    }
}
