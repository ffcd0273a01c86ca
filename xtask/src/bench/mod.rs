//! `cargo xtask bench`: figures, each with the limit that it must keep and the value that
//! the committed baseline has.
//!
//! Figures that depend on the machine are ratios of two measurements of the same minute, taken in
//! turns, and medians of several rounds; absolute times are printed for people. Nothing
//! here is a test: a busy machine must not break a build. `PASS` and `over` are printed,
//! and `--check` turns an `over` into a failure for those who want one.

mod boot;
mod curve;
mod figure;
mod guest;
mod lines;
mod nested_kvm;
mod paravisor;
mod plain;
mod sidecar;

use crate::vmm_tests::workspace_root;
use anyhow::Context as _;
use figure::Baseline;
use std::path::PathBuf;

/// The picture in the Guide.
const CURVE: &str = "Guide/src/architecture/sidecar_curve.svg";

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench boot                   measure and compare with the baseline
  cargo xtask bench paravisor              the same for the control plane
  cargo xtask bench guest                  the same for what runs under the paravisor
  cargo xtask bench sidecar                the same for machines with many processors
  cargo xtask bench boot --json            for a program
  cargo xtask bench boot --save-baseline   what was measured becomes the baseline";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to measure.
    name: Name,
    /// Rounds; medians are taken over them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Fail if a figure is over its limit.
    #[arg(long)]
    check: bool,
    /// Write the figures to the committed baseline, and the curve of `sidecar` to the Guide.
    #[arg(long)]
    save_baseline: bool,
}

/// The benches.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    /// From QEMU's start to PID 1, sizes and memory.
    Boot,
    /// From QEMU's start to the first answer, round trips, memory of the processes.
    Paravisor,
    /// What the paravisor costs its guest: boot, exits, work, memory.
    Guest,
    /// What many processors cost, with and without the sidecar.
    Sidecar,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let path = args.name.baseline_path();
    let baseline = Baseline::read(&path)?;
    let rounds = args.rounds as usize;
    let mut curve = None;
    let mut report = match args.name {
        Name::Boot => boot::measure(rounds)?,
        Name::Paravisor => paravisor::measure(rounds)?,
        Name::Guest => guest::measure(rounds)?,
        Name::Sidecar => {
            let (report, seen) = sidecar::measure(rounds)?;
            curve = Some(seen);
            report
        }
    };
    report.compare(&baseline);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    if args.save_baseline {
        let text = serde_json::to_string_pretty(&report.baseline())?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
        if let Some(curve) = curve {
            let path = workspace_root().join(CURVE);
            std::fs::write(&path, curve.to_svg())
                .with_context(|| format!("writing {}", path.display()))?;
        }
    }
    let over = report.over();
    anyhow::ensure!(
        !args.check || over.is_empty(),
        "over the limit: {}",
        over.join(", ")
    );
    Ok(())
}

impl Name {
    fn baseline_path(self) -> PathBuf {
        let file = match self {
            Self::Boot => "baseline.json",
            Self::Paravisor => "paravisor_baseline.json",
            Self::Guest => "guest_baseline.json",
            Self::Sidecar => "sidecar_baseline.json",
        };
        workspace_root().join("xtask/src/bench").join(file)
    }
}
