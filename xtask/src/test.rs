//! `cargo xtask test`: everything that must pass, in the order in which a failure is found
//! soonest. A failed step does not hide the ones behind it.

use crate::artifacts;
use crate::artifacts::ImageProfile;
use crate::artifacts::Prepared;
use crate::build_igvm;
use crate::cache::write_if_changed;
use crate::cargo;
use crate::cargo::ARM_TARGET;
use crate::cargo::BARE_METAL_PACKAGES;
use crate::cargo::BARE_METAL_TARGET;
use crate::cargo::Workspace;
use crate::fuzz;
use crate::kernel_headers;
use crate::process;
use crate::ui;
use anyhow::Context;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  cargo xtask test           everything; this is what CI runs
  cargo xtask test unit      only the steps whose name contains this
  cargo xtask test --list    names of all steps";

/// The version of mdBook that the Guide is built with.
const MDBOOK: &str = "0.5.4";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run only the steps whose name contains this.
    step: Option<String>,
    /// List the steps.
    #[arg(long)]
    list: bool,
}

/// Tests that a step has run, besides itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

type Work = fn(&Prepared, &Workspace) -> anyhow::Result<Counts>;

const STEPS: [(&str, Work); 13] = [
    ("format", format),
    ("lint", lint),
    ("lint-bare-metal", lint_bare_metal),
    ("unit-tests", unit_tests),
    ("kernel-headers", kernel_headers),
    ("arm-build", arm_build),
    ("guide", guide),
    // Builds the image here as well, so that the next step finds it.
    ("reproducible", reproducible),
    ("image", image),
    ("dev-image", dev_image),
    ("fuzz-smoke", fuzz_smoke),
    ("unattended-run", unattended_run),
    ("vmm-tests", vmm_tests),
];

/// Runs the command; returns whether everything passed.
pub(crate) fn main(args: Args) -> anyhow::Result<bool> {
    if args.list {
        for (name, _) in STEPS {
            println!("{name}");
        }
        return Ok(true);
    }
    let wanted = |name: &str| args.step.as_deref().is_none_or(|step| name.contains(step));
    let steps: Vec<_> = STEPS.into_iter().filter(|(name, _)| wanted(name)).collect();
    anyhow::ensure!(!steps.is_empty(), "no step of that name, see --list");

    let prepared = artifacts::prepare()?;
    let workspace = Workspace::current()?;
    let mut total = Counts::default();
    for (name, work) in steps {
        let started = Instant::now();
        let result = work(&prepared, &workspace);
        let time = ui::time_text(started.elapsed());
        let counts = match &result {
            Ok(counts) => *counts,
            // A failed step may have run tests that passed; its error says which did not.
            Err(error) => error
                .downcast_ref::<FailedTests>()
                .map_or_else(Counts::default, |f| f.0),
        };
        total.passed += counts.passed;
        total.failed += counts.failed;
        let tests = match counts.passed {
            0 => String::new(),
            passed => format!(", {passed} tests"),
        };
        match result {
            Ok(_) => {
                total.passed += 1;
                println!("ok      {name} ({time}{tests})");
            }
            Err(error) => {
                total.failed += 1;
                println!("FAILED  {name} ({time}{tests})\n{error:#}");
            }
        }
    }
    println!();
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

/// Tests of a step failed: how many there were.
#[derive(Debug)]
struct FailedTests(Counts);

impl std::fmt::Display for FailedTests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.0.passed, self.0.failed)
    }
}

fn format(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let mut command = cargo::cargo(&workspace.root);
    command.args(["fmt", "--all", "--check"]);
    run(prepared, "check the format", command)
}

fn lint(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let mut command = cargo::cargo(&workspace.root);
    command
        .args(["clippy", "--locked", "--workspace", "--all-targets"])
        .args(["--features", "vmm_tests/e2e", "--", "-Dwarnings"]);
    run(prepared, "lint", command)
}

fn lint_bare_metal(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    for (target, packages) in [
        (BARE_METAL_TARGET, &BARE_METAL_PACKAGES[..]),
        (ARM_TARGET, &["openhcl_boot"]),
    ] {
        let programs: Vec<_> = packages
            .iter()
            .flat_map(|package| ["--package", package, "--bin", package])
            .collect();
        lint_for(prepared, workspace, target, &programs)?;
    }
    // The host will load guests with it.
    let library = ["--package", "vm_loader", "--lib"];
    lint_for(prepared, workspace, BARE_METAL_TARGET, &library)?;
    Ok(Counts::default())
}

