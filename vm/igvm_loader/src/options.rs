//! The host's own command line (`-append`): `<options> -- <bootargs>`.
//!
//! An option that the host does not know is an error: a misspelt one would otherwise
//! silently change what is tested or measured. What follows `--` is not looked at; it
//! goes to the image as `/chosen/bootargs`.

use crate::PAGE_SIZE;
use thiserror::Error;
use vsm_host_defs::OPTION_BOOTARGS_SEPARATOR;
use vsm_host_defs::OPTION_PARK;
use vsm_host_defs::OPTION_VTL2_MEMORY;

/// What a size must be.
pub const SIZE_FORM: &str = "a number with suffix K, M or G, not 0 and a multiple of 4K";
const OPTIONS: &str = "vtl2_memory=SIZE, park=on|off, or -- before the arguments for the image";

/// What the person who started the machine asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// Bytes of VTL2 RAM; `None`: what the image requires.
    pub vtl2_memory: Option<u64>,
    /// QEMU's vCPU 0 runs no VP.
    pub park: bool,
    /// For the image's `/chosen/bootargs`.
    pub bootargs: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            vtl2_memory: None,
            park: true,
            bootargs: "",
        }
    }
}

/// Why the command line cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OptionError<'a> {
    /// A word that is no option, or an option with a wrong value.
    #[error("host option {option}: found {found:?}, expected {expected}")]
    Word {
        /// The option, or what is instead of one.
        option: &'a str,
        /// Its value; of what is no option, all of it.
        found: &'a str,
        /// What it could be.
        expected: &'static str,
    },
    /// Bytes that are not text.
    #[error("host command line: found a byte that is not UTF-8 at offset {offset}, expected text")]
    NotText {
        /// Position of the first such byte.
        offset: usize,
    },
}

impl<'a> Options<'a> {
    /// Reads a command line as the machine hands it over.
    pub fn parse_bytes(command_line: &'a [u8]) -> Result<Self, OptionError<'a>> {
        let text = str::from_utf8(command_line).map_err(|error| OptionError::NotText {
            offset: error.valid_up_to(),
        })?;
        Self::parse(text)
    }

    /// Reads a command line.
    pub fn parse(command_line: &'a str) -> Result<Self, OptionError<'a>> {
        let (host, bootargs) = split_bootargs(command_line);
        let mut options = Self {
            bootargs,
            ..Self::default()
        };
        let mut seen = [false; 2];
        for word in host.split_ascii_whitespace() {
            let (index, option, found, expected) =
                if let Some(value) = word.strip_prefix(OPTION_VTL2_MEMORY) {
                    options.vtl2_memory = parse_size(value);
                    let expected = options.vtl2_memory.is_none().then_some(SIZE_FORM);
                    (0, OPTION_VTL2_MEMORY, value, expected)
                } else if let Some(value) = word.strip_prefix(OPTION_PARK) {
                    options.park = value == "on";
                    let expected = (!["on", "off"].contains(&value)).then_some("on or off");
                    (1, OPTION_PARK, value, expected)
                } else {
                    (0, word, word, Some(OPTIONS))
                };
            let repeated = core::mem::replace(&mut seen[index], true).then_some("it only once");
            if let Some(expected) = expected.or(repeated) {
                return Err(OptionError::Word {
                    option,
                    found,
                    expected,
                });
            }
        }
        Ok(options)
    }
}

/// Splits at the first word that is the separator.
fn split_bootargs(command_line: &str) -> (&str, &str) {
    let mut rest = command_line;
    while let Some(position) = rest.find(OPTION_BOOTARGS_SEPARATOR) {
        let at = command_line.len() - rest.len() + position;
        let (before, behind) = (
            &command_line[..at],
            &command_line[at + OPTION_BOOTARGS_SEPARATOR.len()..],
        );
        let is_edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_whitespace());
        if is_edge(before.chars().next_back()) && is_edge(behind.chars().next()) {
            return (before, behind.trim_ascii());
        }
        rest = behind;
    }
    (command_line, "")
}

/// A decimal number with an optional suffix, for a size in whole pages.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    // `parse` would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (size != 0 && size.is_multiple_of(PAGE_SIZE)).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn an_empty_command_line_gives_the_defaults() {
        assert_eq!(Options::parse("  "), Ok(Options::default()));
    }

    #[test]
    fn options_and_bootargs_are_separated() {
        assert_eq!(
            Options::parse("vtl2_memory=128M park=off -- OPENHCL_X=1  a--b -- c "),
            Ok(Options {
                vtl2_memory: Some(128 << 20),
                park: false,
                bootargs: "OPENHCL_X=1  a--b -- c",
            })
        );
        assert_eq!(Options::parse("--"), Ok(Options::default()));
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, bytes) in [
            ("8192", 8192),
            ("4K", 4096),
            ("3m", 3 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "K",
            "-4K",
            "+4K",
            "4T",
            "4 K",
            "5000",
            "0",
            "99999999999999G",
            "0x1000",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        for (line, part) in [
            ("vtl2_memroy=64M", "host option vtl2_memroy=64M"),
            ("vtl2_memory=5000", "multiple of 4K"),
            ("vtl2_memory=0", "not 0"),
            ("park=maybe", "on or off"),
            (
                "park=on park=off",
                "park=: found \"off\", expected it only once",
            ),
            (
                "park=on --x",
                "option --x: found \"--x\", expected vtl2_memory=SIZE",
            ),
        ] {
            let error = Options::parse(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
        assert_eq!(
            Options::parse_bytes(b"park=\xff"),
            Err(OptionError::NotText { offset: 5 })
        );
    }

    proptest! {
        #[test]
        fn no_command_line_panics(line in ".*") {
            let _ = Options::parse(&line);
        }

        #[test]
        fn bootargs_arrive_unchanged(args in "[a-zA-Z0-9=.,-]{1,20}( [a-zA-Z0-9=.,-]{1,20}){0,5}") {
            let line = alloc::format!("park=off -- {args}");
            prop_assert_eq!(Options::parse(&line).unwrap().bootargs, args);
        }
    }
}
