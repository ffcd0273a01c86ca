//! The fragments merged, and the comparison with what Kconfig made of them.

use crate::fragment::Fragment;
use crate::fragment::Origin;
use crate::fragment::Value;
use crate::fragment::parse_option;
use std::collections::BTreeMap;
use std::fmt;

/// Every option that is asked for, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    options: BTreeMap<String, (Value, Origin)>,
}

/// Two lines ask for the same option.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{second}: {option} is asked for twice, expected only {first}")]
pub struct MergeError {
    /// The option.
    pub option: String,
    /// The line that was there first.
    pub first: Origin,
    /// The line that is too many.
    pub second: Origin,
}

/// An option that is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The option.
    pub option: String,
    /// The line that asks for it.
    pub origin: Origin,
    /// What the final configuration says; `None` if it does not know the option, which
    /// mostly means that a dependency is missing.
    pub found: Option<Value>,
    /// What was asked for.
    pub expected: Value,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is ", self.origin, self.option)?;
        match &self.found {
            Some(found) => write!(f, "{found}")?,
            None => f.write_str("not known to this kernel or lacks a dependency")?,
        }
        write!(f, ", expected {}", self.expected)
    }
}

impl Requests {
    /// Merges fragments.
    pub fn merge(fragments: impl IntoIterator<Item = Fragment>) -> Result<Self, MergeError> {
        let mut options: BTreeMap<String, (Value, Origin)> = BTreeMap::new();
        for (origin, option, value) in fragments.into_iter().flat_map(|f| f.lines) {
            if let Some((_, first)) = options.get(&option) {
                return Err(MergeError {
                    first: first.clone(),
                    second: origin,
                    option,
                });
            }
            options.insert(option, (value, origin));
        }
        Ok(Self { options })
    }

    /// How many options are asked for.
    pub fn len(&self) -> usize {
        self.options.len()
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.options.is_empty()
    }

    /// The text for `KCONFIG_ALLCONFIG`, in a fixed order.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (option, (value, _)) in &self.options {
            match value {
                Value::Set(value) => text += &format!("{option}={value}\n"),
                Value::Unset => text += &format!("# {option} is not set\n"),
            }
        }
        text
    }

    /// Compares with the final `.config`; returns what did not take effect.
    ///
    /// An option that must be off may be absent: Kconfig leaves out what is invisible.
    pub fn check(&self, final_config: &str) -> Vec<Mismatch> {
        let actual: BTreeMap<&str, Value> = final_config.lines().filter_map(parse_option).collect();
        self.options
            .iter()
            .filter_map(|(option, (expected, origin))| {
                let found = actual.get(option.as_str());
                let holds = match expected {
                    Value::Set(_) => found == Some(expected),
                    Value::Unset => matches!(found, None | Some(Value::Unset)),
                };
                (!holds).then(|| Mismatch {
                    option: option.clone(),
                    origin: origin.clone(),
                    found: found.cloned(),
                    expected: expected.clone(),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(text: &str) -> Requests {
        Requests::merge([Fragment::parse("f", &format!("# why\n{text}")).unwrap()]).unwrap()
    }

    #[test]
    fn an_option_asked_for_twice_is_refused_even_across_fragments() {
        let a = Fragment::parse("a", "# why\nCONFIG_X=y\n").unwrap();
        let b = Fragment::parse("b", "# why\nCONFIG_X=y\n").unwrap();
        let error = Requests::merge([a, b]).unwrap_err();
        assert_eq!(error.option, "CONFIG_X");
        assert_eq!(error.first.file, "a");
        assert_eq!(error.second.file, "b");
    }

    #[test]
    fn satisfied_requests_pass() {
        let requests = requests("CONFIG_A=y\nCONFIG_M=m\nCONFIG_N=64\n# CONFIG_B is not set\n");
        let config = "CONFIG_A=y\nCONFIG_M=m\nCONFIG_N=64\n# CONFIG_B is not set\nCONFIG_Z=y\n";
        assert_eq!(requests.check(config), []);
    }

    #[test]
    fn a_dropped_option_is_reported_by_name_and_line() {
        let mismatches = requests("CONFIG_A=y\nCONFIG_GONE=y\n").check("CONFIG_A=y\n");
        assert_eq!(mismatches.len(), 1);
        assert_eq!(mismatches[0].option, "CONFIG_GONE");
        assert_eq!(mismatches[0].origin.line, 3);
        assert!(mismatches[0].to_string().contains("expected y"));
    }

    #[test]
    fn a_module_that_became_built_in_is_reported() {
        assert_eq!(requests("CONFIG_M=m\n").check("CONFIG_M=y\n").len(), 1);
    }

    #[test]
    fn a_refused_option_that_is_selected_by_another_is_reported() {
        let requests = requests("# CONFIG_B is not set\n");
        assert_eq!(requests.check("CONFIG_B=y\n").len(), 1);
        assert_eq!(requests.check("CONFIG_B=m\n").len(), 1);
        assert_eq!(requests.check("").len(), 0);
    }

    #[test]
    fn a_name_that_only_begins_like_the_option_does_not_count() {
        assert_eq!(requests("CONFIG_A=y\n").check("CONFIG_AB=y\n").len(), 1);
    }

    #[test]
    fn text_does_not_depend_on_the_order_of_fragments() {
        let parse = |name, text| Fragment::parse(name, text).unwrap();
        let a = || parse("a", "# why\nCONFIG_X=y\n");
        let b = || parse("b", "# why\n# CONFIG_A is not set\n");
        let text = Requests::merge([a(), b()]).unwrap().to_text();
        assert_eq!(text, Requests::merge([b(), a()]).unwrap().to_text());
        assert_eq!(text, "# CONFIG_A is not set\nCONFIG_X=y\n");
    }
}
