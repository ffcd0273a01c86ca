//! Debian packages that must be installed on the machine itself.

use crate::cache::Cache;
use crate::process;
use crate::ui;
use anyhow::Context;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// A package and what it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    /// Debian's name.
    pub(crate) name: &'static str,
    /// Why we need it.
    pub(crate) purpose: &'static str,
}

const fn package(name: &'static str, purpose: &'static str) -> Package {
    Package { name, purpose }
}

/// Everything that any command needs.
pub(crate) const PACKAGES: [Package; 12] = [
    package("qemu-system-x86", "the machine that everything runs in"),
    package("busybox-static", "the shell of development images"),
    package("gcc", "compiles the kernel, links programs"),
    package("g++", "compiles the fuzzing engine"),
    package("libc6-dev", "the static C library of the paravisor binary"),
    package("make", "builds the kernel"),
    package("flex", "builds the kernel's configuration tool"),
    package("bison", "builds the kernel's configuration tool"),
    package("bc", "used by the kernel's build"),
    package("libelf-dev", "used by the kernel's object tool"),
    package("libssl-dev", "used by the kernel's build"),
    package("xz-utils", "unpacks the kernel's source"),
];

/// The packages that are not installed.
pub(crate) fn missing() -> anyhow::Result<Vec<Package>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(PACKAGES.map(|package| package.name))
        .output()
        .context("starting dpkg-query; set-up knows only Debian")?;
    // It fails when it does not know one of them, and still shows the others.
    let shown = String::from_utf8_lossy(&output.stdout);
    Ok(missing_from(&shown))
}

fn missing_from(shown: &str) -> Vec<Package> {
    let installed = |package: &Package| {
        let line = format!("{} installed", package.name);
        shown.lines().any(|l| l == line)
    };
    PACKAGES.into_iter().filter(|p| !installed(p)).collect()
}

/// The command that installs `packages`, for a person.
pub(crate) fn install_command(packages: &[Package]) -> String {
    let names: Vec<_> = packages.iter().map(|p| p.name).collect();
    format!(
        "sudo apt-get install --no-install-recommends {}",
        names.join(" ")
    )
}

/// Installs what is missing when we are root; else says how.
pub(crate) fn ensure(cache: &Cache) -> anyhow::Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    anyhow::ensure!(
        is_root(),
        "Debian packages are missing; install them with\n\n  {}\n",
        install_command(&missing)
    );
    let names = missing.iter().map(|p| p.name);
    let name = format!("install {}", names.clone().collect::<Vec<_>>().join(" "));
    ui::step(&name, |step| {
        let _lock = cache.lock("apt-install")?;
        let apt_get = || {
            let mut command = Command::new("apt-get");
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Another program may be installing just now.
                .args(["--yes", "--option", "DPkg::Lock::Timeout=300"]);
            command
        };
        let install = || {
            let mut command = apt_get();
            command
                .args(["install", "--no-install-recommends"])
                .args(names.clone());
            process::run_logged(cache, "apt-install", step, &mut command)
        };
        // The lists of a fresh machine may be old or absent.
        if install().is_err() {
            process::run_logged(cache, "apt-update", step, apt_get().arg("update"))?;
            install()?;
        }
        Ok(())
    })
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_removed_packages_are_missing() {
        let shown: String = PACKAGES
            .iter()
            .filter(|p| p.name != "bison")
            .map(|p| match p.name {
                "flex" => "flex config-files\n".to_owned(),
                name => format!("{name} installed\n"),
            })
            .collect();
        let missing: Vec<_> = missing_from(&shown).iter().map(|p| p.name).collect();
        assert_eq!(missing, ["flex", "bison"]);
    }

    #[test]
    fn the_printed_command_names_every_missing_package() {
        let command = install_command(&PACKAGES[..2]);
        assert_eq!(
            command,
            "sudo apt-get install --no-install-recommends qemu-system-x86 busybox-static"
        );
    }
}
