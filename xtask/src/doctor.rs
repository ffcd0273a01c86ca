//! `cargo xtask doctor`: what is there, what is missing, how to get it. Changes nothing.

use crate::cache::Cache;
use crate::guest;
use crate::kernel;
use crate::packages;
use crate::packages::PACKAGES;
use crate::toolchain;
use crate::toolchain::BareMetal;
use crate::vsock;
use qemu::Vsock;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  cargo xtask doctor          a table
  cargo xtask doctor --json   the same for a program
Ends with 1 if something is missing that set-up could not get by itself.";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// How one thing stands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It is there.
    Present,
    /// The first command that needs it gets it.
    Automatic,
    /// A person must act.
    Missing,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    state: State,
    /// What was found, or what it is for.
    detail: String,
    /// How a person gets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    get: Option<String>,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    let findings = findings(&cache)?;
    let missing = findings
        .iter()
        .filter(|f| matches!(f.state, State::Missing))
        .count();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for Finding {
            what,
            state,
            detail,
            ..
        } in &findings
        {
            let state = match state {
                State::Present => "ok",
                State::Automatic => "will be set up",
                State::Missing => "MISSING",
            };
            println!("{what:<28} {state:<15} {detail}");
        }
        let packages = packages::missing()?;
        if missing != 0 && !packages.is_empty() {
            println!("\nto get it:\n  {}", packages::install_command(&packages));
        }
    }
    anyhow::ensure!(missing == 0, "{missing} of {} are missing", findings.len());
    Ok(())
}

fn findings(cache: &Cache) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut add = |what: &str, state, detail: String| {
        findings.push(Finding {
            what: what.to_owned(),
            state,
            detail,
            get: None,
        });
    };
    let missing = packages::missing()?;
    for package in PACKAGES {
        let what = format!("package {}", package.name);
        if !missing.iter().any(|m| m.name == package.name) {
            add(&what, State::Present, package.purpose.to_owned());
        } else if packages::is_root() {
            add(&what, State::Automatic, package.purpose.to_owned());
        } else {
            let command = packages::install_command(&[package]);
            add(
                &what,
                State::Missing,
                format!("{}: {command}", package.purpose),
            );
        }
    }
    add("rustc", State::Present, toolchain::rustc_version()?);
    match BareMetal::find(cache)? {
        Some(found) => add("bare-metal library", State::Present, found.to_string()),
        None => {
            let detail = "rustup targets, else Debian's rust-src of the compiler's version";
            add("bare-metal library", State::Automatic, detail.to_owned());
        }
    }
    match kernel::cached(cache)? {
        Some(version) => add("VTL2 kernel", State::Present, format!("Linux {version}")),
        None => {
            let detail = "built from Debian's source package, 4 to 8 minutes on 2 processors";
            add("VTL2 kernel", State::Automatic, detail.to_owned());
        }
    }
    for suite in guest::kernel::Suite::ALL {
        let what = format!("guest kernel of {}", suite.name());
        match guest::kernel::cached(cache, suite) {
            Some(kernel) => add(&what, State::Present, format!("Linux {}", kernel.version)),
            None => add(
                &what,
                State::Automatic,
                "fetched from the machine's Debian mirror".to_owned(),
            ),
        }
    }
    match vsock::cached(cache)? {
        Some(Vsock::Kernel) => add("vsock", State::Present, "/dev/vhost-vsock".to_owned()),
        Some(Vsock::Helper(path)) => add("vsock", State::Present, path.display().to_string()),
        None => {
            let detail = "vhost-device-vsock from crates.io, built in about 2 minutes";
            add("vsock", State::Automatic, detail.to_owned());
        }
    }
    let place = cache.root().display().to_string();
    add("cache", State::Present, place);
    for package in missing {
        let what = format!("package {}", package.name);
        if let Some(finding) = findings.iter_mut().find(|f| f.what == what) {
            finding.get = Some(packages::install_command(&[package]));
        }
    }
    Ok(findings)
}
