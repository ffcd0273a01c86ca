//! `cargo xtask run`: builds the image and boots it.
//!
//! The paravisor boots a guest, a stock kernel of Debian unless another one is given. On a
//! terminal, the terminal is the guest's console until the machine ends. While it runs,
//! `ohcldiag` finds the VM. Anywhere else (a pipe, CI) or with `--exit-after-boot` the
//! guest takes a tour of itself and powers off; this program prints the tour and the
//! milestones of the boot, and fails unless all of that went in order.
//!
//! With `--no-guest` there is the paravisor alone: on a terminal both logs are shown, and
//! with `--dev` the terminal is VTL2's console; an unattended run asks the paravisor, and
//! tells it to power off.

use crate::artifacts;
use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::artifacts::Prepared;
use crate::cargo::Workspace;
use crate::guest::image::image_fits;
use crate::run::guest::GuestArgs;
use crate::vsock;
use anyhow::Context as _;
use boot_events::Event;
use igvm_builder::placement;
use openhcl_config::OnGuestCrash;
use qemu::Accel;
use qemu::ByteCount;
use qemu::Gdb;
use qemu::Machine;
use qemu::NumaNodes;
use qemu::Qemu;
use qemu::Source;
use qemu::Vm;
use qemu::Wiring;
use serde_json::Value;
use std::fs::File;
use std::fs::TryLockError;
use std::io::IsTerminal as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

mod alone;
mod diag;
pub(crate) mod guest;
mod guest_terminal;
mod keys;
mod raw;
mod registered;
mod report;
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
  cargo xtask run                            boot a guest; the terminal is its console
  cargo xtask run --vps 4 --memory 4G        another machine
  cargo xtask run --numa 4,4,0               three NUMA nodes, the last without a VP
  cargo xtask run --kernel trixie            the kernel of another Debian
  cargo xtask run --kernel bzImage --initrd initrd.gz --cmdline 'console=ttyS0'
  cargo xtask run --no-guest --dev           the terminal is a shell in VTL2 (Ctrl-] ends)
  cargo xtask run --exit-after-boot --json   stages, milestones and the tour for a program
  cargo xtask run --no-paravisor             the guest alone, with QEMU's devices
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
    /// VPs of each NUMA node, instead of `--vps`; 0 makes a node of memory only.
    #[arg(long, value_name = "N,N,...", conflicts_with = "vps")]
    numa: Option<NumaNodes>,
    /// All memory of the machine.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteCount,
    /// Memory of VTL2; what the image asks for, if not given.
    #[arg(long, value_name = "SIZE")]
    vtl2_memory: Option<ByteCount>,
    #[command(flatten)]
    guest: GuestArgs,
    /// The guest alone: it has the whole machine, with QEMU's devices. The yardstick for
    /// what the paravisor costs.
    #[arg(long, conflicts_with_all = [
        "dev", "igvm", "config", "timeline", "append", "vtl2_memory", "no_guest",
    ])]
    no_paravisor: bool,
    /// Boot the image that has a shell in VTL2.
    #[arg(long)]
    dev: bool,
    /// Boot this IGVM file, with the guest that it carries, instead of building one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "cmdline", "no_guest"])]
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
    args.guest.check()?;
    if args.no_paravisor {
        return alone::run(&args, attended);
    }
    let profile = args.profile();
    let config = args.load_config()?;
    let prepared = artifacts::prepare()?;
    let workspace = Workspace::current()?;
    let artifacts = artifacts::build(&prepared, &workspace, profile, None)?;
    let qemu = Qemu::find()?;
    let vsock = vsock::ensure(&prepared.cache)?;
    let (consoles, _lock) = match &args.consoles {
        Some(directory) => (directory.clone(), None),
        None => free_directory(&workspace.target)?,
    };
    let (image, guest) = args.image(&prepared, &workspace, &artifacts, &consoles, attended)?;
    // Whoever switches the diagnostics off wants to see a machine without.
    let diag = *config.diag.enabled;
    let stays = attended || args.print_qemu;
    let machine = args.machine(&artifacts.vsm_host, &image, guest, stays, diag);
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
    let run = Run {
        machine: &machine,
        qemu: &qemu,
        consoles: &consoles,
        image: &image,
        guest,
        name: match config.name.origin {
            openhcl_config::Origin::Default => None,
            _ => Some(config.name.value.clone()),
        },
        crash_ends: *config.on_guest_crash != OnGuestCrash::Reset,
        timeline: args.timeline.as_deref(),
        diag,
    };
    match (attended, guest) {
        (true, Guest::None) => terminal::run(&run, args.dev),
        (true, _) => guest_terminal::run(&run),
        (false, _) => {
            let deadline = match args.gdb {
                // Whoever debugs takes the time that it takes.
                Some(_) => DEBUGGING_DEADLINE,
                None => DEADLINE,
            };
            run.unattended(args.json, deadline)
        }
    }
}

