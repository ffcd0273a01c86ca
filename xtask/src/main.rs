//! The one front door: set-up, build, run, test and measure.

mod artifacts;
mod bench;
mod run;
mod vmm_tests;

use clap::Parser;
use clap::Subcommand;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots the IGVM image on QEMU.
    Run(run::Args),
    /// Runs the end-to-end tests.
    VmmTests(vmm_tests::Args),
    /// Measures.
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::VmmTests(args) => vmm_tests::main(args),
        Command::Bench(args) => bench::main(args),
    }
}
