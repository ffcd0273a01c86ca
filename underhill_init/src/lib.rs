//! PID 1 of VTL2.
//!
//! The first program after Linux: it gives the paravisor a system to run on, starts it,
//! and is told when it ends. The name is historical, see the Guide's glossary.
//!
//! In order: mount `/dev` and say [`boot_events::INIT_STARTED`]; the other file systems;
//! standard streams; kernel settings and limits; with a sidecar, the processors that are Linux'
//! all the same; the host's entropy; the time of day; kernel modules; `/bin/openvmm_hcl`. Then
//! it waits. When the paravisor has ended, PID 1 reports how, ends all other processes, and
//! either asks the hypervisor for power-off, if the paravisor ended with code 0, or ends
//! itself with the paravisor's code: without PID 1 the kernel panics, and reports the end of
//! the log, with the reason in it, to the host.
//!
//! * Promises: the end of the paravisor is the end of the machine, the log says how it
//!   came, and the host can tell a failed paravisor from a power-off; every child is
//!   reaped; a step that fails is named with its cause, and the boot goes on if the
//!   paravisor has a chance without it.
//! * Refuses: policy. It configures no device and no network, reads no configuration but
//!   the command line, and never restarts the paravisor: on a crash the host restarts
//!   VTL2 as a whole.
//!
//! What it reads from outside (command line, environment, device tree) is parsed by pure
//! code that any text or bytes may reach.

pub mod command_line;
pub mod console;
pub mod entropy;
pub mod modules;
pub mod options;
pub mod power;
pub mod process;
pub mod processors;
pub mod supervisor;
pub mod system;
pub mod wall_clock;

use boot_events::INIT_POWERING_OFF;
use boot_events::INIT_PREFIX;
use boot_events::INIT_STARTED;
use boot_events::PARAVISOR_EXITED_PREFIX;
use boot_events::ParavisorExit;
use entropy::Seeded;
use kernel_log::FACILITY_INIT;
use kernel_log::KernelLog;
use kernel_log::chain;
use nix::sys::reboot::RebootMode;
use nix::time::ClockId;
use options::Options;
use power::PowerOffError;
use power::PowerSwitch;
use process::ProcessError;
use process::Signals;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::time::Instant;

/// The paravisor.
const PARAVISOR: &str = "/bin/openvmm_hcl";

/// Environment variable of the paravisor: when PID 1 started, in nanoseconds since the
/// kernel did.
const BOOT_TIME: &str = "KERNEL_BOOT_TIME";

/// Exit code of PID 1 when it makes the kernel panic, for want of another way.
const CRASHED: u8 = 1;

/// Runs PID 1. It only returns to make the kernel panic, or if it is not PID 1 at all.
pub fn main() -> ExitCode {
    let started = ClockId::CLOCK_BOOTTIME.now();
    if std::process::id() != 1 {
        eprintln!("{INIT_PREFIX}this program only runs as process 1 of VTL2");
        return ExitCode::FAILURE;
    }

    let devices = system::mount_devices();
    let log = KernelLog::open(FACILITY_INIT, INIT_PREFIX);
    log.info(own(INIT_STARTED));
    if let Err(error) = devices {
        log.error(&chain(&error));
    }

    let (options, complaints) = Options::read(std::env::vars_os());
    for complaint in complaints {
        log.warning(&complaint);
    }
    set_up(&options, &log);

    if options.crash {
        return crash(&log);
    }
    match run(started, &options, &log) {
        Ok(exit) => {
            log.info(&format!("{}{exit}", own(PARAVISOR_EXITED_PREFIX)));
            match failure_code(exit) {
                None => power_off(&log),
                Some(code) => fail(code, &log),
            }
        }
        Err(error) => {
            log.error(&chain(&error));
            fail(CRASHED, &log)
        }
    }
}

