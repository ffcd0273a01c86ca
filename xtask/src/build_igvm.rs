//! `cargo xtask build-igvm`: builds the image and says what it is.

use crate::artifacts;
use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::cargo::Workspace;
use anyhow::Context;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use std::path::Path;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  cargo xtask build-igvm                  the release image
  cargo xtask build-igvm --dev            with a shell
  cargo xtask build-igvm --json           paths, sizes and hashes for a program
  cargo xtask build-igvm --manifest my.toml";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The release image (this is the default).
    #[arg(long, conflicts_with = "dev")]
    release: bool,
    /// The development image: with busybox.
    #[arg(long)]
    dev: bool,
    /// Another manifest than the profile's own.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let profile = match args.dev {
        true => ImageProfile::Dev,
        false => ImageProfile::Release,
    };
    let prepared = artifacts::prepare()?;
    let workspace = Workspace::current()?;
    let artifacts = artifacts::build(&prepared, &workspace, profile, args.manifest.as_deref())?;
    let sha256 = sha256(&artifacts.igvm)?;
    let bytes = std::fs::metadata(&artifacts.igvm)?.len();
    if args.json {
        let Artifacts {
            igvm,
            vsm_host,
            openhcl_boot,
            sidecar,
            vmlinux,
            vmlinux_symbols,
            user_binary,
            initrd,
            tmk,
            guest_tests,
            busybox,
        } = &artifacts;
        let result = json!({
            "igvm": igvm, "igvm_bytes": bytes, "igvm_sha256": sha256,
            "kernel_version": prepared.kernel.version,
            "vsm_host": vsm_host, "openhcl_boot": openhcl_boot, "sidecar": sidecar,
            "vmlinux": vmlinux,
            "vmlinux_symbols": vmlinux_symbols, "user_binary": user_binary,
            "initrd": initrd, "tmk": tmk, "guest_tests": guest_tests, "busybox": busybox,
        });
        println!("{result:#}");
    } else {
        println!("{}", artifacts.igvm.display());
        println!(
            "{bytes} bytes, sha256 {sha256}, Linux {}",
            prepared.kernel.version
        );
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let digest = Sha256::digest(bytes);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
