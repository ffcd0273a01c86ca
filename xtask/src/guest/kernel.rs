//! Debian's kernels for virtual machines, fetched and verified by apt, never changed.
//!
//! The package `linux-image-cloud-amd64` of a suite only names the newest kernel; its
//! dependencies lead to the package that has `vmlinuz` (signed by Debian for Secure
//! Boot, which makes no difference here). A suite's kernel that is in the cache is used
//! again without asking a mirror, so a machine without network keeps working.

use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::process;
use crate::ui;
use anyhow::Context as _;
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Names the newest kernel of a suite.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What the names of packages on the way to the kernel begin and end with.
const STEPS: [&str; 2] = ["linux-image-", "linux-binary-"];
const FLAVOUR: &str = "-cloud-amd64";

/// `./boot/vmlinuz-VERSION`; since Linux 7, `./usr/lib/modules/VERSION/vmlinuz`.
const KERNEL_IN_PACKAGE: &str = "*/vmlinuz*";

/// More packages are not on the way.
const MAX_STEPS: usize = 4;

/// Kind of the cache's entries, and the file in each.
const CACHE_KIND: &str = "guest-kernel";
const VMLINUZ: &str = "vmlinuz";

/// A suite of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Suite {
    /// Debian 12: Linux 6.1.
    #[default]
    Bookworm,
    /// Debian 13: Linux 6.12.
    Trixie,
    /// Newer kernels for Debian 13: Linux 7.
    TrixieBackports,
}

/// A kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestKernel {
    /// The file, a bzImage.
    pub(crate) vmlinuz: PathBuf,
    /// The package that it comes from.
    pub(crate) package: String,
    /// The package's version.
    pub(crate) version: String,
}

impl Suite {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::TrixieBackports];

    /// Debian's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::TrixieBackports => "trixie-backports",
        }
    }

    /// The suite with this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }
}

/// A suite's kernel, fetched when it is not in the cache.
pub(crate) fn ensure(cache: &Cache, suite: Suite) -> anyhow::Result<GuestKernel> {
    if let Some(kernel) = cached(cache, suite) {
        return Ok(kernel);
    }
    fetch(cache, suite).with_context(|| {
        format!(
            "the guest's kernel from Debian's {} (give another one with --kernel FILE)",
            suite.name()
        )
    })
}

/// A suite's kernel in the cache.
pub(crate) fn cached(cache: &Cache, suite: Suite) -> Option<GuestKernel> {
    let directory = cache.path(CACHE_KIND, suite.name());
    let mut found: Vec<_> = std::fs::read_dir(&directory)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (package, version) = path.file_name()?.to_str()?.split_once('_')?;
            Some(GuestKernel {
                package: package.to_owned(),
                version: version.to_owned(),
                vmlinuz: Some(path.join(VMLINUZ)).filter(|file| file.is_file())?,
            })
        })
        .collect();
    // Any fixed choice is repeatable; more than one is there only after a race.
    found.sort_by(|a, b| (&a.version, &a.package).cmp(&(&b.version, &b.package)));
    found.pop()
}

fn fetch(cache: &Cache, suite: Suite) -> anyhow::Result<GuestKernel> {
    let apt = PrivateApt::open(cache, suite.name())?;
    let (package, version) = resolve(|package| {
        let versions = apt.versions(package)?;
        let version = versions.into_iter().next().with_context(|| {
            format!("no version of {package}, expected one in {}", suite.name())
        })?;
        let depends = apt.depends(package, &version)?;
        Ok((version, depends))
    })?;
    let key = format!("{}/{package}_{version}", suite.name());
    let name = format!("fetch {package} {version}");
    let directory = cache.get_or_build(CACHE_KIND, &key, |into| {
        ui::step(&name, |step| {
            let download = cache.temporary(CACHE_KIND)?;
            let deb = apt.download(cache, step, &package, &version, download.path())?;
            unpack(&deb, &into.join(VMLINUZ))
        })
    })?;
    Ok(GuestKernel {
        vmlinuz: directory.join(VMLINUZ),
        package,
        version,
    })
}

