//! Records of the kernel's log.

use std::time::Duration;

/// A record of the kernel's log as `/dev/kmsg` shows it: `6,339,5140900,-;text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsgRecord<'a> {
    /// Facility times eight plus severity.
    pub priority: u32,
    /// Its number.
    pub sequence: u64,
    /// After the kernel's start.
    pub time: Duration,
    /// What it says.
    pub text: &'a str,
}

impl<'a> KmsgRecord<'a> {
    /// Reads a record; `None` if it is none. Lines behind the first, which name the device
    /// that the record is about, are left out.
    pub fn parse(record: &'a str) -> Option<Self> {
        let (head, text) = record.split_once(';')?;
        let text = text.split('\n').next()?;
        let mut fields = head.split(',');
        let priority = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let time = Duration::from_micros(fields.next()?.parse().ok()?);
        Some(Self {
            priority,
            sequence,
            time,
            text,
        })
    }

    /// How bad it is: 0 (emergency) to 7 (debug).
    pub fn severity(&self) -> u32 {
        self.priority % 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_time_and_text() {
        let record = KmsgRecord::parse("30,339,5140900,-;init: a;b").unwrap();
        assert_eq!(record.severity(), 6);
        assert_eq!(record.sequence, 339);
        assert_eq!(record.time, Duration::from_micros(5_140_900));
        assert_eq!(record.text, "init: a;b");
        let record = KmsgRecord::parse("6,1,0,-;text\n SUBSYSTEM=pci\n").unwrap();
        assert_eq!(record.text, "text");
    }

    #[test]
    fn other_lines_are_no_records() {
        for line in ["", ";", "1,2;x", "a,b,c;x", " SUBSYSTEM=pci", "-1,2,3,-;x"] {
            assert_eq!(KmsgRecord::parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "[0-9,;-]{0,40}|.{0,40}") {
            _ = KmsgRecord::parse(&line);
        }
    }
}
