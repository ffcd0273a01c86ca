//! Builds of the parts that go into the image or below it.
//!
//! The same sources give the same bytes wherever they lie: paths of this machine are
//! replaced in what the compiler emits, and nothing of the caller's environment that
//! changes code gets through.

use crate::cache::Cache;
use crate::process;
use crate::toolchain::BareMetal;
use crate::ui;
use anyhow::Context;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// The target of programs that run in VTL2's Linux.
const USER_TARGET: &str = "x86_64-unknown-linux-gnu";
/// The target of programs that run without Linux.
pub(crate) const BARE_METAL_TARGET: &str = "x86_64-unknown-none";
/// The same for Arm.
pub(crate) const ARM_TARGET: &str = "aarch64-unknown-none";
/// The profile of what goes into the image.
const PROFILE: &str = "image";

/// Packages with a bare-metal program of the same name.
pub(crate) const BARE_METAL_PACKAGES: [&str; 5] =
    ["vsm_host", "openhcl_boot", "sidecar", "tmk", "guest_tests"];

/// A checkout and the place of its build results.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The directory of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// Name of the logs of its builds: two checkouts may be built at once.
    pub(crate) log: &'static str,
}

/// Programs built for the image.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) user_binary: PathBuf,
    pub(crate) vsm_host: PathBuf,
    pub(crate) openhcl_boot: PathBuf,
    pub(crate) sidecar: PathBuf,
    pub(crate) tmk: PathBuf,
    pub(crate) guest_tests: PathBuf,
}

impl Workspace {
    /// The checkout that this program was built from.
    pub(crate) fn current() -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            target_directory: PathBuf,
        }
        let root = crate::vmm_tests::workspace_root();
        let mut command = cargo(&root);
        command.args(["metadata", "--no-deps", "--format-version=1"]);
        let text = process::capture(&mut command)?;
        let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
        Ok(Self {
            root,
            target: metadata.target_directory,
            log: "cargo-build",
        })
    }

    /// Where xtask puts what it makes itself.
    pub(crate) fn output(&self) -> PathBuf {
        self.target.join("openhcl")
    }

    /// Builds all programs of an image.
    pub(crate) fn build_programs(
        &self,
        cache: &Cache,
        bare_metal: &BareMetal,
    ) -> anyhow::Result<Programs> {
        self.build(cache, "build the paravisor binary", |command| {
            Ok(prepare_user_program(command, "underhill_entry"))
        })?;
        let step = "build host, shim and test kernels";
        self.build_bare_metal(cache, bare_metal, step, &BARE_METAL_PACKAGES)?;
        let programs = Programs {
            user_binary: self.program(USER_TARGET, "underhill_entry"),
            vsm_host: self.program(BARE_METAL_TARGET, "vsm_host"),
            openhcl_boot: self.program(BARE_METAL_TARGET, "openhcl_boot"),
            sidecar: self.program(BARE_METAL_TARGET, "sidecar"),
            tmk: self.program(BARE_METAL_TARGET, "tmk"),
            guest_tests: self.program(BARE_METAL_TARGET, "guest_tests"),
        };
        let Programs {
            user_binary,
            vsm_host,
            openhcl_boot,
            sidecar,
            tmk,
            guest_tests,
        } = &programs;
        for path in [
            user_binary,
            vsm_host,
            openhcl_boot,
            sidecar,
            tmk,
            guest_tests,
        ] {
            anyhow::ensure!(path.is_file(), "cargo left no {}", path.display());
        }
        Ok(programs)
    }

    /// Builds the host alone.
    pub(crate) fn build_host(
        &self,
        cache: &Cache,
        bare_metal: &BareMetal,
    ) -> anyhow::Result<PathBuf> {
        const PACKAGE: &str = "vsm_host";
        self.build_bare_metal(cache, bare_metal, "build the host", &[PACKAGE])?;
        Ok(self.program(BARE_METAL_TARGET, PACKAGE))
    }

    fn build_bare_metal(
        &self,
        cache: &Cache,
        bare_metal: &BareMetal,
        step: &str,
        packages: &[&str],
    ) -> anyhow::Result<()> {
        self.build(cache, step, |command| {
            bare_metal.apply(command, BARE_METAL_TARGET);
            for package in packages {
                // The program only: a library of that name builds with it.
                command.args(["--package", package, "--bin", package]);
            }
            Ok(bare_metal
                .remapped()?
                .map(|(from, to)| remap(&from, to))
                .into_iter()
                .collect())
        })
    }

    /// Builds the test image's own program. Not together with the paravisor binary, which
    /// would get the features that this one asks of their common dependencies.
    pub(crate) fn build_vsock_peer(&self, cache: &Cache) -> anyhow::Result<PathBuf> {
        const PACKAGE: &str = "vsock_peer";
        self.build(cache, "build the test image's program", |command| {
            command.args(["--bin", PACKAGE]);
            Ok(prepare_user_program(command, PACKAGE))
        })?;
        Ok(self.program(USER_TARGET, PACKAGE))
    }

    /// Builds the program that measures exits of a nested KVM guest, for the same target.
    pub(crate) fn build_kvm_exit(&self, cache: &Cache) -> anyhow::Result<PathBuf> {
        const PACKAGE: &str = "kvm_exit";
        self.build(cache, "build the bench's program", |command| {
            command.args(["--bin", PACKAGE]);
            Ok(prepare_user_program(command, PACKAGE))
        })?;
        Ok(self.program(USER_TARGET, PACKAGE))
    }

    /// Where cargo leaves a program.
    fn program(&self, target: &str, name: &str) -> PathBuf {
        self.target.join(target).join(PROFILE).join(name)
    }

    fn build(
        &self,
        cache: &Cache,
        name: &str,
        prepare: impl FnOnce(&mut Command) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<()> {
        let mut command = cargo(&self.root);
        command.env("CARGO_TARGET_DIR", &self.target).args([
            "build",
            "--locked",
            "--profile",
            PROFILE,
        ]);
        let mut flags = prepare(&mut command)?;
        flags.extend(self.remapped_paths()?);
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        ui::step(name, |step| {
            process::run_logged(cache, self.log, step, &mut command)
        })?;
        Ok(())
    }

    fn remapped_paths(&self) -> anyhow::Result<Vec<String>> {
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
            .context("neither CARGO_HOME nor HOME is set")?;
        // The longest path must win, and the compiler lets the last one win.
        let mut paths = [(home, "/cargo"), (self.root.clone(), "/openhcl")];
        paths.sort_by_key(|(path, _)| path.as_os_str().len());
        Ok(paths.iter().map(|(from, to)| remap(from, to)).collect())
    }
}

