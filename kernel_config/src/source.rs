//! `kernel.toml`: which source package, and what is taken from the build.

use serde::Deserialize;
use std::fmt;

/// The contents of `kernel.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    /// Where the source comes from.
    pub source: Source,
    /// What the build must give.
    pub outputs: Outputs,
}

/// The source package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The package's name without its series.
    pub package: String,
    /// The first admitted series.
    #[serde(deserialize_with = "series")]
    pub at_least: Series,
    /// The first series that is not admitted any more.
    #[serde(deserialize_with = "series")]
    pub below: Series,
    /// The preferred exact version of the package.
    pub tested: String,
    /// The suite that has it.
    pub suite: String,
}

/// What the build must give.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// Upper bound of the stripped ELF file.
    pub max_vmlinux_bytes: u64,
    /// Modules for the initial ramdisk, in loading order.
    pub modules: Vec<Module>,
}

/// One module.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// Its path below the build directory.
    pub path: String,
}

/// A kernel series, `7.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

/// Why `kernel.toml` is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not TOML, or not with these fields.
    #[error("kernel.toml: {0}")]
    Toml(#[from] toml::de::Error),
    /// The range is empty.
    #[error("kernel.toml: range from {at_least} to below {below} is empty")]
    EmptyRange {
        /// The first admitted series.
        at_least: Series,
        /// The first series that is not.
        below: Series,
    },
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Series {
    /// Reads `7.3`, and the leading `7.3` of `7.3.4-1~bpo13+1`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        text.as_bytes()
            .iter()
            .find(|b| !b.is_ascii_digit())
            .filter(|&&b| b == b'.')?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

impl KernelSpec {
    /// Parses the text of `kernel.toml`.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text)?;
        let Source {
            at_least, below, ..
        } = spec.source;
        if at_least >= below {
            return Err(SpecError::EmptyRange { at_least, below });
        }
        Ok(spec)
    }
}

impl Source {
    /// Whether a version of the package, as apt writes it, lies in the range.
    pub fn admits(&self, version: &str) -> bool {
        Series::parse(version).is_some_and(|s| self.at_least <= s && s < self.below)
    }

    /// The series of a package name such as `linux-source-7.3`, if it is one of this
    /// source and in the range.
    pub fn admitted_series(&self, package: &str) -> Option<Series> {
        let series = package.strip_prefix(&self.package)?.strip_prefix('-')?;
        let parsed = Series::parse(series)?;
        // `linux-source-7.3-something` is another package.
        (parsed.to_string() == series && self.at_least <= parsed && parsed < self.below)
            .then_some(parsed)
    }
}

fn series<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Series, D::Error> {
    let text = String::deserialize(deserializer)?;
    Series::parse(&text)
        .filter(|s| s.to_string() == text)
        .ok_or_else(|| {
            serde::de::Error::custom(format!("found {text:?}, expected a series like 7.3"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(at_least: &str, below: &str) -> Result<KernelSpec, SpecError> {
        KernelSpec::parse(&format!(
            "[source]\npackage='linux-source'\nat_least='{at_least}'\nbelow='{below}'\n\
             tested='7.3.4-1'\nsuite='s'\n[outputs]\nmax_vmlinux_bytes=1\nmodules=[]\n"
        ))
    }

    #[test]
    fn versions_in_the_range_are_admitted() {
        let source = spec("7.3", "7.10").unwrap().source;
        for version in ["7.3-1", "7.3.4-1~bpo13+1", "7.9.12-2"] {
            assert!(source.admits(version), "{version}");
        }
        for version in [
            "7.2.9-1", "7.10-1", "8.3-1", "6.19.3-1", "", "7", "x7.3", "7-3",
        ] {
            assert!(!source.admits(version), "{version}");
        }
    }

    #[test]
    fn only_plain_source_packages_are_taken() {
        let source = spec("7.3", "7.4").unwrap().source;
        assert!(source.admitted_series("linux-source-7.3").is_some());
        for name in [
            "linux-source-7.2",
            "linux-source-7.3-rt",
            "linux-source",
            "linux-config-7.3",
        ] {
            assert!(source.admitted_series(name).is_none(), "{name}");
        }
    }

    #[test]
    fn an_empty_range_is_refused() {
        assert!(matches!(
            spec("7.4", "7.3"),
            Err(SpecError::EmptyRange { .. })
        ));
    }

    #[test]
    fn a_series_with_a_patch_level_is_refused() {
        assert!(matches!(spec("7.3.1", "7.4"), Err(SpecError::Toml(_))));
    }

    proptest! {
        #[test]
        fn any_version_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = Series::parse(&text);
        }
    }
}
