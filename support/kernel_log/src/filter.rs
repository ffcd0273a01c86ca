//! Which events reach the log.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;

/// The most directives that a filter has.
const DIRECTIVES_MAX: usize = 32;

/// The longest text of a filter in bytes.
const TEXT_MAX: usize = 1024;

/// A list of `LEVEL` and `TARGET=LEVEL`. The directive with the longest target that an
/// event's target begins with counts; without any, only errors pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The longest target first; the empty one matches all.
    directives: Vec<(String, LevelFilter)>,
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// Longer than any sensible filter.
    #[error("filter has {size} bytes, expected at most {TEXT_MAX}")]
    TooLong {
        /// Its size.
        size: usize,
    },
    /// More directives than any sensible filter.
    #[error("filter has more than {DIRECTIVES_MAX} directives")]
    TooMany,
    /// A part that is no directive.
    #[error("filter has {part:?}, expected {}", self.expected())]
    Directive {
        /// The part.
        part: String,
    },
}

impl FilterError {
    /// What would have been right.
    pub fn expected(&self) -> String {
        match self {
            Self::TooLong { .. } => format!("at most {TEXT_MAX} bytes"),
            Self::TooMany => format!("at most {DIRECTIVES_MAX} directives"),
            Self::Directive { .. } => {
                "LEVEL or TARGET=LEVEL separated by commas, LEVEL one of off, error, warn, info, debug, trace"
                    .to_owned()
            }
        }
    }
}

impl Filter {
    /// Everything at `level` and above passes.
    pub fn level(level: LevelFilter) -> Self {
        Self {
            directives: vec![(String::new(), level)],
        }
    }

    /// Whether an event of this kind passes.
    pub fn passes(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level_of(metadata.target())
    }

    /// The least important level that can pass.
    pub fn most_verbose(&self) -> LevelFilter {
        self.directives
            .iter()
            .map(|(_, level)| *level)
            .max()
            .unwrap_or(LevelFilter::ERROR)
            .max(LevelFilter::ERROR)
    }

    fn level_of(&self, target: &str) -> LevelFilter {
        self.directives
            .iter()
            .find(|(prefix, _)| is_within(target, prefix))
            .map_or(LevelFilter::ERROR, |(_, level)| *level)
    }
}

/// `prefix` is `target` itself or a module around it.
fn is_within(target: &str, prefix: &str) -> bool {
    prefix.is_empty()
        || target
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > TEXT_MAX {
            return Err(FilterError::TooLong { size: text.len() });
        }
        let mut directives: Vec<(String, LevelFilter)> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (target, level) = directive(part).ok_or_else(|| FilterError::Directive {
                part: part.to_owned(),
            })?;
            // The last word about a target counts, as for all options.
            directives.retain(|(known, _)| known != target);
            if directives.len() == DIRECTIVES_MAX {
                return Err(FilterError::TooMany);
            }
            directives.push((target.to_owned(), level));
        }
        directives.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(Self { directives })
    }
}

fn directive(part: &str) -> Option<(&str, LevelFilter)> {
    let (target, level) = match part.split_once('=') {
        Some((target, level)) => (target, level),
        None => ("", part),
    };
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let level = match level {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    };
    let named = part.contains('=');
    (target.chars().all(is_path) && named != target.is_empty()).then_some((target, level))
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (target, level)) in self.directives.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            if !target.is_empty() {
                write!(f, "{target}=")?;
            }
            write!(f, "{level}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn level(filter: &str, target: &str) -> LevelFilter {
        filter.parse::<Filter>().unwrap().level_of(target)
    }

    #[test]
    fn the_longest_target_that_fits_decides() {
        let filter = "warn,mesh=info,mesh::process=trace";
        assert_eq!(level(filter, "diag_server"), LevelFilter::WARN);
        assert_eq!(level(filter, "mesh"), LevelFilter::INFO);
        assert_eq!(level(filter, "mesh::channel"), LevelFilter::INFO);
        assert_eq!(level(filter, "mesh::process::launch"), LevelFilter::TRACE);
        // A name that only begins alike is another crate.
        assert_eq!(level(filter, "meshwork"), LevelFilter::WARN);
    }

    #[test]
    fn the_last_word_about_a_target_counts() {
        assert_eq!(level("debug,warn", "x"), LevelFilter::WARN);
        assert_eq!(level("a=debug,a=off", "a"), LevelFilter::OFF);
    }

    #[test]
    fn errors_pass_where_nothing_is_said() {
        assert_eq!(level("mesh=debug", "other"), LevelFilter::ERROR);
    }

    #[test]
    fn a_wrong_part_is_named_with_what_was_expected() {
        for (text, part) in [
            ("loud", "loud"),
            ("info,=debug", "=debug"),
            ("", ""),
            ("a b=info", "a b=info"),
            ("a=INFO!", "a=INFO!"),
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert_eq!(
                error,
                FilterError::Directive {
                    part: part.to_owned()
                }
            );
            assert!(error.to_string().contains("off, error, warn"));
        }
    }

    #[test]
    fn size_is_limited() {
        let long = "info,".repeat(400);
        assert!(matches!(
            long.parse::<Filter>(),
            Err(FilterError::TooLong { .. })
        ));
        let many: Vec<String> = (0..40).map(|i| format!("t{i}=info")).collect();
        assert_eq!(many.join(",").parse::<Filter>(), Err(FilterError::TooMany));
    }

    proptest! {
        #[test]
        fn any_text_is_a_filter_that_comes_back_or_an_error(text in "[a-z:=, ]{0,60}|\\PC{0,40}") {
            if let Ok(filter) = text.parse::<Filter>() {
                prop_assert_eq!(filter.to_string().parse::<Filter>(), Ok(filter));
            }
        }
    }
}
