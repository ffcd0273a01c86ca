//! Which archive this machine takes Debian from.
//!
//! Both formats of apt's source files are read: deb822 stanzas (`*.sources`) and lines
//! (`*.list`). Only enabled entries of binary packages that name a Debian release as
//! their suite and `main` as component count. Their mirror and key are kept.

/// Releases whose mirrors carry the suites that we need.
const RELEASES: [&str; 6] = ["bookworm", "trixie", "forky", "stable", "oldstable", "sid"];

/// Where Debian's keys are, for entries that do not say.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A mirror of Debian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// The mirror's addresses, separated by blanks.
    uris: String,
    /// A keyring's path, a fingerprint or a key, as in the field `Signed-By`.
    signed_by: String,
}

impl Archive {
    /// The stanza that gives `suite` of this archive.
    pub(crate) fn stanza(&self, suite: &str) -> String {
        format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {}\n",
            self.uris, self.signed_by
        )
    }

    fn new(uris: &str, suites: &str, components: &str, signed_by: Option<String>) -> Option<Self> {
        let names_release = suites.split_whitespace().any(|s| RELEASES.contains(&s));
        let names_main = components.split_whitespace().any(|c| c == "main");
        let reachable = !uris.is_empty() && !uris.starts_with("cdrom:");
        (names_release && names_main && reachable).then(|| Self {
            uris: uris.to_owned(),
            signed_by: signed_by.unwrap_or_else(|| DEBIAN_KEYRING.to_owned()),
        })
    }
}

/// Reads the stanzas of a `*.sources` file.
pub(crate) fn parse_deb822(text: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    // The empty line at the end closes the last stanza.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            archives.extend(archive_of_stanza(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    archives
}

fn archive_of_stanza(stanza: &[(String, String)]) -> Option<Archive> {
    let field = |name: &str| {
        let found = stanza.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    };
    let disabled = matches!(field("enabled"), Some("no" | "false" | "0"));
    let binary = field("types")?.split_whitespace().any(|t| t == "deb");
    if disabled || !binary {
        return None;
    }
    Archive::new(
        &field("uris")?
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        field("suites")?,
        field("components")?,
        field("signed-by").map(str::to_owned),
    )
}

/// Reads the lines of a `*.list` file.
pub(crate) fn parse_one_line(text: &str) -> Vec<Archive> {
    text.lines().filter_map(archive_of_line).collect()
}

fn archive_of_line(line: &str) -> Option<Archive> {
    let line = line.split('#').next().unwrap_or_default();
    let rest = line.trim().strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components = words.collect::<Vec<_>>().join(" ");
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .map(|path| path.replace(',', " "));
    Archive::new(uri, suite, &components, signed_by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_suite_of_a_stanza_is_replaced() {
        let text = "Types: deb deb-src\nURIs: https://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main contrib\n\
                    Signed-By: /keys/debian.gpg\n";
        let archives = parse_deb822(text);
        assert_eq!(archives.len(), 1);
        assert_eq!(
            archives[0].stanza("trixie-backports"),
            "Types: deb\nURIs: https://mirror.example/debian\nSuites: trixie-backports\n\
             Components: main\nSigned-By: /keys/debian.gpg\n"
        );
    }

    #[test]
    fn a_key_inside_a_stanza_is_kept_whole() {
        let text = "Types: deb\nURIs: http://m/debian\nSuites: bookworm\nComponents: main\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQENBF\n";
        let stanza = parse_deb822(text)[0].stanza("s");
        assert!(
            stanza.ends_with("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQENBF\n")
        );
    }

    #[test]
    fn other_stanzas_do_not_count() {
        for text in [
            "Types: deb\nURIs: http://m\nSuites: bookworm-security\nComponents: main\n",
            "Types: deb-src\nURIs: http://m\nSuites: bookworm\nComponents: main\n",
            "Types: deb\nURIs: http://m\nSuites: bookworm\nComponents: contrib\n",
            "Types: deb\nURIs: http://m\nSuites: nodistro\nComponents: main\n",
            "Enabled: no\nTypes: deb\nURIs: http://m\nSuites: bookworm\nComponents: main\n",
            "# Types: deb\n",
        ] {
            assert_eq!(parse_deb822(text), [], "{text}");
        }
    }

    #[test]
    fn a_line_with_options_keeps_its_key() {
        let archives = parse_one_line(
            "# old\ndeb [ arch=amd64 signed-by=/k.gpg ] http://m/debian bookworm main contrib # x\n",
        );
        assert_eq!(archives.len(), 1);
        assert_eq!(archives[0].uris, "http://m/debian");
        assert_eq!(archives[0].signed_by, "/k.gpg");
    }

    #[test]
    fn an_entry_without_a_key_gets_debians() {
        let archives = parse_one_line("deb http://m/debian bookworm main\n");
        assert_eq!(archives[0].signed_by, DEBIAN_KEYRING);
    }

    #[test]
    fn other_lines_do_not_count() {
        for line in [
            "deb-src http://m bookworm main",
            "deb cdrom:[Debian] bookworm main",
            "deb http://m bookworm-security main",
            "deb http://m ./",
            "deb [arch=amd64 http://m bookworm main",
        ] {
            assert_eq!(parse_one_line(line), [], "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "(?s).{0,200}") {
            let _ = parse_deb822(&text);
            let _ = parse_one_line(&text);
        }
    }
}
