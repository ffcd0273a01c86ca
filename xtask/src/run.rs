//! `cargo xtask run`: builds the image and boots it.
//!
//! On a terminal it stays until the machine ends; with `--dev` the terminal is VTL2's
//! console. While it runs, `ohcldiag` finds the VM. Anywhere else (a pipe, CI) or with
//! `--exit-after-boot` it waits until the paravisor is ready, asks it for an answer and for
//! the milestones of the boot, tells it to power off, and fails unless all of that went in
//! order.

use crate::artifacts;
use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::cache::Cache;
use crate::cargo::Workspace;
use crate::run::diag::Answers;
use crate::timeline::BootTimeline;
use crate::vsock;
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

mod diag;
mod registered;
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
  cargo xtask run --exit-after-boot --json   stages, milestones and ping for a program
  cargo xtask run --gdb                      wait for `gdb -ex 'target remote :1234'`
  cargo xtask run --config vm.json           with a configuration, checked first
  cargo xtask run --timeline boot.html       the boot as a picture
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
    let config = args.load_config()?;
    let artifacts = artifacts::ensure(profile)?;
    let qemu = Qemu::find()?;
    let vsock = vsock::ensure(&Cache::open()?)?;
    // Whoever switches the diagnostics off wants to see a machine without.
    let diag = *config.diag.enabled;
    let machine = args.machine(&artifacts, attended, diag);
    let machine = machine.vsock(vsock.clone());

    if args.print_qemu {
        if let Some(command) = vsock.printed_command() {
            println!(
                "# first, in another terminal:\n# {}\n",
                command.replace('\n', "\n# ")
            );
        }
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
    let run = Run {
        machine: &machine,
        qemu: &qemu,
        consoles: &consoles,
        image: args.igvm.as_deref().unwrap_or(&artifacts.igvm),
        name: match config.name.origin {
            openhcl_config::Origin::Default => None,
            _ => Some(config.name.value.clone()),
        },
        timeline: args.timeline.as_deref(),
        diag,
    };
    if attended {
        terminal::run(&run, args.dev)
    } else {
        let deadline = match args.gdb {
            // Whoever debugs takes the time that it takes.
            Some(_) => DEBUGGING_DEADLINE,
            None => DEADLINE,
        };
        run.unattended(args.json, deadline)
    }
}

/// One run of a machine.
struct Run<'a> {
    machine: &'a Machine,
    qemu: &'a Qemu,
    consoles: &'a Path,
    image: &'a Path,
    /// The VM's name, if its configuration has one.
    name: Option<String>,
    /// Where the picture of the boot goes.
    timeline: Option<&'a Path>,
    /// The paravisor answers.
    diag: bool,
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
    /// The configuration as the paravisor will have it. One that the paravisor would refuse
    /// is refused here, with the same words.
    fn load_config(&self) -> anyhow::Result<openhcl_config::Config> {
        let file = match &self.config {
            Some(path) => Some(
                std::fs::read(path).with_context(|| format!("configuration {}", path.display()))?,
            ),
            None => None,
        };
        let sources = openhcl_config::Sources {
            file: file.as_deref(),
            host_is_trusted: true,
            // Of another image nobody knows what it permits.
            development_image: self.dev || self.igvm.is_some(),
        };
        let loaded = openhcl_config::Config::load(sources, self.options());
        match (&self.config, loaded) {
            (_, Ok(loaded)) => Ok(loaded.config),
            (Some(path), Err(error)) => {
                Err(error).with_context(|| format!("configuration {}", path.display()))
            }
            (None, Err(error)) => Err(error.into()),
        }
    }

    /// What the boot arguments will be in the paravisor's environment.
    fn options(&self) -> impl Iterator<Item = (String, String)> {
        let words = self.append.iter().flat_map(|text| text.split_whitespace());
        let pair = |word: &str| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        words.filter_map(pair)
    }

    fn machine(&self, artifacts: &Artifacts, attended: bool, diag: bool) -> Machine {
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
        let stays = attended || self.print_qemu;
        if !stays && !diag {
            machine = machine.bootarg(EXIT_AFTER_BOOT);
        }
        if self.dev && stays {
            machine = machine.bootarg(SHELL);
        }
        if let Some(path) = &self.config {
            machine = machine.config(path);
        }
        for text in &self.append {
            machine = machine.bootarg(text.clone());
        }
        machine
    }
}

