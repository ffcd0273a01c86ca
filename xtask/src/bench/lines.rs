//! Lines of source, without tests.

use anyhow::Context as _;
use std::path::Path;

/// Lines of all Rust and assembly files below a directory, comments and blank lines
/// included. What counts as a test: a file `tests.rs`, a directory `tests`, and everything
/// from `#[cfg(test)]` before a module to the end of its file, which is where this
/// workspace has them.
pub(crate) fn count_without_tests(directory: &Path) -> anyhow::Result<usize> {
    let mut lines = 0;
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name == "tests" || name == "tests.rs" {
            continue;
        }
        if path.is_dir() {
            lines += count_without_tests(&path)?;
        } else if matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("rs" | "S" | "s" | "asm")
        ) {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            lines += lines_before_tests(&text);
        }
    }
    Ok(lines)
}

fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        })
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_module_ends_the_count() {
        let text = "a\n#[cfg(test)]\nuse b;\nc\n#[cfg(test)]\nmod tests {\n    d\n}\n";
        assert_eq!(lines_before_tests(text), 4);
        assert_eq!(lines_before_tests("a\nb\n"), 2);
        assert_eq!(lines_before_tests("#[cfg(test)]\nmod tests;\nc\n"), 3);
    }
}
