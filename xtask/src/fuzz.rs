//! `cargo xtask fuzz`: random input for the parsers of untrusted data.
//!
//! Coverage is compiled in through stable compiler flags, so the installed compiler does.

use crate::cache::Cache;
use crate::cargo;
use crate::cargo::Workspace;
use crate::packages;
use crate::process;
use crate::ui;
use anyhow::Context;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

const EXAMPLES: &str = "\
Examples:
  cargo xtask fuzz --list                          what there is
  cargo xtask fuzz host_device_tree                until it finds something or Ctrl-C
  cargo xtask fuzz host_device_tree --seconds 60   for a while
  cargo xtask fuzz --smoke                         every target for a moment";

/// Seconds per target of a smoke test.
const SMOKE_SECONDS: u32 = 5;

/// What makes libFuzzer see which code an input reaches.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=yes",
];

/// Compiles in a third of the time of the release profile.
const PROFILE: &str = "fuzz";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The target.
    #[arg(required_unless_present_any = ["smoke", "list"])]
    target: Option<String>,
    /// Stop after this time.
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// Run every target for a moment, with a fixed seed.
    #[arg(long, conflicts_with_all = ["target", "seconds"])]
    smoke: bool,
    /// List the targets.
    #[arg(long)]
    list: bool,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let workspace = Workspace::current()?;
    let targets = targets(&workspace.root)?;
    if args.list {
        for target in targets {
            println!("{target}");
        }
        return Ok(());
    }
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    if args.smoke {
        return smoke(&cache, &workspace).map(|_| ());
    }
    let target = args.target.context("no target given")?;
    anyhow::ensure!(
        targets.contains(&target),
        "no target {target:?}, expected one of {}",
        targets.join(", ")
    );
    build(&cache, &workspace)?;
    let mut command = fuzzer(&workspace, &target)?;
    if let Some(seconds) = args.seconds {
        command.arg(format!("-max_total_time={seconds}"));
    }
    let status = command.status().context("starting the fuzzer")?;
    anyhow::ensure!(
        status.success(),
        "{target} ended with {status}; inputs that fail are in {}",
        directory(&workspace, "findings", &target).display()
    );
    Ok(())
}

/// Runs every target for a moment; returns how many there are.
pub(crate) fn smoke(cache: &Cache, workspace: &Workspace) -> anyhow::Result<usize> {
    let targets = targets(&workspace.root)?;
    if targets.is_empty() {
        return Ok(0);
    }
    build(cache, workspace)?;
    // Each has one thread: as many at a time as there are processors.
    let jobs = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    let run = |target: &String| -> anyhow::Result<()> {
        let mut command = fuzzer(workspace, target)?;
        command.args(["-seed=1", &format!("-max_total_time={SMOKE_SECONDS}")]);
        ui::step(&format!("fuzz {target}"), |step| {
            process::run_logged(cache, &format!("fuzz-{target}"), step, &mut command)
        })?;
        Ok(())
    };
    for some in targets.chunks(jobs) {
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|t| scope.spawn(move || run(t))).collect();
            running.into_iter().try_for_each(|thread| {
                let panicked = |_| Err(anyhow::anyhow!("a thread panicked"));
                thread.join().unwrap_or_else(panicked)
            })
        })?;
    }
    Ok(targets.len())
}

/// Names of all targets.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let directory = root.join("fuzz/fuzz_targets");
    let mut targets: Vec<_> = std::fs::read_dir(&directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_stem()?.to_str()?.to_owned();
            path.extension().is_some_and(|e| e == "rs").then_some(name)
        })
        .collect();
    targets.sort();
    Ok(targets)
}

fn build(cache: &Cache, workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = cargo::cargo(&workspace.root);
    command
        .env("CARGO_TARGET_DIR", workspace.target.join("fuzz"))
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"))
        .args([
            "build",
            "--locked",
            "--profile",
            PROFILE,
            "--target",
            TARGET,
        ])
        .args(["--package", "fuzz", "--bins"]);
    ui::step("build the fuzz targets", |step| {
        process::run_logged(cache, "cargo-fuzz", step, &mut command)
    })?;
    Ok(())
}

fn fuzzer(workspace: &Workspace, target: &str) -> anyhow::Result<Command> {
    let corpus = directory(workspace, "corpus", target);
    let findings = directory(workspace, "findings", target);
    for path in [&corpus, &findings] {
        std::fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    }
    let program = workspace.target.join("fuzz").join(TARGET).join(PROFILE);
    let mut command = Command::new(program.join(target));
    command
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg("-print_final_stats=1")
        .arg(corpus);
    let seeds = workspace.root.join("fuzz/seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    Ok(command)
}

fn directory(workspace: &Workspace, kind: &str, target: &str) -> PathBuf {
    workspace.target.join("fuzz").join(kind).join(target)
}
