//! How VTL2 uses its memory while nothing happens.

use serde::Serialize;
use thiserror::Error;

/// Where the kernel shows its use of memory.
pub const MEMINFO: &str = "/proc/meminfo";

/// What the kernel says about memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemInfo {
    /// What the kernel manages, in bytes.
    pub total_bytes: u64,
    /// What of it is free.
    pub free_bytes: u64,
}

/// Why there is no report.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// A value is not there.
    #[error("{MEMINFO} has no {name}, expected a number of kB")]
    Missing {
        /// The value.
        name: &'static str,
    },
    /// A value is not what it should be.
    #[error("{MEMINFO}: {name} is {value:?}, expected a number of kB")]
    Value {
        /// The value.
        name: &'static str,
        /// What it is.
        value: String,
    },
    /// The kernel claims more than VTL2 has.
    #[error("the kernel manages {total_bytes} bytes, expected at most VTL2's {vtl2_bytes}")]
    MoreThanVtl2 {
        /// What the kernel manages.
        total_bytes: u64,
        /// What VTL2 has.
        vtl2_bytes: u64,
    },
    /// More is free than there is.
    #[error("{free_bytes} bytes are free, expected at most {total_bytes}")]
    MoreFreeThanTotal {
        /// What is free.
        free_bytes: u64,
        /// What the kernel manages.
        total_bytes: u64,
    },
}

impl MemInfo {
    /// Reads the text of [`MEMINFO`].
    pub fn parse(text: &str) -> Result<Self, MemoryError> {
        Ok(Self {
            total_bytes: value(text, "MemTotal")?,
            free_bytes: value(text, "MemFree")?,
        })
    }
}

fn value(text: &str, name: &'static str) -> Result<u64, MemoryError> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .ok_or(MemoryError::Missing { name })?;
    value
        .trim()
        .strip_suffix(" kB")
        .and_then(|number| number.parse::<u64>().ok())
        .and_then(|kib| kib.checked_mul(1024))
        .ok_or_else(|| MemoryError::Value {
            name,
            value: value.trim().to_owned(),
        })
}

/// The figures, as they are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    vtl2_bytes: u64,
    total_bytes: u64,
    free_bytes: u64,
    /// What the kernel took before it began to count, and what is reserved for others.
    kernel_reservation_bytes: u64,
    /// What an idle VTL2 costs: all that is not free.
    footprint_bytes: u64,
}

impl MemoryReport {
    /// Puts together what the kernel says and what VTL2 has.
    pub fn new(info: MemInfo, vtl2_bytes: u64) -> Result<Self, MemoryError> {
        let MemInfo {
            total_bytes,
            free_bytes,
        } = info;
        let kernel_reservation_bytes =
            vtl2_bytes
                .checked_sub(total_bytes)
                .ok_or(MemoryError::MoreThanVtl2 {
                    total_bytes,
                    vtl2_bytes,
                })?;
        let used_bytes =
            total_bytes
                .checked_sub(free_bytes)
                .ok_or(MemoryError::MoreFreeThanTotal {
                    free_bytes,
                    total_bytes,
                })?;
        Ok(Self {
            vtl2_bytes,
            total_bytes,
            free_bytes,
            kernel_reservation_bytes,
            footprint_bytes: used_bytes + kernel_reservation_bytes,
        })
    }

    /// One JSON object.
    pub fn to_json(self) -> String {
        serde_json::to_string(&self).expect("numbers always have a JSON form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str =
        "MemTotal:          48000 kB\nMemFree:           30000 kB\nMemAvailable:      40000 kB\n";

    #[test]
    fn the_footprint_is_all_that_is_not_free() {
        let info = MemInfo::parse(TEXT).unwrap();
        let report = MemoryReport::new(info, 64 << 20).unwrap();
        assert_eq!(
            report.to_json(),
            concat!(
                r#"{"vtl2_bytes":67108864,"total_bytes":49152000,"free_bytes":30720000,"#,
                r#""kernel_reservation_bytes":17956864,"footprint_bytes":36388864}"#
            )
        );
    }

    #[test]
    fn text_of_another_form_is_refused() {
        assert_eq!(
            MemInfo::parse("MemFree: 1 kB"),
            Err(MemoryError::Missing { name: "MemTotal" })
        );
        let error = MemInfo::parse("MemTotal: many kB").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/proc/meminfo: MemTotal is \"many kB\", expected a number of kB"
        );
        assert!(MemInfo::parse("MemTotal: 18446744073709551615 kB").is_err());
    }

    #[test]
    fn figures_that_contradict_each_other_are_refused() {
        let info = MemInfo {
            total_bytes: 100,
            free_bytes: 60,
        };
        assert!(matches!(
            MemoryReport::new(info, 99),
            Err(MemoryError::MoreThanVtl2 { .. })
        ));
        let info = MemInfo {
            total_bytes: 100,
            free_bytes: 101,
        };
        assert!(matches!(
            MemoryReport::new(info, 200),
            Err(MemoryError::MoreFreeThanTotal { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_text_and_any_figures_are_a_report_or_an_error(
            text in "(MemTotal: ?[0-9]{0,25} ?kB\n|MemFree:.{0,9}\n)*",
            total_bytes: u64, free_bytes: u64, vtl2_bytes: u64,
        ) {
            let _ = MemInfo::parse(&text);
            let _ = MemoryReport::new(MemInfo { total_bytes, free_bytes }, vtl2_bytes);
        }
    }
}
