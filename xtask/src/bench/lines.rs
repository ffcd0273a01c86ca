//! Lines of source, without tests.

use anyhow::Context as _;
use std::path::Path;

/// A number of lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    /// All.
    pub(crate) all: usize,
    /// Those that are neither blank nor a comment.
    pub(crate) code: usize,
}

/// Lines of all Rust and assembly files below a directory. What counts as a test: a file
/// `tests.rs`, a directory `tests`, and everything from `#[cfg(test)]` before a module to
/// the end of its file, which is where this workspace has them.
pub(crate) fn count_without_tests(directory: &Path) -> anyhow::Result<Lines> {
    let mut sum = Lines::default();
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name == "tests" || name == "tests.rs" {
            continue;
        }
        let lines = if path.is_dir() {
            count_without_tests(&path)?
        } else if matches!(path.extension().and_then(|e| e.to_str()), Some("rs" | "S")) {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            count_before_tests(&text)
        } else {
            Lines::default()
        };
        sum.all += lines.all;
        sum.code += lines.code;
    }
    Ok(sum)
}

fn count_before_tests(text: &str) -> Lines {
    let lines: Vec<&str> = text.lines().collect();
    let all = lines
        .windows(2)
        .position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        })
        .unwrap_or(lines.len());
    let is_code = |line: &&&str| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with("//")
    };
    Lines {
        all,
        code: lines[..all].iter().filter(is_code).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_module_ends_the_count() {
        let text = "a\n#[cfg(test)]\nuse b;\n\n#[cfg(test)]\nmod tests {\n    d\n}\n";
        assert_eq!(count_before_tests(text), Lines { all: 4, code: 3 });
        assert_eq!(count_before_tests("#[cfg(test)]\nmod tests;\nc\n").all, 3);
    }

    #[test]
    fn comments_and_blank_lines_are_no_code() {
        let text = "//! a\n\n    // b\nc // d\n";
        assert_eq!(count_before_tests(text), Lines { all: 4, code: 1 });
    }
}