/// Follows dependencies from the meta package to the one that has the kernel. `look_up`
/// tells a package's version and what it depends on.
fn resolve(
    look_up: impl Fn(&str) -> anyhow::Result<(String, Vec<String>)>,
) -> anyhow::Result<(String, String)> {
    let mut package = META_PACKAGE.to_owned();
    for _ in 0..MAX_STEPS {
        let (version, depends) = look_up(&package)?;
        let next = depends.into_iter().find(|name| {
            let on_the_way = STEPS.iter().any(|prefix| name.starts_with(prefix));
            on_the_way && name.ends_with(FLAVOUR)
        });
        match next {
            Some(next) => package = next,
            None if package == META_PACKAGE => {
                anyhow::bail!("{META_PACKAGE} {version} depends on no kernel")
            }
            None => return Ok((package, version)),
        }
    }
    anyhow::bail!("{META_PACKAGE} leads to no kernel within {MAX_STEPS} packages")
}

/// Writes the kernel that is inside the package.
fn unpack(deb: &Path, into: &Path) -> anyhow::Result<()> {
    let mut package = Command::new("dpkg-deb");
    package.arg("--fsys-tarfile").arg(deb);
    let mut inner = Command::new("tar");
    inner
        .args(["--extract", "--to-stdout", "--wildcards"])
        .arg(KERNEL_IN_PACKAGE)
        .stdout(File::create(into).with_context(|| format!("creating {}", into.display()))?);
    process::pipeline(&mut [package, inner]).with_context(|| format!("unpacking {}", deb.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(packages: &[(&str, &[&str])]) -> anyhow::Result<String> {
        let look_up = |package: &str| {
            let found = packages.iter().find(|(name, _)| *name == package);
            let (_, depends) = found.with_context(|| format!("no {package}"))?;
            let depends = depends.iter().map(|name| (*name).to_owned()).collect();
            Ok(("1".to_owned(), depends))
        };
        resolve(look_up).map(|(package, _)| package)
    }

    #[test]
    fn dependencies_lead_to_the_package_with_the_kernel() {
        let old = resolved(&[
            (META_PACKAGE, &["linux-image-6.1.0-50-cloud-amd64"]),
            ("linux-image-6.1.0-50-cloud-amd64", &["kmod", "linux-base"]),
        ]);
        assert_eq!(old.unwrap(), "linux-image-6.1.0-50-cloud-amd64");
        let new = resolved(&[
            (
                META_PACKAGE,
                &["linux-base-cloud-amd64", "linux-image-7-cloud-amd64"],
            ),
            (
                "linux-image-7-cloud-amd64",
                &[
                    "dracut",
                    "linux-base-7-cloud-amd64",
                    "linux-binary-7-cloud-amd64",
                ],
            ),
            ("linux-binary-7-cloud-amd64", &[]),
        ]);
        assert_eq!(new.unwrap(), "linux-binary-7-cloud-amd64");
    }

    #[test]
    fn a_suite_without_a_kernel_is_an_error() {
        let none = resolved(&[(META_PACKAGE, &["kmod"])]).unwrap_err();
        assert!(none.to_string().contains("depends on no kernel"));
        let circle = resolved(&[
            (META_PACKAGE, &["linux-image-1-cloud-amd64"]),
            ("linux-image-1-cloud-amd64", &["linux-image-1-cloud-amd64"]),
        ]);
        assert!(circle.unwrap_err().to_string().contains("no kernel within"));
    }

    #[test]
    fn a_cached_kernel_needs_no_mirror() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        assert_eq!(cached(&cache, Suite::Trixie), None);
        let entry = cache.path(CACHE_KIND, "trixie/linux-image-6.12-cloud-amd64_6.12.1-1");
        std::fs::create_dir_all(&entry).unwrap();
        assert_eq!(cached(&cache, Suite::Trixie), None, "it has no kernel");
        std::fs::write(entry.join(VMLINUZ), "x").unwrap();

        let kernel = ensure(&cache, Suite::Trixie).unwrap();

        assert_eq!(kernel.package, "linux-image-6.12-cloud-amd64");
        assert_eq!(kernel.version, "6.12.1-1");
        assert_eq!(cached(&cache, Suite::Bookworm), None);
    }

    #[test]
    fn names_of_suites_are_those_of_the_options() {
        for suite in Suite::ALL {
            let value = clap::ValueEnum::to_possible_value(&suite).unwrap();
            assert_eq!(value.get_name(), suite.name());
            assert_eq!(Suite::by_name(suite.name()), Some(suite));
        }
    }
}
