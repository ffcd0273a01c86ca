//! `cargo xtask run`: builds the image and boots it.
//!
//! On a terminal it stays until the machine ends; with `--dev` the terminal is VTL2's
//! console. Anywhere else (a pipe, CI) or with `--exit-after-boot` it asks the paravisor to
//! end once it has started, and fails unless the machine booted and powered off in order.

use crate::artifacts;
use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::cargo::Workspace;
use anyhow::Context as _;
use boot_events::Event;
use qemu::Accel;
use qemu::ByteCount;
use qemu::Exit;
use qemu::Gdb;
use qemu::Machine;
use qemu::Qemu;
use qemu::Source;
use qemu::Timeline;
use qemu::Vm;
use qemu::Wiring;
use serde_json::Value;
use serde_json::json;
use std::fs::File;
use std::fs::TryLockError;
use std::io::IsTerminal as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use vsm_host_defs::ExitReason;

mod terminal;

/// Asks the paravisor to end after it has started.
pub(crate) const EXIT_AFTER_BOOT: &str = "OPENHCL_EXIT_AFTER_BOOT=1";

/// Asks PID 1 for a shell on the console, which only the dev image has.
const SHELL: &str = "OPENHCL_SHELL=1";

/// When an unattended boot counts as hung. Emulated 64 VPs take 5 s on 2 processors.
const DEADLINE: Duration = Duration::from_secs(180);

/// The same with a debugger.
const DEBUGGING_DEADLINE: Duration = Duration::from_secs(24 * 3600);

const EXAMPLES: &str = "\
Examples:
  cargo xtask run                            boot, show the log and how long each stage took
  cargo xtask run --vps 4 --memory 4G        another machine
  cargo xtask run --dev                      the terminal becomes a shell in VTL2 (Ctrl-] ends)
  cargo xtask run --exit-after-boot --json   the stages for a program
  cargo xtask run --gdb                      wait for `gdb -ex 'target remote :1234'`
  cargo xtask run --print-qemu               print QEMU's command line, run nothing";

/// Arguments of this command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 2)]
    vps: u32,
    /// All memory of the machine.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteCount,
    /// Memory of VTL2; what the image asks for, if not given.
    #[arg(long, value_name = "SIZE")]
    vtl2_memory: Option<ByteCount>,
    /// Boot the image that has a shell.
    #[arg(long)]
    dev: bool,
    /// Boot this IGVM file instead of building one.
    #[arg(long, value_name = "FILE")]
    igvm: Option<PathBuf>,
    /// Configuration of the paravisor, a JSON file; it is checked before the machine starts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write when each part of the boot was reached, as one HTML page.
    #[arg(long, value_name = "FILE.html")]
    timeline: Option<PathBuf>,
    /// Boot arguments that the host passes on; may be given more than once.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Vec<String>,
    /// What executes the instructions: tcg or kvm (needs nested SVM).
    #[arg(long, value_name = "NAME", default_value = "tcg")]
    accel: Accel,
    /// Print the command line for a shell and run nothing.
    #[arg(long)]
    print_qemu: bool,
    /// Wait for a debugger on this TCP port before the first instruction.
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "1234")]
    gdb: Option<u16>,
    /// Power off once booted, also on a terminal.
    #[arg(long)]
    exit_after_boot: bool,
    /// Print the result as JSON and no log.
    #[arg(long)]
    json: bool,
    /// Where the consoles are kept; `target/run`, if not given.
    #[arg(long, value_name = "DIRECTORY")]
    consoles: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let attended = on_terminal && !args.exit_after_boot && !args.json;
    let profile = if args.dev {
        ImageProfile::Dev
    } else {
        ImageProfile::Release
    };
    let artifacts = artifacts::ensure(profile)?;
    let qemu = Qemu::find()?;
    let machine = args.machine(&artifacts, attended);

    if args.print_qemu {
        println!(
            "{}",
            machine.command_line(&qemu, Wiring::Terminal)?.shell_text()
        );
        return Ok(());
    }
    let (consoles, _lock) = match &args.consoles {
        Some(directory) => (directory.clone(), None),
        None => free_directory(&Workspace::current()?.target)?,
    };
    if attended {
        terminal::run(&machine, &qemu, &consoles, args.dev)
    } else {
        let deadline = match args.gdb {
            // Whoever debugs takes the time that it takes.
            Some(_) => DEBUGGING_DEADLINE,
            None => DEADLINE,
        };
        unattended(&machine, &qemu, &consoles, args.json, deadline)
    }
}

