//! Run the end-to-end tests.

/// Arguments of this command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn main(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not available yet")
}
