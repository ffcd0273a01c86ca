//! One fragment: lines of Kconfig's own output format, each option group with a reason.

use std::fmt;

/// What a line asks an option to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `CONFIG_X=value`: `y`, `m`, a number or a quoted string, kept as written.
    Set(String),
    /// `# CONFIG_X is not set`.
    Unset,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Set(text) => f.write_str(text),
            Value::Unset => f.write_str("unset"),
        }
    }
}

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The fragment's file name.
    pub file: String,
    /// The line's number, from 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A parsed fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    pub(crate) lines: Vec<(Origin, String, Value)>,
}

/// Why a fragment is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FragmentError {
    /// A line in neither of the two forms of an option, nor a comment.
    #[error(
        "{origin}: found {found:?}, expected `CONFIG_NAME=value`, `# CONFIG_NAME is not set` or a comment"
    )]
    Malformed {
        /// Where.
        origin: Origin,
        /// The line.
        found: String,
    },
    /// A group of options (lines without a blank one between them) starts without a comment.
    #[error(
        "{origin}: the group that starts with {option} has no reason, expected a comment above it"
    )]
    NoReason {
        /// Where.
        origin: Origin,
        /// The group's first option.
        option: String,
    },
}

impl Fragment {
    /// Parses the text of the fragment file `file`.
    pub fn parse(file: &str, text: &str) -> Result<Self, FragmentError> {
        let mut lines = Vec::new();
        let mut group_has_reason = false;
        for (index, line) in text.lines().enumerate() {
            let origin = Origin {
                file: file.to_owned(),
                line: index + 1,
            };
            let line = line.trim_end();
            if line.is_empty() {
                group_has_reason = false;
            } else if let Some((option, value)) = parse_option(line) {
                if !group_has_reason {
                    return Err(FragmentError::NoReason {
                        origin,
                        option: option.to_owned(),
                    });
                }
                lines.push((origin, option.to_owned(), value));
            } else if line.starts_with('#') {
                group_has_reason = true;
            } else {
                return Err(FragmentError::Malformed {
                    origin,
                    found: line.to_owned(),
                });
            }
        }
        Ok(Self { lines })
    }
}

/// Reads one line of a fragment or of a `.config`; `None` for anything but an option.
pub(crate) fn parse_option(line: &str) -> Option<(&str, Value)> {
    if let Some(rest) = line.strip_prefix("# ") {
        let option = rest.strip_suffix(" is not set")?;
        return is_option_name(option).then_some((option, Value::Unset));
    }
    let (option, value) = line.split_once('=')?;
    if !is_option_name(option) || value.is_empty() {
        return None;
    }
    // `=n` is what people write; Kconfig itself writes the comment form.
    let value = match value {
        "n" => Value::Unset,
        value => Value::Set(value.to_owned()),
    };
    Some((option, value))
}

fn is_option_name(text: &str) -> bool {
    text.strip_prefix("CONFIG_").is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_of_an_option_are_read() {
        let fragment = Fragment::parse(
            "f",
            "# why\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=n\n",
        )
        .unwrap();
        let values: Vec<_> = fragment
            .lines
            .iter()
            .map(|(_, o, v)| (o.as_str(), v))
            .collect();
        assert_eq!(
            values,
            [
                ("CONFIG_A", &Value::Set("y".into())),
                ("CONFIG_B", &Value::Unset),
                ("CONFIG_C", &Value::Unset),
            ]
        );
    }

    #[test]
    fn a_misspelt_line_is_refused_by_number() {
        let error = Fragment::parse("f", "# why\nCONFIG_A=y\nCONFG_B=y\n").unwrap_err();
        assert!(error.to_string().starts_with("f:3: "), "{error}");
    }

    #[test]
    fn a_group_without_a_reason_is_refused() {
        let error = Fragment::parse("f", "# why\nCONFIG_A=y\n\nCONFIG_B=y\n").unwrap_err();
        assert!(
            matches!(error, FragmentError::NoReason { ref option, .. } if option == "CONFIG_B")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,300}") {
            let _ = Fragment::parse("f", &text);
        }
    }
}