impl Run<'_> {
    /// Boots, asks, powers off and reports.
    fn unattended(&self, json: bool, deadline: Duration) -> anyhow::Result<()> {
        let mut vm = self
            .machine
            .start_with_echo(self.qemu, self.consoles, |_| {
                (!json).then(|| Box::new(std::io::stdout()) as qemu::Echo)
            })?;
        vm.wait_for_text(Source::Vtl2, boot_events::READY, deadline)?;
        let answers = match self.diag {
            true => {
                let answers = diag::ask(&vm)
                    .with_context(|| format!("the paravisor is ready, but\n{}", vm.report()))?;
                self.write_timeline(&answers.timeline)?;
                answers.client.power_off()?;
                Some(answers)
            }
            false => None,
        };
        let exit = vm.wait_exit(deadline)?;
        let report = Report {
            exit,
            stages: Timeline::of(&vm),
            answers,
        };
        report.print(&vm, json)?;
        anyhow::ensure!(
            exit == Exit::Host(ExitReason::PowerOff),
            "{exit}, expected an orderly power-off\n{}",
            vm.report()
        );
        Ok(())
    }

    fn write_timeline(&self, timeline: &BootTimeline) -> anyhow::Result<()> {
        let Some(path) = self.timeline else {
            return Ok(());
        };
        let image = self.image.display();
        let page = timeline.to_html(&format!("Boot of {image}"));
        std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))
    }
}

/// What an unattended run has to say.
struct Report {
    exit: Exit,
    stages: Timeline,
    answers: Option<Answers>,
}

impl Report {
    fn print(&self, vm: &Vm, json: bool) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        let answers = self.answers.as_ref();
        if json {
            let report = json!({
                "exit": self.exit.to_string(),
                "stages": self.stages.stages,
                "milestones": answers.map(|answers| &answers.timeline.milestones),
                "ping": answers.map(|answers| answers.ping),
                "topology": event_json(vm, |event| match event {
                    Event::Topology(json) => Some(json),
                    _ => None,
                }),
                "memory": event_json(vm, |event| match event {
                    Event::Memory(json) => Some(json),
                    _ => None,
                }),
                "consoles": vm.directory(),
            });
            writeln!(stdout, "{report:#}")?;
            return Ok(());
        }
        writeln!(stdout, "\n{}", self.stages)?;
        if let Some(answers) = answers {
            writeln!(stdout, "{}\n{}", answers.timeline, answers.ping)?;
        }
        let consoles = vm.directory().display();
        writeln!(stdout, "{}; consoles are in {consoles}", self.exit)?;
        Ok(())
    }
}

/// Milliseconds, to the microsecond.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
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
    fn a_wrong_configuration_is_refused_before_anything_is_built() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.json");
        let load = |text: &str, more: &str| {
            std::fs::write(&path, text).unwrap();
            args(&format!("--config {} {more}", path.display())).load_config()
        };
        load(r#"{"version": 1, "diag": {"enabled": false}}"#, "").unwrap();
        let error = load(r#"{"version": 1, "dig": {}}"#, "").unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("vm.json") && error.contains("dig"),
            "{error}"
        );
        let hooks = r#"{"version": 1, "test_hooks": true}"#;
        load(hooks, "").unwrap_err();
        load(hooks, "--dev").unwrap();
        args("--config /nonexistent.json")
            .load_config()
            .unwrap_err();
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