fn lint_for(
    prepared: &Prepared,
    workspace: &Workspace,
    target: &str,
    what: &[&str],
) -> anyhow::Result<()> {
    let mut command = cargo::cargo(&workspace.root);
    command.args(["clippy", "--locked"]);
    prepared.bare_metal.apply(&mut command, target);
    command.args(what).args(["--", "-Dwarnings"]);
    run(prepared, &format!("lint for {target}"), command)?;
    Ok(())
}

fn unit_tests(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let mut command = cargo::cargo(&workspace.root);
    command.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    run_tests(prepared, "run the unit tests", command)
}

fn kernel_headers(prepared: &Prepared, _: &Workspace) -> anyhow::Result<Counts> {
    kernel_headers::check(&prepared.cache)?;
    Ok(Counts::default())
}

fn arm_build(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let mut command = cargo::cargo(&workspace.root);
    command.args(["build", "--locked", "--profile", "image"]);
    prepared.bare_metal.apply(&mut command, ARM_TARGET);
    command.args(["--package", "openhcl_boot", "--bin", "openhcl_boot"]);
    run(prepared, "build the shim for Arm", command)
}

fn guide(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let cache = &prepared.cache;
    let directory = cache.get_or_build("mdbook", MDBOOK, |into| {
        let mut command = cargo::cargo(&workspace.root);
        command
            .args(["install", "--locked", "--version", MDBOOK, "--root"])
            .arg(into)
            .args(["--no-track", "--no-default-features", "mdbook"])
            // Not a part of this workspace, so not among its build results.
            .env_remove("CARGO_TARGET_DIR");
        ui::long_step(&format!("build mdBook {MDBOOK}"), 300, |step| {
            process::run_logged(cache, "mdbook-install", step, &mut command).map(|_| ())
        })
    })?;
    let mut command = Command::new(directory.join("bin/mdbook"));
    command
        .current_dir(&workspace.root)
        .args(["build", "Guide", "--dest-dir"])
        .arg(workspace.target.join("guide"));
    run(prepared, "build the Guide", command)
}

fn image(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    artifacts::build(prepared, workspace, ImageProfile::Release, None)?;
    Ok(Counts::default())
}

fn dev_image(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    artifacts::build(prepared, workspace, ImageProfile::Dev, None)?;
    Ok(Counts::default())
}

/// Builds the image from a copy of the sources elsewhere; both must be the same bytes.
fn reproducible(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let base = workspace.output().join("elsewhere");
    let other = Workspace {
        root: base.join("a/copy/of/the/sources"),
        target: base.join("target"),
        log: "cargo-build-elsewhere",
    };
    copy_sources(&workspace.root, &other.root)?;
    // Both at once: each build ends with a linker that keeps one processor busy.
    let build = |workspace| artifacts::build(prepared, workspace, ImageProfile::Release, None);
    let (here, there) = std::thread::scope(|scope| {
        let here = scope.spawn(|| build(workspace));
        let there = build(&other);
        let panicked = |_| Err(anyhow::anyhow!("the thread of a build panicked"));
        (here.join().unwrap_or_else(panicked), there)
    });
    let (here, there) = (here?, there?);
    for (here, there) in [
        (&here.user_binary, &there.user_binary),
        (&here.openhcl_boot, &there.openhcl_boot),
        (&here.vsm_host, &there.vsm_host),
        (&here.initrd, &there.initrd),
        (&here.igvm, &there.igvm),
    ] {
        let (found, expected) = (build_igvm::sha256(there)?, build_igvm::sha256(here)?);
        anyhow::ensure!(
            found == expected,
            "{} has SHA-256 {found}, expected {expected} as {}",
            there.display(),
            here.display()
        );
    }
    Ok(Counts::default())
}

fn fuzz_smoke(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let passed = fuzz::smoke(&prepared.cache, workspace)?;
    Ok(Counts { passed, failed: 0 })
}

