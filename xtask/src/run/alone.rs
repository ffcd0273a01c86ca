//! A guest without a paravisor: the host starts it with the whole machine.
//!
//! Nothing of VTL2 is built or booted. The guest's kernel, its memory and its processors are
//! packed into an IGVM file for exactly this machine. On a terminal QEMU itself connects the
//! guest's serial port with it.

use crate::cache::Cache;
use crate::cache::write_if_changed;
use crate::cargo::Workspace;
use crate::packages;
use crate::run::Args;
use crate::run::DEADLINE;
use crate::run::DEBUGGING_DEADLINE;
use crate::run::free_directory;
use crate::run::ms;
use crate::toolchain::BareMetal;
use anyhow::Context as _;
use boot_events::GUEST_STARTED;
use boot_events::GUEST_TOUR_ENDED;
use inspect::printable;
use qemu::Exit;
use qemu::Gdb;
use qemu::Machine;
use qemu::Qemu;
use qemu::Source;
use qemu::Wiring;
use serde_json::json;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Name of the image beside the consoles.
const IMAGE: &str = "linux.igvm";

/// Builds what is needed, and boots.
pub(super) fn run(args: &Args, attended: bool) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let bare_metal = BareMetal::ensure(&cache)?;
    let workspace = Workspace::current()?;
    let host = workspace.build_host(&cache, &bare_metal)?;
    let qemu = Qemu::find()?;
    let (consoles, _lock) = match &args.consoles {
        Some(directory) => (directory.clone(), None),
        None => free_directory(&workspace.target)?,
    };
    let tour = !attended && args.guest.has_tour();
    let parts = args.guest.parts(&cache, &workspace, tour)?;

    let image = consoles.join(IMAGE);
    let mut machine = Machine::without_paravisor(host, &image)
        .vps(args.vps)
        .memory(args.memory)
        .accel(args.accel);
    if let Some(nodes) = &args.numa {
        machine = machine.numa(nodes.clone());
    }
    if let Some(port) = args.gdb {
        machine = machine.gdb(Gdb { port, freeze: true });
    }
    let first_apic_id = machine.apic_ids().first().copied().unwrap_or_default();
    let bytes = parts.pack_alone(args.memory.get(), args.vps(), first_apic_id)?;
    write_if_changed(&image, &bytes)?;
    let terminal = machine.command_line(&qemu, Wiring::Terminal)?;
    if args.print_qemu {
        println!("{}", terminal.shell_text());
        return Ok(());
    }
    if attended {
        eprintln!("The guest boots. Its console is this terminal; Ctrl-A X ends, Ctrl-A H helps.");
        let status = Command::new(terminal.program())
            .args(terminal.arguments())
            .status()
            .context("starting QEMU")?;
        return expect_end(Exit::from_status(status));
    }
    unattended(args, &machine, &qemu, &consoles, tour)
}

/// Boots, and waits for the end of the tour and of the machine.
fn unattended(
    args: &Args,
    machine: &Machine,
    qemu: &Qemu,
    consoles: &Path,
    tour: bool,
) -> anyhow::Result<()> {
    // Whoever debugs takes the time that it takes.
    let deadline = match args.gdb {
        Some(_) => DEBUGGING_DEADLINE,
        None => DEADLINE,
    };
    let mut vm = machine.start_with_echo(qemu, consoles, |_| {
        (!args.json).then(|| Box::new(std::io::stdout()) as qemu::Echo)
    })?;
    let mut started = None;
    if tour {
        started = Some(vm.wait_for_text(Source::Vtl2, GUEST_STARTED, deadline)?.at);
        vm.wait_for_text(Source::Vtl2, GUEST_TOUR_ENDED, deadline)?;
    }
    let exit = vm.wait_exit(deadline)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let lines = vm.lines(Source::Vtl2);
        let lines: Vec<_> = lines
            .iter()
            .map(|l| printable(&l.text).to_string())
            .collect();
        let report = json!({
            "exit": exit.to_string(),
            "guest_started_ms": started.map(ms),
            "console": lines,
            "consoles": vm.directory(),
        });
        writeln!(stdout, "{report:#}")?;
    } else {
        if let Some(started) = started {
            writeln!(stdout, "\nguest's init started after {:.1} ms", ms(started))?;
        }
        writeln!(stdout, "{exit}; consoles are in {}", consoles.display())?;
    }
    expect_end(exit).with_context(|| vm.report().to_string())
}

/// The guest has the machine's own power switch.
fn expect_end(exit: Exit) -> anyhow::Result<()> {
    anyhow::ensure!(
        exit == Exit::Normal,
        "{exit}, expected a power-off by the guest"
    );
    Ok(())
}
