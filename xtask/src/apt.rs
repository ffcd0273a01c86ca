//! Packages of a newer Debian suite, without touching the machine's own apt state.
//!
//! apt runs with a configuration of ours: state, cache and lists lie in the user's cache
//! directory, so no privilege is needed. The mirror, its key and its proxy are those of
//! the machine; only the suite is replaced (see [`crate::apt_sources`]). Signatures are
//! verified as always, and the switches that would turn this off are pinned.

use crate::apt_sources;
use crate::apt_sources::Archive;
use crate::cache::Cache;
use crate::cache::Lock;
use crate::process;
use crate::ui;
use crate::ui::Step;
use anyhow::Context;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Settings of the machine that tell how to reach a mirror.
const INHERITED: [&str; 6] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Retries",
    "Acquire::ForceIPv",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];

/// An apt of our own, with the package lists of one suite.
pub(crate) struct PrivateApt {
    directory: PathBuf,
    _lock: Lock,
}

impl PrivateApt {
    /// Sets it up and fetches the lists of `suite`.
    pub(crate) fn open(cache: &Cache, suite: &str) -> anyhow::Result<Self> {
        let lock = cache.lock(&format!("apt-{suite}"))?;
        let directory = cache.root().join("apt").join(suite);
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            std::fs::create_dir_all(&path)
                .with_context(|| format!("creating {}", path.display()))?;
        }
        // No package counts as installed here.
        std::fs::write(directory.join("status"), "")?;
        std::fs::write(directory.join("apt.conf"), configuration(&directory)?)?;
        let apt = Self {
            directory,
            _lock: lock,
        };
        apt.update(cache, suite)?;
        Ok(apt)
    }

    /// Names of all packages that start with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let text = process::capture(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let mut names: Vec<_> = text.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// All versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let text = process::capture(self.command("apt-cache").args(["madison", package]))?;
        Ok(parse_madison(&text))
    }

    /// What a version of a package depends on; of alternatives, the first.
    pub(crate) fn depends(&self, package: &str, version: &str) -> anyhow::Result<Vec<String>> {
        let exact = format!("{package}={version}");
        let text = process::capture(self.command("apt-cache").args(["show", &exact]))?;
        Ok(parse_depends(&text))
    }

    /// Downloads one package into the empty directory `into` and returns its path there.
    pub(crate) fn download(
        &self,
        cache: &Cache,
        step: &Step,
        package: &str,
        version: &str,
        into: &Path,
    ) -> anyhow::Result<PathBuf> {
        let mut command = self.command("apt-get");
        command
            .current_dir(into)
            .args(["download", &format!("{package}={version}")]);
        let log = process::run_logged(cache, "apt-download", step, &mut command)?;
        std::fs::read_dir(into)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .with_context(|| {
                format!(
                    "apt-get download left no {package} package in {} (log: {})",
                    into.display(),
                    log.display()
                )
            })
    }

    fn update(&self, cache: &Cache, suite: &str) -> anyhow::Result<()> {
        let archives = machine_archives()?;
        anyhow::ensure!(
            !archives.is_empty(),
            "no entry for Debian's main archive in the machine's apt sources, expected one \
             whose mirror can also give {suite}"
        );
        ui::step(&format!("fetch the package lists of {suite}"), |step| {
            // An entry may look like Debian's and be another party's. It has no such suite,
            // or not under Debian's key: then the next entry is tried.
            let mut refused = None;
            for archive in &archives {
                std::fs::write(self.sources(), archive.stanza(suite))?;
                let mut command = self.command("apt-get");
                command.args(["--error-on=any", "update"]);
                match process::run_logged(cache, "apt-lists", step, &mut command) {
                    Ok(_) => return Ok(()),
                    Err(error) => refused = Some(error),
                }
            }
            Err(refused.unwrap_or_else(|| anyhow::anyhow!("no archive was tried")))
        })
    }

    fn sources(&self) -> PathBuf {
        self.directory.join("suite.sources")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }
}

