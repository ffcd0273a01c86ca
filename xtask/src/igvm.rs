//! `cargo xtask igvm`: the tool of `igvm_builder`, built when it is out of date.

use crate::cargo;
use crate::cargo::Workspace;
use anyhow::Context;
use std::ffi::OsString;

const EXAMPLES: &str = "\
Examples:
  cargo xtask igvm --help
  cargo xtask igvm dump target/openhcl/release/openhcl.igvm
  cargo xtask igvm diff OLD NEW";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of `igvm`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let workspace = Workspace::current()?;
    let mut command = cargo::cargo(&workspace.root);
    command
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "igvm_builder", "--bin", "igvm"]);
    let built = command.status().context("starting cargo")?;
    anyhow::ensure!(built.success(), "igvm could not be built");
    // In the caller's own directory, so that relative paths mean what they say.
    let status = std::process::Command::new(workspace.target.join("release/igvm"))
        .args(args.arguments)
        .status()
        .context("starting igvm")?;
    // `igvm diff` tells by its exit code whether there is a difference.
    std::process::exit(status.code().unwrap_or(2))
}