/// `cargo xtask run --no-guest` without a terminal, with a configuration and a picture: it
/// boots, asks, powers off and succeeds.
fn unattended_run(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    let directory = workspace.output().join("unattended-run");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let (config, picture) = (directory.join("config.json"), directory.join("boot.html"));
    std::fs::write(&config, r#"{"version": 1, "name": "unattended"}"#)
        .with_context(|| format!("writing {}", config.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .current_dir(&workspace.root)
        .args(["run", "--no-guest", "--consoles"])
        .arg(directory.join("consoles"))
        .arg("--config")
        .arg(&config)
        .arg("--timeline")
        .arg(&picture);
    run(prepared, "run without a terminal", command)?;
    let page = std::fs::read_to_string(&picture)
        .with_context(|| format!("reading {}", picture.display()))?;
    // The first and the last milestone.
    for name in ["process starts", "first ping answered"] {
        anyhow::ensure!(
            page.contains(name),
            "{} has no milestone {name:?}",
            picture.display()
        );
    }
    guest_tour(prepared, workspace, &directory)
}

/// `cargo xtask run` without a terminal: the guest boots, tells about itself and powers off.
fn guest_tour(
    prepared: &Prepared,
    workspace: &Workspace,
    directory: &Path,
) -> anyhow::Result<Counts> {
    let name = "run a guest without a terminal";
    let mut command = Command::new(std::env::current_exe()?);
    command
        .current_dir(&workspace.root)
        .args(["run", "--consoles"])
        .arg(directory.join("guest"));
    let log = ui::step(name, |step| {
        process::run_logged(&prepared.cache, &log_name(name), step, &mut command)
    })?;
    let told =
        std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    for text in [
        "guest: init started",
        "Hypervisor detected: Microsoft Hyper-V",
    ] {
        anyhow::ensure!(told.contains(text), "{} has no {text:?}", log.display());
    }
    Ok(Counts::default())
}

fn vmm_tests(prepared: &Prepared, workspace: &Workspace) -> anyhow::Result<Counts> {
    // As a process of its own, so that its output can be kept and counted.
    let mut command = Command::new(std::env::current_exe()?);
    command.current_dir(&workspace.root).arg("vmm-tests");
    run_tests(prepared, "run the end-to-end tests", command)
}

fn run(prepared: &Prepared, name: &str, mut command: Command) -> anyhow::Result<Counts> {
    ui::step(name, |step| {
        process::run_logged(&prepared.cache, &log_name(name), step, &mut command)
    })?;
    Ok(Counts::default())
}

/// Runs a command that prints results as Rust's test harness does.
fn run_tests(prepared: &Prepared, name: &str, mut command: Command) -> anyhow::Result<Counts> {
    let log = log_name(name);
    let result = ui::step(name, |step| {
        process::run_logged(&prepared.cache, &log, step, &mut command)
    });
    let path = match &result {
        Ok(path) => path.clone(),
        Err(_) => prepared.cache.new_log(&log)?,
    };
    let output = std::fs::read(&path).unwrap_or_default();
    let counts = count_tests(&String::from_utf8_lossy(&output));
    result.map_err(|error| error.context(FailedTests(counts)))?;
    anyhow::ensure!(counts.passed > 0, "no test has run, see {}", path.display());
    Ok(counts)
}

fn log_name(name: &str) -> String {
    name.replace(' ', "-")
}

/// Adds up the lines `test result: ok. 12 passed; 0 failed; ...`.
fn count_tests(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output.lines().filter(|l| l.contains("test result: ")) {
        let number_before = |word: &str| {
            let words: Vec<_> = line.split([' ', ';']).filter(|w| !w.is_empty()).collect();
            let at = words.iter().position(|w| *w == word);
            at.and_then(|at| words.get(at.checked_sub(1)?)?.parse::<usize>().ok())
        };
        counts.passed += number_before("passed").unwrap_or(0);
        counts.failed += number_before("failed").unwrap_or(0);
    }
    counts
}

/// Makes `to` hold the files of the checkout `from`. Unchanged files keep their times, so
/// that cargo builds only what is new.
fn copy_sources(from: &Path, to: &Path) -> anyhow::Result<()> {
    let list = process::capture(Command::new("git").current_dir(from).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("listing the sources")?;
    let mut expected = BTreeSet::new();
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        // A file that is deleted but not committed is still listed.
        if let Ok(bytes) = std::fs::read(from.join(name)) {
            write_if_changed(&to.join(name), &bytes)?;
            expected.insert(to.join(name));
        }
    }
    remove_others(to, &expected)
}

fn remove_others(directory: &Path, expected: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, expected)?;
        } else if !expected.contains(&path) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_binaries_are_added_up() {
        let output = "running 2 tests\n\
            test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
            noise about passed; things\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; finished in 0.1s\n";
        assert_eq!(
            count_tests(output),
            Counts {
                passed: 15,
                failed: 2
            }
        );
    }

    #[test]
    fn a_copy_follows_changes_and_deletions() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            process::capture(Command::new("git").current_dir(from.path()).args(arguments)).unwrap()
        };
        git(&["init", "--quiet"]);
        std::fs::create_dir(from.path().join("d")).unwrap();
        std::fs::write(from.path().join("d/a"), "1").unwrap();
        std::fs::write(from.path().join("b"), "1").unwrap();
        copy_sources(from.path(), to.path()).unwrap();
        std::fs::write(from.path().join("d/a"), "2").unwrap();
        std::fs::remove_file(from.path().join("b")).unwrap();
        copy_sources(from.path(), to.path()).unwrap();
        assert_eq!(std::fs::read(to.path().join("d/a")).unwrap(), b"2");
        assert!(!to.path().join("b").exists());
    }
}
