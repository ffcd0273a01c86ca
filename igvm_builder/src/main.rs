//! `igvm`: builds, shows and compares images.
//!
//! The work is done by the library; here are the options and the texts. Exit codes: 0 for
//! success, 1 for "`diff` found a difference" or "`check` found that the host would refuse
//! the image", 2 for an error.

use clap::{Args, Parser, Subcommand};
use igvm_builder::component::human_size;
use igvm_builder::diff::diff;
use igvm_builder::dump::{describe, hex};
use igvm_builder::error::{read_file, read_image, write_file};
use igvm_builder::measure::measure;
use igvm_builder::placement::{Machine, parse_size, place};
use igvm_builder::{Error, GuestFiles, Manifest, Resources, build, map};
use igvm_loader::Options;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// More would not have an APIC id that the host can reach, the parked CPU included.
const MAX_VPS: i64 = 254;

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
    /// Show what is in an image
    #[command(after_help = "Examples:\n  \
        igvm dump openhcl.igvm\n  \
        igvm dump openhcl.igvm --json | jq '.components[].component'")]
    Dump(FileArgs),
    /// Tell how two images differ; exit code 1 if they do
    #[command(after_help = "Examples:\n  \
        igvm diff old.igvm new.igvm\n  \
        igvm diff old.igvm new.igvm --ranges 1000\n  \
        igvm diff old.igvm new.igvm --json | jq '.[] | select(.kind == \"bytes\")'")]
    Diff(DiffArgs),
    /// Draw the memory layout of an image, as text or as a picture
    #[command(after_help = "Examples:\n  \
        igvm map openhcl.igvm\n  \
        igvm map openhcl.igvm --svg layout.svg\n  \
        igvm map openhcl.igvm --html layout.html")]
    Map(MapArgs),
    /// Compute the boot digest of an image
    #[command(
        after_help = "The digest covers every measured page with its address, the \
        addresses of unmeasured pages, and the registers; not what the host fills in.\n\n\
        Example:\n  igvm measure openhcl.igvm"
    )]
    Measure(FileArgs),
    /// Tell whether `vsm_host` would load an image, and where everything would go; exit
    /// code 1 if it would refuse
    #[command(after_help = "Examples:\n  \
        igvm check openhcl.igvm\n  \
        igvm check openhcl.igvm --vps 16 --memory 8G --host-option vtl2_memory=128M\n  \
        igvm check openhcl.igvm --json | jq .plan.entry")]
    Check(CheckArgs),
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
    /// The guest's Linux (vmlinux or bzImage), if the manifest names one
    #[arg(long, value_name = "FILE")]
    vtl0_kernel: Option<PathBuf>,
    /// The guest's initial RAM disk, if the manifest names one
    #[arg(long, value_name = "FILE", requires = "vtl0_kernel")]
    vtl0_initrd: Option<PathBuf>,
    /// Where to write the image
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct FileArgs {
    /// The image
    file: PathBuf,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// The image
    file: PathBuf,
    /// Number of virtual processors
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(..=MAX_VPS))]
    vps: u32,
    /// All memory of the machine
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    memory: u64,
    /// Option of the host, as on its command line; may be given more than once
    #[arg(long = "host-option", value_name = "OPTION")]
    host_options: Vec<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DiffArgs {
    /// The first image
    a: PathBuf,
    /// The second image
    b: PathBuf,
    /// List at most this many ranges of differing bytes for each part
    #[arg(long, value_name = "N", default_value_t = 8)]
    ranges: usize,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct MapArgs {
    /// The image
    file: PathBuf,
    /// Write an SVG picture instead
    #[arg(long, value_name = "OUT", conflicts_with = "html")]
    svg: Option<PathBuf>,
    /// Write an HTML page with picture and contents instead
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(args) => run_build(&args),
        Command::Dump(args) => run_dump(&args),
        Command::Diff(args) => run_diff(&args),
        Command::Map(args) => run_map(&args),
        Command::Measure(args) => run_measure(&args),
        Command::Check(args) => run_check(&args),
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
    let vtl0_kernel = args.vtl0_kernel.as_deref().map(read_file).transpose()?;
    let vtl0_initrd = args.vtl0_initrd.as_deref().map(read_file).transpose()?;
    let image = build(
        &manifest,
        &Resources {
            kernel: &kernel,
            shim: &shim,
            initrd: &initrd,
            sidecar: sidecar.as_deref(),
            guest: vtl0_kernel.as_deref().map(|kernel| GuestFiles {
                kernel,
                initrd: vtl0_initrd.as_deref(),
            }),
        },
    )?;
    write_file(&args.out, &image.bytes)?;

    let sha256 = hex(&Sha256::digest(&image.bytes));
    let used = image.layout.used().size();
    let memory = image.layout.memory.size();
    if args.json {
        let result = json!({
            "file": args.out,
            "file_bytes": image.bytes.len(),
            "sha256": sha256,
            "svn": manifest.svn,
            "memory_bytes": memory,
            "used_bytes": used,
        });
        print(&format!("{result:#}\n"));
    } else {
        print(&format!(
            "{}: {} ({} bytes), uses {} of {} VTL2 memory\nsha256 {sha256}\n",
            args.out.display(),
            human_size(image.bytes.len() as u64),
            image.bytes.len(),
            human_size(used),
            human_size(memory),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_dump(args: &FileArgs) -> Result<ExitCode, Error> {
    let description = describe(&read_image(&args.file)?);
    if args.json {
        print(&format!("{:#}\n", json!(description)));
    } else {
        print(&description.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

fn run_diff(args: &DiffArgs) -> Result<ExitCode, Error> {
    let differences = diff(&read_image(&args.a)?, &read_image(&args.b)?, args.ranges);
    if args.json {
        print(&format!("{:#}\n", json!(differences)));
    } else if differences.is_empty() {
        print("the images are identical\n");
    } else {
        let lines: String = differences.iter().map(|d| format!("{d}\n")).collect();
        print(&lines);
    }
    Ok(ExitCode::from(u8::from(!differences.is_empty())))
}

fn run_map(args: &MapArgs) -> Result<ExitCode, Error> {
    let description = describe(&read_image(&args.file)?);
    if let Some(path) = &args.svg {
        write_file(path, map::svg(&description).as_bytes())?;
    } else if let Some(path) = &args.html {
        write_file(path, map::html(&description).as_bytes())?;
    } else {
        print(&map::text(&description));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_measure(args: &FileArgs) -> Result<ExitCode, Error> {
    let measurement = measure(&read_image(&args.file)?);
    let digest = hex(&measurement.digest);
    if args.json {
        let result = json!({
            "algorithm": "sha256",
            "boot_digest": digest,
            "measured_pages": measurement.measured_pages,
            "unmeasured_pages": measurement.unmeasured_pages,
            "registers": measurement.registers,
        });
        print(&format!("{result:#}\n"));
    } else {
        print(&format!(
            "boot digest (sha256) {digest}\n{} measured pages, {} unmeasured pages, {} registers\n",
            measurement.measured_pages, measurement.unmeasured_pages, measurement.registers
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_check(args: &CheckArgs) -> Result<ExitCode, Error> {
    let file = read_file(&args.file)?;
    let options = args.host_options.join(" ");
    let machine = Machine {
        vps: args.vps,
        memory: args.memory,
        options: Options::parse(&options).map_err(|error| Error::Options(error.to_string()))?,
    };
    let (text, json, code) = match place(&file, &machine) {
        Ok(placement) => (
            placement.to_string(),
            json!({ "loads": true, "plan": placement }),
            ExitCode::SUCCESS,
        ),
        Err(error) => (
            format!("would be refused: {error}\n"),
            json!({
                "loads": false,
                "place": error.place.to_string(),
                "reason": error.reason.to_string(),
                "found": error.found.to_string(),
                "expected": error.expected.to_string(),
            }),
            ExitCode::from(1),
        ),
    };
    print(&if args.json {
        format!("{json:#}\n")
    } else {
        text
    });
    Ok(code)
}

/// Prints to the standard output. That its reader has gone (`igvm dump … | head`) is no
/// error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