/// What runs in VTL0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// Nothing.
    None,
    /// A guest that takes the tour and powers off.
    Tour,
    /// A guest of which nobody here knows what it does.
    Other,
}

/// One run of a machine.
struct Run<'a> {
    machine: &'a Machine,
    qemu: &'a Qemu,
    consoles: &'a Path,
    image: &'a Path,
    guest: Guest,
    /// A crash is the guest's end.
    crash_ends: bool,
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

    /// The image, packed with its guest if it has one, and what that guest does. A guest
    /// for which the machine is too small is refused here.
    fn image(
        &self,
        prepared: &Prepared,
        workspace: &Workspace,
        artifacts: &Artifacts,
        consoles: &Path,
        attended: bool,
    ) -> anyhow::Result<(PathBuf, Guest)> {
        let machine = placement::Machine {
            vps: self.vps(),
            memory: self.memory.get(),
            options: igvm_loader::Options {
                vtl2_memory: self.vtl2_memory.map(ByteCount::get),
                park: self.accel == Accel::Tcg,
                ..igvm_loader::Options::default()
            },
        };
        if let Some(path) = &self.igvm {
            image_fits(
                &std::fs::read(path).with_context(|| path.display().to_string())?,
                &machine,
            )?;
            let guest = match igvm_builder::error::read_image(path)?.guest.is_empty() {
                true => Guest::None,
                false => Guest::Other,
            };
            return Ok((path.clone(), guest));
        }
        if !self.guest.wanted() {
            let path = &artifacts.igvm;
            image_fits(
                &std::fs::read(path).with_context(|| path.display().to_string())?,
                &machine,
            )?;
            return Ok((path.clone(), Guest::None));
        }
        let tour = !attended && self.guest.has_tour();
        let parts = self.guest.parts(&prepared.cache, workspace, tour)?;
        let path = consoles.join("openhcl.igvm");
        let image = parts.pack(artifacts, self.profile(), &workspace.root, &path)?;
        parts.check_memory(&image, &machine)?;
        let guest = if tour { Guest::Tour } else { Guest::Other };
        Ok((path, guest))
    }

    /// Number of VPs.
    fn vps(&self) -> u32 {
        self.numa.as_ref().map_or(self.vps, NumaNodes::vps)
    }

    fn profile(&self) -> ImageProfile {
        match self.dev {
            true => ImageProfile::Dev,
            false => ImageProfile::Release,
        }
    }

    fn machine(&self, host: &Path, image: &Path, guest: Guest, stays: bool, diag: bool) -> Machine {
        let mut machine = Machine::vsm(host, image)
            .vps(self.vps)
            .memory(self.memory)
            .accel(self.accel);
        if let Some(nodes) = &self.numa {
            machine = machine.numa(nodes.clone());
        }
        if let Some(size) = self.vtl2_memory {
            machine = machine.vtl2_memory(size);
        }
        if let Some(port) = self.gdb {
            machine = machine.gdb(Gdb { port, freeze: true });
        }
        // A guest ends the machine itself, and without diagnostics nobody else can.
        if !stays && !diag && guest == Guest::None {
            machine = machine.bootarg(EXIT_AFTER_BOOT);
        }
        if self.dev && stays && guest == Guest::None {
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

/// Milliseconds, to the microsecond.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The JSON that VTL2 logged in a line of its own; null if it did not.
pub(crate) fn event_json(vm: &Vm, choose: impl Fn(Event<'_>) -> Option<&str>) -> Value {
    vm.lines(Source::Vtl2)
        .iter()
        .find_map(|line| {
            let text = Event::parse(&line.text).and_then(&choose)?;
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
    fn numa_nodes_tell_the_number_of_vps() {
        let args = args("--numa 4,2,0");
        assert_eq!(args.vps(), 6);
        let machine = args.machine("h".as_ref(), "i".as_ref(), Guest::Other, true, true);
        assert_eq!(machine.apic_ids().len(), 6);
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
        for words in [
            "--memory lots",
            "--accel whpx",
            "--gdb 70000",
            "--vps -1",
            "--numa 4,a",
            "--numa 4 --vps 4",
        ] {
            assert!(
                Cli::try_parse_from(["run"].into_iter().chain(words.split(' '))).is_err(),
                "{words} was taken"
            );
        }
    }
}
