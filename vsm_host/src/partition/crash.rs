//! What VTL2 says when it gives up (TLFS "Guest Crash Enlightenment").

use crate::guest_memory::{GuestMemory, RamAccess};
use alloc::string::String;
use boot_events::KERNEL_PANIC;
use core::fmt;
use hv_defs::msr::CrashControl;

/// Crash parameters P0 to P4.
pub const PARAMETERS: usize = 5;

/// Longest text that is taken over, in bytes.
const MAX_TEXT: u64 = 4096;

/// What can be written to the control word.
pub const SUPPORTED: CrashControl = CrashControl::new()
    .with_crash_notify(true)
    .with_crash_message(true);

/// A complete crash report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashReport {
    /// P0 to P4.
    pub parameters: [u64; PARAMETERS],
    /// The text, printable and bounded; empty if there is none.
    pub text: String,
}

impl CrashReport {
    /// Takes the report over when the control word is written; `None` if the control
    /// word does not say that the VTL has crashed.
    pub fn take<R: RamAccess + ?Sized>(
        parameters: [u64; PARAMETERS],
        control: CrashControl,
        memory: &GuestMemory<'_, R>,
    ) -> Option<Self> {
        if !control.crash_notify() {
            return None;
        }
        let mut text = String::new();
        if control.crash_message() {
            let [_, _, _, address, length] = parameters;
            let mut bytes = [0; MAX_TEXT as usize];
            let bytes = &mut bytes[..length.min(MAX_TEXT) as usize];
            match memory.read(address, bytes) {
                Ok(()) => text = printable(bytes),
                Err(error) => text = alloc::format!("(text not readable: {error})"),
            }
        }
        Some(Self { parameters, text })
    }

    /// The line that says most: the kernel's panic line, or else the first one.
    pub fn headline(&self) -> &str {
        let mut lines = self.text.lines().filter(|line| !line.trim().is_empty());
        let first = lines.clone().next();
        lines
            .find(|line| line.contains(KERNEL_PANIC))
            .or(first)
            .unwrap_or("no text")
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p0, p1, p2, p3, p4] = self.parameters;
        write!(f, "P0 {p0:#x}")?;
        let tag = p0.to_be_bytes();
        if tag.iter().all(u8::is_ascii_graphic) {
            write!(f, " ({})", str::from_utf8(&tag).unwrap_or_default())?;
        }
        write!(f, " P1 {p1:#x} P2 {p2:#x} P3 {p3:#x} P4 {p4:#x}")
    }
}

/// Keeps line ends; everything else that a terminal could misunderstand becomes a dot.
fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes[..end]
        .iter()
        .filter(|byte| **byte != b'\r')
        .map(|byte| match byte {
            b'\n' | b' '..=b'~' => char::from(*byte),
            b'\t' => ' ',
            _ => '.',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::tests::FakeRam;
    use igvm_loader::MemoryRange;
    use proptest::prelude::*;

    fn take(parameters: [u64; 5], control: u64, ram: &[u8]) -> Option<CrashReport> {
        let fake = FakeRam::new(0x3000);
        fake.write_ram(0x1000, ram);
        let allowed = [MemoryRange::new(0x1000, 0x3000)];
        CrashReport::take(
            parameters,
            control.into(),
            &GuestMemory::new(&fake, &allowed),
        )
    }

    #[test]
    fn the_panic_line_of_linux_is_the_headline() {
        let text = b"<6>[ 1.0] a\n<0>[ 1.1] Kernel panic - not syncing: no init\n<0> trace\0junk";
        let report = take([0, 0, 0, 0x1000, text.len() as u64], 3 << 62, text).unwrap();
        assert_eq!(
            report.headline(),
            "<0>[ 1.1] Kernel panic - not syncing: no init"
        );
        assert!(!report.text.contains("junk"));
    }

    #[test]
    fn a_tag_is_shown_as_text() {
        let report = take([u64::from_be_bytes(*b"OHCLBOOT"), 0, 0, 0, 0], 1 << 63, b"").unwrap();
        assert_eq!(
            report.to_string(),
            "P0 0x4f48434c424f4f54 (OHCLBOOT) P1 0x0 P2 0x0 P3 0x0 P4 0x0"
        );
        assert_eq!(report.headline(), "no text");
    }

    #[test]
    fn a_text_elsewhere_is_not_read() {
        let report = take([0, 0, 0, 0x10_0000, 16], 3 << 62, b"").unwrap();
        assert!(
            report.text.starts_with("(text not readable"),
            "{}",
            report.text
        );
        assert_eq!(take([1; 5], 1 << 62, b""), None);
    }

    proptest! {
        #[test]
        fn any_text_becomes_printable(text: Vec<u8>, address: u64, length: u64, control: u64) {
            let text = &text[..text.len().min(0x1000)];
            let _ = take([0, 0, 0, address, length], control, text);
            if let Some(report) = take([0, 0, 0, 0x1000, length], 3 << 62, text) {
                prop_assert!(report.text.len() <= MAX_TEXT as usize);
                prop_assert!(report.text.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()));
                report.headline();
            }
        }
    }
}
