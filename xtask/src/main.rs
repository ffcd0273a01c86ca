//! The one front door: set-up, build, run, test and measure.
//!
//! Every command does the set-up that it needs (packages, standard library, kernel) and
//! builds what is out of date, so that `cargo xtask run` and `cargo xtask test` are all
//! that a fresh machine needs. Rules that hold for all commands:
//!
//! - nothing is prepared twice: what was fetched or built lies in the user's cache under a
//!   name that is computed from its inputs, and two runs at once do not disturb each other;
//! - mirrors are those of the machine's own configuration, and signatures are verified;
//! - quiet, unless a step takes long; a failure names the full log and quotes its end;
//! - results go to stdout, everything else to stderr.
//!
//! It refuses to change the machine beyond installing Debian packages, and that only as
//! root. In the boot flow it stands before everything.

mod apt;
mod apt_sources;
mod artifacts;
mod bench;
mod build_igvm;
mod cache;
mod cargo;
mod doctor;
mod fuzz;
mod guest;
mod igvm;
mod initrd;
mod kernel;
mod kernel_headers;
mod ohcldiag;
mod packages;
mod process;
mod run;
mod test;
mod timeline;
mod toolchain;
mod ui;
mod vmm_tests;
mod vsock;

use clap::Parser;
use clap::Subcommand;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  cargo xtask run           build the image and boot it
  cargo xtask ohcldiag      ask a running VM
  cargo xtask test          everything
  cargo xtask doctor        what is missing
  cargo xtask help run      options and examples of one command";

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what is there, what is missing and how to get it.
    Doctor(doctor::Args),
    /// Builds the IGVM image.
    BuildIgvm(build_igvm::Args),
    /// Shows, compares and measures images: passes everything on to `igvm`.
    Igvm(igvm::Args),
    /// Boots the IGVM image on QEMU.
    Run(Box<run::Args>),
    /// Asks a running paravisor: passes everything on to `ohcldiag`.
    Ohcldiag(ohcldiag::Args),
    /// Runs the end-to-end tests.
    VmmTests(vmm_tests::Args),
    /// Runs everything that must pass: style, lints, unit tests, guide, image, end-to-end tests.
    Test(test::Args),
    /// Measures.
    Bench(bench::Args),
    /// Feeds random input to a parser of untrusted data.
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Doctor(args) => doctor::main(args),
        Command::BuildIgvm(args) => build_igvm::main(args),
        Command::Igvm(args) => igvm::main(args),
        Command::Run(args) => run::main(*args),
        Command::Ohcldiag(args) => ohcldiag::main(args),
        Command::VmmTests(args) => vmm_tests::main(args),
        // Its last line is the summary, whatever the result is.
        Command::Test(args) => match test::main(args) {
            Ok(false) => return ExitCode::FAILURE,
            result => result.map(|_| ()),
        },
        Command::Bench(args) => bench::main(args),
        Command::Fuzz(args) => fuzz::main(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a backtrace: the chain of causes is what a person can act on.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
