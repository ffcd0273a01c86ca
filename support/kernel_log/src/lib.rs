//! Writes a process's log to the kernel's log.
//!
//! In VTL2 the kernel log is the only log: it reaches the console, survives in memory,
//! and its end travels to the host when the kernel panics. Each process of the
//! paravisor has its own facility and prefix, so that its lines can be told apart.
//!
//! Promises: one call makes one record per line of text, none longer than the kernel
//! takes (a longer line continues in further records); a log that cannot be written
//! never stops its process, the text then goes to standard error.
//! Refuses: buffering. A line is with the kernel when the call returns, which is what
//! makes the last words of a dying process useful.

#![forbid(unsafe_code)]

pub mod filter;
pub mod subscriber;

use boot_events::KERNEL_LOG_RECORD_MAX;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Where the kernel takes records.
pub const DEVICE: &str = "/dev/kmsg";

/// Facility of PID 1.
pub const FACILITY_INIT: u8 = 2;
/// Facility of the paravisor process.
pub const FACILITY_PARAVISOR: u8 = 3;
/// Facility of the VM worker.
pub const FACILITY_WORKER: u8 = 4;

/// In front of the rest of a line that is longer than a record.
const CONTINUED: &str = "… ";

/// How important a record is, as the kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The process cannot do its work.
    Error = 3,
    /// Something is wrong, work goes on.
    Warning = 4,
    /// What a person follows.
    Info = 6,
    /// Details.
    Debug = 7,
}

/// A process's way into the kernel log.
#[derive(Debug)]
pub struct KernelLog {
    device: Option<File>,
    facility: u8,
    prefix: &'static str,
}

impl KernelLog {
    /// Opens the kernel log. `prefix` stands in front of every line.
    pub fn open(facility: u8, prefix: &'static str) -> Self {
        Self::open_at(Path::new(DEVICE), facility, prefix)
    }

    /// Like [`KernelLog::open`] with another device.
    pub fn open_at(device: &Path, facility: u8, prefix: &'static str) -> Self {
        let mut log = Self {
            device: None,
            facility,
            prefix,
        };
        match File::options().write(true).open(device) {
            Ok(file) => log.device = Some(file),
            Err(error) => log.warning(&format!("{} cannot be opened: {error}", device.display())),
        }
        log
    }

    /// Writes `text` at `level`.
    pub fn write(&self, level: Level, text: &str) {
        for record in records(self.facility, level, self.prefix, text) {
            // One write is one record: a partial write cannot happen on this device.
            let written = self
                .device
                .as_ref()
                .is_some_and(|mut device| device.write_all(record.as_bytes()).is_ok());
            if !written {
                // Nothing is left to report a failure of standard error to.
                let _ = write!(std::io::stderr(), "{record}");
            }
        }
    }

    /// Writes at [`Level::Error`].
    pub fn error(&self, text: &str) {
        self.write(Level::Error, text);
    }

    /// Writes at [`Level::Warning`].
    pub fn warning(&self, text: &str) {
        self.write(Level::Warning, text);
    }

    /// Writes at [`Level::Info`].
    pub fn info(&self, text: &str) {
        self.write(Level::Info, text);
    }

    /// Writes at [`Level::Debug`].
    pub fn debug(&self, text: &str) {
        self.write(Level::Debug, text);
    }

    /// What stands in front of every line.
    pub fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// Bytes of text that fit into one record of this log.
    pub fn record_capacity(&self) -> usize {
        // Three digits hold every priority.
        KERNEL_LOG_RECORD_MAX - "<123>".len() - self.prefix.len() - "\n".len()
    }
}

/// An error with all its causes, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The records that carry `text`: `<priority>prefix text`.
///
/// Each ends with a line feed. Without it the kernel keeps the record open for a
/// continuation, and no console shows it before somebody writes the next one.
fn records(facility: u8, level: Level, prefix: &str, text: &str) -> Vec<String> {
    let head = format!("<{}>{prefix}", u16::from(facility) * 8 + level as u16);
    let room = KERNEL_LOG_RECORD_MAX - head.len() - "\n".len();
    text.lines()
        .flat_map(|line| pieces(line, room))
        .map(|(mark, piece)| format!("{head}{mark}{piece}\n"))
        .collect()
}

/// Cuts `line` between characters into pieces, each with the mark that goes before it: at
/// most `room` bytes together.
///
/// The mark keeps words that the line quotes from the place of our own: behind the prefix
/// alone they could be taken for an event.
fn pieces(line: &str, room: usize) -> Vec<(&'static str, &str)> {
    let mut pieces = Vec::new();
    let (mut mark, mut rest) = ("", line);
    while mark.len() + rest.len() > room {
        let (piece, tail) = rest.split_at(rest.floor_char_boundary(room - mark.len()));
        pieces.push((mark, piece));
        (mark, rest) = (CONTINUED, tail);
    }
    pieces.push((mark, rest));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_carries_facility_level_and_prefix() {
        assert_eq!(
            records(FACILITY_INIT, Level::Info, "underhill_init: ", "started"),
            ["<22>underhill_init: started\n"]
        );
    }

    #[test]
    fn each_line_of_a_text_is_a_record() {
        assert_eq!(
            records(FACILITY_PARAVISOR, Level::Error, "p: ", "one\ntwo\r\n"),
            ["<27>p: one\n", "<27>p: two\n"]
        );
    }

    #[test]
    fn the_kernel_shows_a_record_at_once() {
        let records = records(FACILITY_INIT, Level::Info, "p: ", &"x".repeat(5000));
        assert!(records.iter().all(|r| r.ends_with('\n')));
    }

    #[test]
    fn a_long_line_is_continued_and_nothing_is_lost() {
        let text = "é".repeat(2000);
        let records = records(FACILITY_INIT, Level::Debug, "p: ", &text);
        assert!(records.iter().all(|r| r.len() <= KERNEL_LOG_RECORD_MAX));
        let joined: String = records
            .iter()
            .map(|r| r.strip_prefix("<23>p: ").unwrap().trim_end())
            .enumerate()
            .map(|(index, r)| match index {
                0 => r,
                _ => r.strip_prefix(CONTINUED).unwrap(),
            })
            .collect();
        assert_eq!(joined, text);
    }

    #[test]
    fn a_log_without_its_device_does_not_stop_the_process() {
        let directory = std::env::temp_dir().join("no such directory").join("kmsg");
        let log = KernelLog::open_at(&directory, FACILITY_INIT, "p: ");
        log.info("text");
        assert!(log.device.is_none());
    }

    #[test]
    fn a_chain_of_errors_names_every_cause() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("outer")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer: inner");
    }
}
