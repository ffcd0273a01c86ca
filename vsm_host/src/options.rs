//! The host's own command line (`-append`): `<options> -- <bootargs>`.
//!
//! An option that the host does not know is an error: a misspelt one would otherwise
//! silently change what is tested or measured. What follows `--` is not looked at; it
//! goes to the image as `/chosen/bootargs`.

use crate::platform::PAGE_SIZE;
use thiserror::Error;
use vsm_host_defs::OPTION_BOOTARGS_SEPARATOR;
use vsm_host_defs::OPTION_PARK;
use vsm_host_defs::OPTION_VTL2_MEMORY;

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
    /// Not an option of the host.
    #[error(
        "host option: found {found:?}, expected {OPTION_VTL2_MEMORY}SIZE, {OPTION_PARK}on|off, or \
         {OPTION_BOOTARGS_SEPARATOR} before the arguments for the image"
    )]
    Unknown {
        /// The word.
        found: &'a str,
    },
    /// A size that is none.
    #[error(
        "host option {option}: found {found:?}, expected a number of bytes with suffix K, M or G, \
         not 0 and a multiple of 4K"
    )]
    Size {
        /// The option.
        option: &'static str,
        /// Its value.
        found: &'a str,
    },
    /// A switch that is neither on nor off.
    #[error("host option {option}: found {found:?}, expected on or off")]
    Switch {
        /// The option.
        option: &'static str,
        /// Its value.
        found: &'a str,
    },
    /// An option that was given before.
    #[error("host option {option}: given twice, expected once")]
    Repeated {
        /// The option.
        option: &'static str,
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
        let mut vtl2_memory = None;
        let mut park = None;
        for word in host.split_ascii_whitespace() {
            if let Some(value) = word.strip_prefix(OPTION_VTL2_MEMORY) {
                let size = parse_size(value)
                    .filter(|size| *size != 0 && size.is_multiple_of(PAGE_SIZE))
                    .ok_or(OptionError::Size {
                        option: OPTION_VTL2_MEMORY,
                        found: value,
                    })?;
                set_once(&mut vtl2_memory, size, OPTION_VTL2_MEMORY)?;
            } else if let Some(value) = word.strip_prefix(OPTION_PARK) {
                let on = match value {
                    "on" => true,
                    "off" => false,
                    found => {
                        return Err(OptionError::Switch {
                            option: OPTION_PARK,
                            found,
                        });
                    }
                };
                set_once(&mut park, on, OPTION_PARK)?;
            } else {
                return Err(OptionError::Unknown { found: word });
            }
        }
        Ok(Self {
            vtl2_memory,
            park: park.unwrap_or(true),
            bootargs,
        })
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

fn set_once<'a, T>(
    slot: &mut Option<T>,
    value: T,
    option: &'static str,
) -> Result<(), OptionError<'a>> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(OptionError::Repeated { option }),
    }
}

/// A decimal number with an optional suffix.
fn parse_size(text: &str) -> Option<u64> {
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
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
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
            "99999999999999G",
            "0x1000",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        for (line, part) in [
            ("vtl2_memroy=64M", "\"vtl2_memroy=64M\""),
            ("vtl2_memory=5000", "multiple of 4K"),
            ("vtl2_memory=0", "not 0"),
            ("park=maybe", "on or off"),
            ("park=on park=on", "given twice"),
            ("park=on --x", "\"--x\""),
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
