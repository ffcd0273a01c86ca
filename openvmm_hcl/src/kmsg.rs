//! What the kernel's log says about the boot.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where the kernel shows its log, one record per read.
pub const DEVICE: &str = "/dev/kmsg";

/// Bytes that hold every record (`PRINTK_MESSAGE_MAX` of the kernel, and more).
const RECORD_MAX: usize = 8192;

/// Records that are read: more than the kernel's buffer holds.
const RECORDS_MAX: usize = 8192;

/// A record of the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The kernel's time in microseconds.
    pub time_us: u64,
    /// The text, without the fields that may follow it.
    pub text: &'a str,
}

impl<'a> Record<'a> {
    /// Reads `priority,number,time,flags…;text` (the kernel's
    /// `Documentation/ABI/testing/dev-kmsg`).
    pub fn parse(record: &'a str) -> Option<Self> {
        let (head, text) = record.split_once(';')?;
        Some(Self {
            time_us: head.split(',').nth(2)?.parse().ok()?,
            text: text.lines().next()?,
        })
    }
}

/// Hands every record to `each`. What the buffer has lost is skipped.
pub fn for_each(device: &Path, mut each: impl FnMut(Record<'_>)) -> io::Result<()> {
    let mut device = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(device)?;
    let mut buffer = vec![0; RECORD_MAX];
    for _ in 0..RECORDS_MAX {
        match device.read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => {
                if let Some(record) = Record::parse(&String::from_utf8_lossy(&buffer[..size])) {
                    each(record);
                }
            }
            // The end of the log.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // The record was overwritten before it was read; the next read goes on.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Records of the log that are milestones: how they begin, of the kernel or of PID 1, and
/// their name in the timeline. The first of its kind counts.
pub const MILESTONES: [(&str, &str, &str); 5] = [
    ("linux", "cpus_running", "smp: Brought up"),
    ("linux", "initramfs_unpacked", "Freeing initrd memory"),
    ("linux", "runs_init", "Run /underhill_init as init process"),
    ("underhill_init", "started", boot_events::INIT_STARTED),
    (
        "underhill_init",
        "modules_loaded",
        "underhill_init: module ",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_time_and_text() {
        assert_eq!(
            Record::parse("30,337,123456,-;openvmm_hcl: started\n SUBSYSTEM=x\n"),
            Some(Record {
                time_us: 123_456,
                text: "openvmm_hcl: started"
            })
        );
        assert_eq!(Record::parse("30,337;text"), None);
        assert_eq!(Record::parse(""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_record_or_none(text in "[0-9,;a-z\n]{0,40}|\\PC{0,40}") {
            let _ = Record::parse(&text);
        }
    }
}