/// A directory for consoles that no other run uses: `run`, `run-2`, and so on. It is free
/// again when the file is closed.
fn free_directory(target: &Path) -> anyhow::Result<(PathBuf, Option<File>)> {
    for number in 1u32.. {
        let name = match number {
            1 => "run".to_owned(),
            number => format!("run-{number}"),
        };
        let directory = target.join(name);
        let what = || format!("locking {}", directory.display());
        std::fs::create_dir_all(&directory).with_context(what)?;
        let lock = File::create(directory.join("lock")).with_context(what)?;
        match lock.try_lock() {
            Ok(()) => return Ok((directory, Some(lock))),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(what),
        }
    }
    anyhow::bail!("too many runs at once below {}", target.display())
}

impl Args {
    fn machine(&self, artifacts: &Artifacts, attended: bool) -> Machine {
        let image = self.igvm.as_ref().unwrap_or(&artifacts.igvm);
        let mut machine = Machine::vsm(&artifacts.vsm_host, image)
            .vps(self.vps)
            .memory(self.memory)
            .accel(self.accel);
        if let Some(size) = self.vtl2_memory {
            machine = machine.vtl2_memory(size);
        }
        if let Some(port) = self.gdb {
            machine = machine.gdb(Gdb { port, freeze: true });
        }
        // A person who wants the command wants the machine to stay.
        if !attended && !self.print_qemu {
            machine = machine.bootarg(EXIT_AFTER_BOOT);
        }
        if self.dev && (attended || self.print_qemu) {
            machine = machine.bootarg(SHELL);
        }
        for text in &self.append {
            machine = machine.bootarg(text.clone());
        }
        machine
    }
}

/// Boots, waits for the orderly end and reports.
fn unattended(
    machine: &Machine,
    qemu: &Qemu,
    consoles: &Path,
    json: bool,
    deadline: Duration,
) -> anyhow::Result<()> {
    let mut vm = machine.start_with_echo(qemu, consoles, |_| {
        (!json).then(|| Box::new(std::io::stdout()) as qemu::Echo)
    })?;
    let exit = vm.wait_exit(deadline)?;
    let timeline = Timeline::of(&vm);
    let mut stdout = std::io::stdout().lock();
    if json {
        let report = json!({
            "exit": exit.to_string(),
            "stages": timeline.stages,
            "topology": event_json(&vm, |event| match event {
                Event::Topology(json) => Some(json),
                _ => None,
            }),
            "memory": event_json(&vm, |event| match event {
                Event::Memory(json) => Some(json),
                _ => None,
            }),
            "consoles": consoles,
        });
        writeln!(stdout, "{report:#}")?;
    } else {
        writeln!(stdout, "\n{timeline}")?;
        writeln!(stdout, "{exit}; consoles are in {}", consoles.display())?;
    }
    anyhow::ensure!(
        exit == Exit::Host(ExitReason::PowerOff),
        "{exit}, expected an orderly power-off\n{}",
        vm.report()
    );
    anyhow::ensure!(
        timeline.stage(qemu::StageName::Usermode).is_some(),
        "the machine powered off before the paravisor was ready\n{}",
        vm.report()
    );
    Ok(())
}

/// The JSON that VTL2 logged in a line of its own; null if it did not.
pub(crate) fn event_json(vm: &Vm, choose: impl Fn(Event<'_>) -> Option<&str>) -> Value {
    vm.lines(Source::Vtl2)
        .iter()
        .find_map(|line| {
            let text = Event::find(&line.text).and_then(&choose)?;
            serde_json::from_str(text).context("not JSON").ok()
        })
        .unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        run: Args,
    }

    fn args(words: &str) -> Args {
        Cli::try_parse_from(["run"].into_iter().chain(words.split_whitespace()))
            .unwrap()
            .run
    }

    #[test]
    fn sizes_and_ports_are_read() {
        let args = args("--vps 4 --memory 4G --vtl2-memory 128M --gdb --append a=1 --append -b");
        assert_eq!(args.vps, 4);
        assert_eq!(args.memory, ByteCount::gib(4));
        assert_eq!(args.vtl2_memory, Some(ByteCount::mib(128)));
        assert_eq!(args.gdb, Some(1234));
        assert_eq!(args.append, ["a=1", "-b"]);
    }

    #[test]
    fn two_runs_at_once_keep_their_consoles_apart() {
        let target = tempfile::tempdir().unwrap();
        let (first, lock) = free_directory(target.path()).unwrap();
        let (second, _lock) = free_directory(target.path()).unwrap();
        assert_ne!(first, second);
        drop(lock);
        assert_eq!(free_directory(target.path()).unwrap().0, first);
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_built() {
        for words in ["--memory lots", "--accel whpx", "--gdb 70000", "--vps -1"] {
            assert!(
                Cli::try_parse_from(["run"].into_iter().chain(words.split(' '))).is_err(),
                "{words} was taken"
            );
        }
    }
}