/// The exit code of PID 1 after a paravisor that failed, as a shell would give it; `None`
/// if it did not fail.
fn failure_code(exit: ParavisorExit) -> Option<u8> {
    let code = match exit {
        ParavisorExit::Code(0) => return None,
        ParavisorExit::Code(code) => code,
        ParavisorExit::Signal(signal) => signal.saturating_add(128),
    };
    Some(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Ends PID 1, which makes the kernel panic: the panic is the one way out of Linux by
/// which the hypervisor learns of a failure, together with the end of the log.
fn fail(code: u8, log: &KernelLog) -> ExitCode {
    process::kill_all(log);
    log.error("the paravisor has failed, and PID 1 ends: the kernel will panic");
    ExitCode::from(code)
}

/// All that the paravisor needs around it.
fn set_up(options: &Options, log: &KernelLog) {
    for error in system::mount_all() {
        log.error(&chain(&error));
    }
    if let Err(error) = system::redirect_standard_streams() {
        log.warning(&format!("standard streams stay on the console: {error}"));
    }
    system::apply_settings(log);
    if let Err(error) = system::raise_limits() {
        log.warning(&format!("the limit of open files stays low: {error}"));
    }
    bring_up_processors(log);
    match entropy::seed(!options.confidential) {
        Ok(Seeded::Nothing) => log.info("the host gave no entropy"),
        Ok(Seeded::Credited(size)) => log.info(&format!("{size} bytes of entropy credited")),
        Ok(Seeded::Stirred(size)) => log.info(&format!("{size} bytes of entropy stirred in")),
        Err(error) => log.warning(&chain(&error)),
    }
    match wall_clock::set() {
        Ok(Some(date)) => log.info(&format!("the time of day is {date} UTC")),
        Ok(None) => log.info("this machine has no clock that tells the time of day"),
        Err(error) => log.warning(&chain(&error)),
    }
    // The kernel takes bytes that are not UTF-8 for what they are; no module of ours has
    // a parameter in which they could matter.
    match std::fs::read("/proc/cmdline") {
        Ok(line) => modules::load_all(
            Path::new(modules::DIRECTORY),
            &String::from_utf8_lossy(&line),
            modules::has_hypervisor(Path::new(modules::HYPERVISOR)),
            log,
        ),
        Err(error) => log.error(&format!("no module is loaded: /proc/cmdline: {error}")),
    }
}

/// With a sidecar, Linux has booted on one processor only.
fn bring_up_processors(log: &KernelLog) {
    let cpus = match processors::wanted(Path::new(processors::PROPERTY)) {
        Ok(Some(cpus)) => cpus,
        Ok(None) => return,
        Err(error) => return log.error(&chain(&error)),
    };
    if cpus.is_empty() {
        return log.info("Linux has no CPU beside the first");
    }
    let start = Instant::now();
    let result = processors::bring_up(&cpus, Path::new(processors::PROCESSORS));
    for failure in &result.failures {
        log.error(&chain(failure));
    }
    log.info(&format!(
        "{} of {} more CPUs brought up in {} ms",
        result.count,
        cpus.len(),
        start.elapsed().as_millis()
    ));
}

/// The paravisor's life.
fn run(
    started: nix::Result<nix::sys::time::TimeSpec>,
    options: &Options,
    log: &KernelLog,
) -> Result<ParavisorExit, ProcessError> {
    let signals = Signals::collect()?;
    // Ctrl-Alt-Del becomes a signal for PID 1 instead of an immediate reset.
    if let Err(error) = nix::sys::reboot::set_cad_enabled(false) {
        log.warning(&format!("Ctrl-Alt-Del stays an immediate reset: {error}"));
    }
    let mut paravisor = Command::new(PARAVISOR);
    match started {
        Ok(time) => {
            let nanoseconds =
                i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
            paravisor.env(BOOT_TIME, nanoseconds.to_string());
        }
        Err(error) => log.warning(&format!("the time of the start is unknown: {error}")),
    }
    let paravisor = process::spawn(paravisor)?;
    if options.shell {
        process::spawn_shell(log);
    }
    process::supervise(&signals, paravisor, log)
}

/// Makes the kernel panic, for a person or a test that wants to see the report of it.
fn crash(log: &KernelLog) -> ExitCode {
    log.warning(&format!("{} asks for a crash", options::CRASH));
    if let Err(error) = system::write_existing(Path::new("/proc/sysrq-trigger"), "c") {
        // A kernel without SysRq panics as well when it loses PID 1.
        log.debug(&format!("no crash by SysRq: {error}"));
    }
    ExitCode::from(CRASHED)
}

/// Ends the machine, in an orderly way if there is one.
fn power_off(log: &KernelLog) -> ExitCode {
    process::kill_all(log);
    log.info(own(INIT_POWERING_OFF));
    nix::unistd::sync();
    let error = match PowerSwitch::open() {
        Ok(switch) => press(&switch, log),
        Err(error) => error,
    };
    log.error(&format!("no power-off, resetting: {}", chain(&error)));
    // Not RB_POWER_OFF: without ACPI the kernel would turn that into a silent halt, and
    // whoever waits for this machine would wait for ever.
    match nix::sys::reboot::reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => {
            log.error(&format!("no reset either: {error}"));
            ExitCode::from(CRASHED)
        }
    }
}

/// Powers off once the consoles show the whole log.
fn press(switch: &PowerSwitch, log: &KernelLog) -> PowerOffError {
    let terminals = Path::new(console::TERMINALS);
    let consoles = console::detach(terminals);
    let error = switch.press();
    match consoles.and_then(|consoles| console::attach(terminals, &consoles)) {
        Ok(()) => {}
        Err(error) => log.warning(&format!("consoles may lack lines: {error}")),
    }
    error
}

/// An event of PID 1 without the prefix, which the log adds.
fn own(event: &'static str) -> &'static str {
    event.strip_prefix(INIT_PREFIX).unwrap_or(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_the_prefix_of_pid_1() {
        for event in [INIT_STARTED, INIT_POWERING_OFF, PARAVISOR_EXITED_PREFIX] {
            assert_eq!(format!("{INIT_PREFIX}{}", own(event)), event);
            assert_ne!(own(event), event);
        }
    }

    #[test]
    fn pid_1_ends_with_the_code_of_a_paravisor_that_failed() {
        assert_eq!(failure_code(ParavisorExit::Code(0)), None);
        assert_eq!(failure_code(ParavisorExit::Code(3)), Some(3));
        assert_eq!(failure_code(ParavisorExit::Code(256)), Some(255));
        assert_eq!(failure_code(ParavisorExit::Signal(9)), Some(137));
        assert_eq!(failure_code(ParavisorExit::Signal(i32::MAX)), Some(255));
    }

    #[test]
    fn a_process_that_is_not_pid_1_changes_nothing() {
        assert_eq!(format!("{:?}", main()), format!("{:?}", ExitCode::FAILURE));
    }
}
