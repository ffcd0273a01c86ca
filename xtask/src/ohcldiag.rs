//! `cargo xtask ohcldiag`: the client of the diagnostics, built when it is out of date.

use crate::cargo;
use crate::cargo::Workspace;
use anyhow::Context;
use std::ffi::OsString;

const EXAMPLES: &str = "\
Examples:
  cargo xtask ohcldiag --help
  cargo xtask ohcldiag ping
  cargo xtask ohcldiag inspect vm";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of `ohcldiag`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let workspace = Workspace::current()?;
    let mut command = cargo::cargo(&workspace.root);
    command.args(["build", "--quiet", "--locked", "--package", "ohcldiag"]);
    let built = command.status().context("starting cargo")?;
    anyhow::ensure!(built.success(), "ohcldiag could not be built");
    // In the caller's own directory, so that relative paths mean what they say.
    let status = std::process::Command::new(workspace.target.join("debug/ohcldiag"))
        .args(args.arguments)
        .status()
        .context("starting ohcldiag")?;
    // Its exit codes have meanings; a signal has the shell's code.
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    std::process::exit(status.code().unwrap_or(128 + signal.unwrap_or(0)))
}
