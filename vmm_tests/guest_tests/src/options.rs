//! What the kernel is told on its command line: words `NAME=VALUE`. Others are ignored.
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `tests=A,B` | tests, or the part of their names before a dot | all that end orderly |
//! | `forbidden=S-E,S-E` | physical ranges that are not the guest's, ends excluded | none |
//! | `vps=N` | processors that there should be | not checked |
//! | `count=N` | rounds of measurements and bytes of floods | 4096 |
//!
//! Numbers are decimal, or hexadecimal with 0x.

use core::ops::Range;
use thiserror::Error;

/// A parsed command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    tests: Option<&'a str>,
    forbidden: &'a str,
    /// Processors that there should be.
    pub vps: Option<u64>,
    /// Rounds of measurements and bytes of floods.
    pub count: u64,
}

/// Why a word is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error<'a> {
    /// Not a number.
    #[error("{value:?} in the option {name} is not a number")]
    NotANumber {
        /// The option.
        name: &'a str,
        /// What it was given.
        value: &'a str,
    },
    /// Not a range.
    #[error("range {0:?} is not understood, expected START-END with START below END")]
    NotARange(&'a str),
}

impl<'a> Options<'a> {
    /// Parses the command line.
    pub fn parse(text: &'a str) -> Result<Self, Error<'a>> {
        let mut options = Self {
            tests: None,
            forbidden: "",
            vps: None,
            count: 4096,
        };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("tests", value)) => options.tests = Some(value),
                Some((name @ "count", value)) => options.count = number(name, value)?,
                Some((name @ "vps", value)) => options.vps = Some(number(name, value)?),
                Some(("forbidden", value)) => {
                    for range in words(value) {
                        parse_range(range)?;
                    }
                    options.forbidden = value;
                }
                _ => {}
            }
        }
        Ok(options)
    }

    /// True if the test shall run. A test that ends the machine must be named in full.
    pub fn selects(&self, name: &str, ends_machine: bool) -> bool {
        let suite = name.split('.').next().unwrap_or(name);
        match self.tests {
            None => !ends_machine,
            Some(list) => words(list).any(|word| word == name || (word == suite && !ends_machine)),
        }
    }

    /// The ranges that are not the guest's.
    pub fn forbidden(&self) -> impl Iterator<Item = Range<u64>> + 'a {
        words(self.forbidden).filter_map(|text| parse_range(text).ok())
    }

    /// The first word of the list that no test has.
    pub fn unknown<'n>(&self, names: impl Iterator<Item = &'n str> + Clone) -> Option<&'a str> {
        words(self.tests.unwrap_or("")).find(|word| {
            !names
                .clone()
                .any(|name| name == *word || name.split('.').next() == Some(word))
        })
    }
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|word| !word.is_empty())
}

fn parse_range(text: &str) -> Result<Range<u64>, Error<'_>> {
    let (start, end) = text.split_once('-').ok_or(Error::NotARange(text))?;
    let range = number("forbidden", start)?..number("forbidden", end)?;
    if range.is_empty() {
        return Err(Error::NotARange(text));
    }
    Ok(range)
}

fn number<'a>(name: &'a str, value: &'a str) -> Result<u64, Error<'a>> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| Error::NotANumber { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_options_the_tests_that_end_orderly_run() {
        let options = Options::parse("console=ttyS0 quiet").unwrap();
        assert!(options.selects("apic.self_ipi", false));
        assert!(!options.selects("end.reset", true));
        assert_eq!(options.forbidden().count(), 0);
    }

    #[test]
    fn tests_are_named_alone_or_by_their_suite() {
        let options = Options::parse("tests=apic,synic.timer,end count=0x10").unwrap();
        assert!(options.selects("apic.self_ipi", false));
        assert!(options.selects("synic.timer", false));
        assert!(!options.selects("synic.event", false));
        assert!(!options.selects("end.reset", true));
        assert_eq!(options.count, 16);
        let names = ["apic.self_ipi", "synic.timer"];
        assert_eq!(options.unknown(names.into_iter()), Some("end"));
    }

    #[test]
    fn ranges_are_parsed() {
        let options = Options::parse("forbidden=0x7000000-0x8000000,4096-8192").unwrap();
        let ranges: Vec<_> = options.forbidden().collect();
        assert_eq!(ranges, [0x700_0000..0x800_0000, 4096..8192]);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            Options::parse("forbidden=2-1"),
            Err(Error::NotARange("2-1"))
        );
        assert_eq!(Options::parse("forbidden=2"), Err(Error::NotARange("2")));
        assert!(matches!(
            Options::parse("count=many"),
            Err(Error::NotANumber { .. })
        ));
    }
}
