//! `igvm`: builds, shows and compares images.
//!
//! The work is done by the library; here are the options and the texts. Exit codes: 0 for
//! success, 1 for "`diff` found a difference", 2 for an error.

use clap::{Args, Parser, Subcommand};
use igvm_builder::component::human_size;
use igvm_builder::error::{read_file, write_file};
use igvm_builder::{Error, Manifest, Resources, build};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds, shows and compares IGVM images of the paravisor.
#[derive(Parser)]
#[command(name = "igvm", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build an image from a manifest and its parts
    #[command(after_help = "Example:\n  \
        igvm build --manifest igvm_builder/manifests/openhcl-x64-release.toml \\\n    \
        --kernel vmlinux --shim openhcl_boot --initrd initrd.cpio --out openhcl.igvm")]
    Build(BuildArgs),
}

#[derive(Args)]
struct BuildArgs {
    /// What kind of image (TOML)
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// Linux, vmlinux as ELF
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The boot shim (openhcl_boot) as ELF
    #[arg(long, value_name = "FILE")]
    shim: PathBuf,
    /// The initial RAM disk, as it shall be in memory
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
    /// The sidecar kernel as ELF, if the manifest names one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
    /// Where to write the image
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(args) => run_build(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("igvm: {error}");
        ExitCode::from(2)
    })
}

fn run_build(args: &BuildArgs) -> Result<ExitCode, Error> {
    let manifest = Manifest::load(&args.manifest)?;
    let kernel = read_file(&args.kernel)?;
    let shim = read_file(&args.shim)?;
    let initrd = read_file(&args.initrd)?;
    let sidecar = args.sidecar.as_deref().map(read_file).transpose()?;
    let image = build(
        &manifest,
        &Resources {
            kernel: &kernel,
            shim: &shim,
            initrd: &initrd,
            sidecar: sidecar.as_deref(),
        },
    )?;
    write_file(&args.out, &image.bytes)?;

    let sha256 = hex(&Sha256::digest(&image.bytes));
    let used = image.layout.used().size();
    if args.json {
        let result = json!({
            "file": args.out,
            "file_bytes": image.bytes.len(),
            "sha256": sha256,
            "svn": manifest.svn,
            "memory_bytes": manifest.memory_size,
            "used_bytes": used,
        });
        println!("{result:#}");
    } else {
        println!(
            "{}: {} ({} bytes), uses {} of {} VTL2 memory\nsha256 {sha256}",
            args.out.display(),
            human_size(image.bytes.len() as u64),
            image.bytes.len(),
            human_size(used),
            human_size(manifest.memory_size),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