/// The text of the private configuration.
fn configuration(directory: &Path) -> anyhow::Result<String> {
    let own = |path: &str| directory.join(path).display().to_string();
    let mut settings = vec![
        ("Dir::State".to_owned(), own("state")),
        ("Dir::State::status".to_owned(), own("status")),
        ("Dir::Cache".to_owned(), own("cache")),
        ("Dir::Etc::sourcelist".to_owned(), own("suite.sources")),
        // Lists are fetched as the user who owns them: apt's own user could not enter a
        // private cache directory.
        ("APT::Sandbox::User".to_owned(), "root".to_owned()),
        ("Acquire::Languages".to_owned(), "none".to_owned()),
    ];
    for part in [
        "sourceparts",
        "parts",
        "main",
        "preferences",
        "preferencesparts",
    ] {
        settings.push((format!("Dir::Etc::{part}"), "/dev/null".to_owned()));
    }
    for switch in [
        "Acquire::AllowInsecureRepositories",
        "Acquire::AllowWeakRepositories",
        "Acquire::AllowDowngradeToInsecureRepositories",
        "APT::Get::AllowUnauthenticated",
    ] {
        settings.push((switch.to_owned(), "0".to_owned()));
    }
    // Keys and mirror passwords stay where the machine has them.
    for part in ["trusted", "trustedparts", "netrc", "netrcparts"] {
        let name = format!("Dir::Etc::{part}");
        let path = machine_path(&name)?;
        settings.push((name, path));
    }
    let mut text = String::new();
    for (name, value) in settings {
        text += &format!("{name} \"{value}\";\n");
    }
    let machine = process::capture(Command::new("apt-config").args(["dump", "Acquire"]))?;
    for line in machine.lines() {
        if INHERITED.iter().any(|prefix| line.starts_with(prefix)) {
            text += line;
            text.push('\n');
        }
    }
    Ok(text)
}

/// A path of the machine's own apt configuration.
fn machine_path(name: &str) -> anyhow::Result<String> {
    let text = process::capture(Command::new("apt-config").args([
        "shell",
        "VALUE",
        &format!("{name}/f"),
    ]))?;
    let value = text.trim().strip_prefix("VALUE='");
    value
        .and_then(|v| v.strip_suffix('\''))
        .map(str::to_owned)
        .with_context(|| format!("apt-config knows no {name}"))
}

/// Debian's archives among the machine's sources.
fn machine_archives() -> anyhow::Result<Vec<Archive>> {
    let mut files = vec![PathBuf::from(machine_path("Dir::Etc::sourcelist")?)];
    if let Ok(entries) = std::fs::read_dir(machine_path("Dir::Etc::sourceparts")?) {
        let mut parts: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut archives: Vec<Archive> = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let found = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => apt_sources::parse_deb822(&text),
            Some("list") => apt_sources::parse_one_line(&text),
            _ => Vec::new(),
        };
        for archive in found {
            if !archives.contains(&archive) {
                archives.push(archive);
            }
        }
    }
    Ok(archives)
}

fn parse_madison(text: &str) -> Vec<String> {
    let mut versions: Vec<String> = Vec::new();
    for line in text.lines() {
        if let Some(version) = line.split('|').nth(1).map(str::trim)
            && !versions.iter().any(|v| v == version)
        {
            versions.push(version.to_owned());
        }
    }
    versions
}

fn parse_depends(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("Depends:"));
    line.unwrap_or_default()
        .split(',')
        .filter_map(|dependency| dependency.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_lose_versions_and_alternatives() {
        let text = "Package: p\nPre-Depends: x\n\
                    Depends: dracut | initramfs-tools (>= 0.120), linux-base (= 7), kmod\n\
                    Depends-Not: y\n";
        assert_eq!(parse_depends(text), ["dracut", "linux-base", "kmod"]);
        assert!(parse_depends("Package: p\n").is_empty());
    }

    #[test]
    fn versions_keep_apts_order_and_are_named_once() {
        let text = "  rust-src | 1.96.1-1 | mirror suite/main amd64 Packages\n\
                    \x20 rust-src | 1.95.0-1 | mirror suite/main amd64 Packages\n\
                    \x20 rust-src | 1.95.0-1 | mirror suite/main Sources\n";
        assert_eq!(parse_madison(text), ["1.96.1-1", "1.95.0-1"]);
    }

    #[test]
    fn private_configuration_keeps_signatures_and_leaves_the_machine_alone() {
        let text = configuration(Path::new("/private")).unwrap();
        assert!(text.contains("Acquire::AllowInsecureRepositories \"0\";"));
        assert!(text.contains("Dir::State \"/private/state\";"));
        assert!(text.contains("Dir::Cache \"/private/cache\";"));
        for line in text.lines() {
            let harmless = ["trusted", "netrc", "sourcelist", "/dev/null"];
            assert!(
                !line.starts_with("Dir::Etc") || harmless.iter().any(|h| line.contains(h)),
                "{line}"
            );
        }
    }
}
