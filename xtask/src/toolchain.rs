//! How the bare-metal parts get their standard library.
//!
//! In this order: rustup's target; the component `rust-src` of the toolchain, from which
//! cargo builds `core` and `alloc`; Debian's package `rust-src` of exactly the compiler's
//! version, unpacked into the cache. What is there already is used; only then is rustup
//! asked to download, and Debian's archive after it.

use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::process;
use crate::ui;
use anyhow::Context;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// The suite with the current compilers.
const SUITE: &str = "trixie-backports";

/// How long rustup may try. It downloads a few MiB; without a network it would hang.
const RUSTUP_SECONDS: &str = "90";

/// The targets of the bare-metal parts.
pub(crate) const TARGETS: [&str; 2] = ["x86_64-unknown-none", "aarch64-unknown-none"];

/// Where the bare-metal standard library comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BareMetal {
    /// rustup has installed the targets.
    Target,
    /// cargo builds it from the toolchain's own component.
    Component,
    /// cargo builds it from Debian's package; this is its folder `library`.
    Debian(PathBuf),
}

impl BareMetal {
    /// What is there, without any download.
    pub(crate) fn find(cache: &Cache) -> anyhow::Result<Option<Self>> {
        let sysroot = sysroot()?;
        let installed = |target: &&str| {
            sysroot
                .join("lib/rustlib")
                .join(target)
                .join("lib")
                .is_dir()
        };
        if TARGETS.iter().all(installed) {
            return Ok(Some(Self::Target));
        }
        if sysroot
            .join("lib/rustlib/src/rust/library/Cargo.lock")
            .is_file()
        {
            return Ok(Some(Self::Component));
        }
        let cached = cache.get("rust-src", &rustc_version()?);
        Ok(cached.map(|path| Self::Debian(path.join("library"))))
    }

    /// What is there, or what can be had.
    pub(crate) fn ensure(cache: &Cache) -> anyhow::Result<Self> {
        if let Some(found) = Self::find(cache)? {
            return Ok(found);
        }
        let from_rustup = add_targets(cache);
        if let Some(found) = Self::find(cache)? {
            return Ok(found);
        }
        let version = rustc_version()?;
        let directory = cache
            .get_or_build("rust-src", &version, |into| {
                fetch_rust_src(cache, &version, into)
            })
            .with_context(|| match from_rustup {
                Ok(()) => "rustup added no target".to_owned(),
                Err(error) => format!("rustup could not add the targets either: {error:#}"),
            })?;
        Ok(Self::Debian(directory.join("library")))
    }

    /// Prepares a cargo command that builds for `target`.
    pub(crate) fn apply(&self, command: &mut Command, target: &str) {
        command.args(["--target", target]);
        if *self == Self::Target {
            return;
        }
        command
            .env("RUSTC_BOOTSTRAP", "1")
            .arg("-Zbuild-std=core,alloc,compiler_builtins");
        if let Self::Debian(library) = self {
            // Cargo's own way to be told of a library that is not in the sysroot.
            command.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
        }
    }

    /// Paths that must not get into what is built, with what stands for them.
    pub(crate) fn remapped(&self) -> anyhow::Result<Option<(PathBuf, &'static str)>> {
        let library = match self {
            Self::Target => return Ok(None),
            Self::Component => sysroot()?.join("lib/rustlib/src/rust/library"),
            Self::Debian(library) => library.clone(),
        };
        Ok(Some((library, "/rust/library")))
    }
}

impl std::fmt::Display for BareMetal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Target => f.write_str("rustup targets"),
            Self::Component => f.write_str("built from the rust-src component"),
            Self::Debian(library) => write!(f, "built from {}", library.display()),
        }
    }
}

/// The compiler's version, `1.95.0`.
pub(crate) fn rustc_version() -> anyhow::Result<String> {
    let text = process::capture(rustc().arg("--version"))?;
    let version = text.split_whitespace().nth(1);
    Ok(version
        .with_context(|| format!("found {text:?}, expected `rustc VERSION ...`"))?
        .to_owned())
}

fn sysroot() -> anyhow::Result<PathBuf> {
    Ok(process::capture(rustc().args(["--print", "sysroot"]))?
        .trim()
        .into())
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

fn add_targets(cache: &Cache) -> anyhow::Result<()> {
    let _lock = cache.lock("rustup")?;
    ui::step("add the bare-metal targets with rustup", |step| {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", RUSTUP_SECONDS, "rustup", "target", "add"])
            .args(TARGETS)
            .env("RUSTUP_MAX_RETRIES", "0");
        process::run_logged(cache, "rustup", step, &mut command)?;
        Ok(())
    })
}

fn fetch_rust_src(cache: &Cache, version: &str, into: &Path) -> anyhow::Result<()> {
    let apt = PrivateApt::open(cache, SUITE)?;
    let versions = apt.versions("rust-src")?;
    let package = matching_version(&versions, version)
        .with_context(|| format!("{SUITE} has rust-src {versions:?}, expected one of {version}"))?;
    ui::step(&format!("fetch rust-src {package}"), |step| {
        let directory = cache.temporary("rust-src-package")?;
        let deb = apt.download(cache, step, "rust-src", package, directory.path())?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--fsys-tarfile").arg(&deb);
        let mut extract = Command::new("tar");
        extract
            .args(["--extract", "--strip-components=4", "--directory"])
            .arg(into)
            .arg(format!("./usr/src/rustc-{version}/library"));
        process::pipeline(&mut [unpack, extract])
    })
}

/// The Debian version whose upstream part is exactly `upstream`.
fn matching_version<'a>(versions: &'a [String], upstream: &str) -> Option<&'a str> {
    versions.iter().map(String::as_str).find(|version| {
        let rest = version.strip_prefix(upstream);
        rest.is_some_and(|rest| rest.starts_with(['+', '-']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_compilers_own_version_matches() {
        let versions =
            ["1.95.1+dfsg1-1", "1.95.0+dfsg1-2~bpo13+1", "1.95.0~beta-1"].map(String::from);
        assert_eq!(
            matching_version(&versions, "1.95.0"),
            Some("1.95.0+dfsg1-2~bpo13+1")
        );
        assert_eq!(matching_version(&versions, "1.9"), None);
    }

    #[test]
    fn an_installed_target_needs_no_unstable_option() {
        let mut command = Command::new("cargo");
        BareMetal::Target.apply(&mut command, "x86_64-unknown-none");
        assert_eq!(command.get_envs().count(), 0);
        assert!(
            command
                .get_args()
                .all(|a| a != "-Zbuild-std=core,alloc,compiler_builtins")
        );
    }
}