/// One file, no dynamic loader. This is also where it may differ from tests.
fn prepare_user_program(command: &mut Command, package: &str) -> Vec<String> {
    command.args(["--target", USER_TARGET, "--package", package]);
    vec!["-Ctarget-feature=+crt-static".to_owned()]
}

fn remap(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
}

/// A cargo command in the checkout `root`, without settings that would change code.
pub(crate) fn cargo(root: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root);
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else {
            continue;
        };
        if changes_code(name) {
            command.env_remove(name);
        }
    }
    command
}

/// Variables that reach cargo's configuration, and those that `cargo run` has set for us.
fn changes_code(name: &str) -> bool {
    const PREFIXES: [&str; 5] = [
        "CARGO_PROFILE_",
        "CARGO_BUILD_",
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_TARGET_X86_64_",
    ];
    const NAMES: [&str; 3] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_BOOTSTRAP"];
    name != "CARGO_BUILD_JOBS"
        && (NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_change_code_do_not_reach_cargo() {
        for name in [
            "RUSTFLAGS",
            "CARGO_PROFILE_IMAGE_LTO",
            "CARGO_BUILD_RUSTFLAGS",
        ] {
            assert!(changes_code(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "PATH"] {
            assert!(!changes_code(name), "{name}");
        }
    }

    #[test]
    fn both_checkouts_see_the_same_paths() {
        let flags = |root: &str| {
            let workspace = Workspace {
                root: root.into(),
                target: "/t".into(),
                log: "test",
            };
            workspace.remapped_paths().unwrap()
        };
        for root in [
            "/somewhere",
            "/somewhere/much/deeper/than/any/home/directory",
        ] {
            let expected = format!("--remap-path-prefix={root}=/openhcl");
            assert!(flags(root).contains(&expected));
        }
    }
}
