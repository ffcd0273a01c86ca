//! Splits the kernel's command line into words, as the kernel itself does.
//!
//! A part of the text comes from the host. Any text is acceptable: there is no wrong
//! command line, only words that nobody asks for.

/// A word of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// What stands before the first `=`, or the whole word.
    pub name: &'a str,
    /// What stands after it, without quotes around it.
    pub value: Option<&'a str>,
}

/// The words that the kernel takes for parameters: all up to a bare `--`, behind which
/// arguments of PID 1 follow.
pub fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = text.trim_start_matches(is_space);
    std::iter::from_fn(move || {
        let (word, tail) = next(rest)?;
        rest = tail;
        Some(word)
    })
    .take_while(|word| *word != END)
}

const END: Word<'static> = Word {
    name: "--",
    value: None,
};

/// What the kernel's `isspace` takes for a space in ASCII.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// The first word of `text`, which starts with it, and what follows.
///
/// A quotation mark hides spaces up to the next one, wherever in the word it stands.
/// Marks around the whole word or around the value are dropped, others are kept.
fn next(text: &str) -> Option<(Word<'_>, &str)> {
    if text.is_empty() {
        return None;
    }
    let (quoted, text) = match text.strip_prefix('"') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut in_quotes = quoted;
    let mut equals = None;
    let mut end = text.len();
    for (at, c) in text.char_indices() {
        if is_space(c) && !in_quotes {
            end = at;
            break;
        }
        // A word cannot have an empty name: a `=` at its start belongs to the name.
        if c == '=' && equals.is_none() && at > 0 {
            equals = Some(at);
        }
        in_quotes ^= c == '"';
    }
    let (word, rest) = text.split_at(end);
    let rest = rest.trim_start_matches(is_space);

    let word = match equals {
        None => Word {
            name: without_closing_mark(word, quoted),
            value: None,
        },
        Some(equals) => {
            let value = &word[equals + 1..];
            let (value, value_quoted) = match value.strip_prefix('"') {
                Some(value) => (value, true),
                None => (value, false),
            };
            Word {
                name: &word[..equals],
                value: Some(without_closing_mark(value, quoted || value_quoted)),
            }
        }
    };
    Some((word, rest))
}

fn without_closing_mark(text: &str, quoted: bool) -> &str {
    match text.strip_suffix('"') {
        Some(inner) if quoted => inner,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(&str, Option<&str>)> {
        words(text).map(|w| (w.name, w.value)).collect()
    }

    #[test]
    fn words_are_separated_by_any_white_space() {
        assert_eq!(
            pairs("  quiet\tloglevel=8 \n console=ttyS2,115200\n"),
            [
                ("quiet", None),
                ("loglevel", Some("8")),
                ("console", Some("ttyS2,115200"))
            ]
        );
    }

    #[test]
    fn quotation_marks_hide_spaces() {
        assert_eq!(
            pairs(r#"a="one two" "b=three four" "c d" e=x" y"z f="""#),
            [
                ("a", Some("one two")),
                ("b", Some("three four")),
                ("c d", None),
                ("e", Some(r#"x" y"z"#)),
                ("f", Some("")),
            ]
        );
    }

    #[test]
    fn an_open_quotation_mark_reaches_to_the_end() {
        assert_eq!(pairs(r#"a="one two"#), [("a", Some("one two"))]);
        assert_eq!(pairs(r#"""#), [("", None)]);
    }

    #[test]
    fn only_the_first_equals_sign_separates() {
        assert_eq!(pairs("a=b=c =d"), [("a", Some("b=c")), ("=d", None)]);
    }

    #[test]
    fn arguments_of_pid_1_are_not_parameters() {
        assert_eq!(pairs("a=1 -- b=2"), [("a", Some("1"))]);
    }

    proptest! {
        #[test]
        fn any_text_has_words(text in "\\PC*|[a=\" \\-]*") {
            for word in words(&text) {
                prop_assert!(word.name.len() + word.value.unwrap_or("").len() <= text.len());
            }
        }

        #[test]
        fn plain_words_come_back(
            input in prop::collection::vec(("[a-z_.]{1,8}", prop::option::of("[a-z0-9,]{0,8}")), 0..8)
        ) {
            let text: Vec<String> = input.iter().map(|(name, value)| match value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            }).collect();
            let text = text.join(" ");
            let expected: Vec<(&str, Option<&str>)> = input
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_deref()))
                .collect();
            prop_assert_eq!(pairs(&text), expected);
        }
    }
}
