//! Trees as text.
//!
//! `{}` is one line, `{:#}` a line per value with two spaces per level, and with large sizes
//! and times also in units that people grasp. Both are made for terminals: text of the tree
//! is quoted, with everything escaped that a terminal could take for a command.

use crate::Error;
use crate::Node;
use crate::Radix;
use crate::Unit;
use crate::Value;
use crate::ValueKind;
use std::borrow::Cow;
use std::fmt;
use std::fmt::Write;

/// The text with every control character as an escape (`\n`, `\u{1b}`), and also what
/// changes the direction of writing. For text from a less trusted party on its way to a
/// terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_harmful(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return tree(self, 0, f);
        }
        match self {
            Self::Dir(entries) => {
                f.write_char('{')?;
                for (index, entry) in entries.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{}: {}", printable(&entry.name), entry.node)?;
                }
                f.write_char('}')
            }
            leaf => write_leaf(leaf, f),
        }
    }
}

fn write_leaf(node: &Node, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match node {
        Node::Unevaluated => f.write_char('_'),
        Node::Failed(error) => write!(f, "<{}>", printable(&error_text(error))),
        Node::Value(value) => write!(f, "{value}"),
        Node::Dir(_) => f.write_str("{}"),
    }
}

fn error_text(error: &Error) -> String {
    format!("error: {error}")
}

/// The lines of a directory, or the only line of something else.
fn tree(node: &Node, level: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Node::Dir(entries) = node else {
        return write_line_end(node, f);
    };
    if entries.is_empty() && level == 0 {
        return f.write_str("{}\n");
    }
    for entry in entries {
        write!(f, "{:1$}", "", 2 * level)?;
        f.write_str(&printable(&entry.name))?;
        f.write_char(':')?;
        match &entry.node {
            Node::Dir(entries) if !entries.is_empty() => {
                f.write_char('\n')?;
                tree(&entry.node, level + 1, f)?;
            }
            leaf => {
                f.write_char(' ')?;
                write_line_end(leaf, f)?;
            }
        }
    }
    Ok(())
}

fn write_line_end(leaf: &Node, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write_leaf(leaf, f)?;
    if let Node::Value(value) = leaf
        && let Some((number, unit)) = scaled(value)
    {
        write!(f, " ({number:.1} {unit})")?;
    }
    f.write_char('\n')
}

/// A large size or time in a unit in which it is a small number.
fn scaled(value: &Value) -> Option<(f64, &'static str)> {
    const SIZES: [(f64, &str); 3] = [
        ((1u64 << 30) as f64, "GiB"),
        ((1u64 << 20) as f64, "MiB"),
        ((1u64 << 10) as f64, "KiB"),
    ];
    const TIMES: [(f64, &str); 4] = [(3600e9, "h"), (1e9, "s"), (1e6, "ms"), (1e3, "us")];
    const PAGE: f64 = 4096.0;
    let number = value.as_u64()? as f64;
    let (number, units) = match value.format.unit {
        Unit::Bytes => (number, &SIZES[..]),
        Unit::Pages => (number * PAGE, &SIZES[..]),
        Unit::Nanoseconds => (number, &TIMES[..]),
        Unit::ReferenceTicks => (number * 100.0, &TIMES[..]),
        Unit::Microseconds => (number * 1e3, &TIMES[..3]),
        Unit::Milliseconds => (number * 1e6, &TIMES[..2]),
        _ => return None,
    };
    let (size, unit) = units.iter().find(|(size, _)| number >= *size)?;
    Some((number / size, unit))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ValueKind::Signed(value) => match self.format.radix {
                Radix::Decimal => write!(f, "{value}")?,
                // The sign is kept: two's complement would need the width.
                radix => {
                    let sign = if *value < 0 { "-" } else { "" };
                    f.write_str(sign)?;
                    digits(value.unsigned_abs(), radix, f)?;
                }
            },
            ValueKind::Unsigned(value) => digits(*value, self.format.radix, f)?,
            ValueKind::Float(value) => write!(f, "{value}")?,
            ValueKind::Double(value) => write!(f, "{value}")?,
            ValueKind::Bool(value) => return write!(f, "{value}"),
            ValueKind::String(value) => return quoted(value, f),
            ValueKind::Bytes(value) => {
                f.write_char('<')?;
                for byte in value {
                    write!(f, "{byte:02x}")?;
                }
                return f.write_char('>');
            }
        }
        match self.format.unit {
            Unit::None => Ok(()),
            unit => write!(f, " {}", unit.sign()),
        }
    }
}

fn digits(value: u64, radix: Radix, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match radix {
        Radix::Decimal => write!(f, "{value}"),
        Radix::Hex => write!(f, "{value:#x}"),
        Radix::Binary => write!(f, "{value:#b}"),
    }
}

fn quoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if is_harmful(c) => write!(f, "{}", c.escape_default())?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}
