//! `ohcldiag`: asks a running paravisor, from the host, over vsock.
//!
//! Rules that hold for all commands:
//!
//! - the VM is found by itself if only one runs here; `--vm` names another;
//! - results go to stdout, everything else to stderr, and a failure is one line;
//! - the exit code says what went wrong ([`exit`]);
//! - what the VM says is text from a stranger: control characters do not reach a terminal
//!   ([`output`]), except in `shell` and `exec --tty`, which connect a program to the
//!   terminal because somebody asked for just that;
//! - a terminal that was made raw is restored, however the command ends ([`terminal`]).
//!
//! It refuses to start or stop VMs (except `power-off`): that is `cargo xtask run`.

#![deny(unsafe_code)]

mod boot_timeline;
mod cli;
mod cpu;
mod crash;
mod exec;
mod exit;
mod file;
mod inspect;
mod json;
mod kmsg;
mod list;
mod output;
mod ping;
mod rates;
mod signals;
mod terminal;

use clap::Parser;
use cli::Cli;
use cli::Command;
use cli::CpuCommand;
use cli::Target;
use diag_client::Client;
use diag_client::registry;
use exit::Failure;
use std::io::Write;
use std::process::ExitCode;

/// What the program does: reads the command line, asks, prints, and returns the exit code.
pub fn main() -> ExitCode {
    let Cli { target, command } = Cli::parse();
    match run(&target, command) {
        Ok(code) => code,
        // Whoever read the output has seen enough, as `head` does.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // Without stderr there is nobody to tell.
            _ = writeln!(std::io::stderr(), "ohcldiag: {failure}");
            failure.exit_code()
        }
    }
}

fn run(target: &Target, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::List(args) => list::run(&args)?,
        Command::Ping(args) => ping::run(&connect(target)?, &args)?,
        Command::Inspect(args) => inspect::run(&connect(target)?, &args)?,
        Command::Kmsg(args) => kmsg::run(&connect(target)?, &args)?,
        Command::Exec(args) => return exec::run(&connect(target)?, &args),
        Command::Shell(args) => return exec::shell(&connect(target)?, &args),
        Command::File(args) => file::run(&connect(target)?, &args)?,
        Command::Pause => connect(target)?.pause()?,
        Command::Resume => connect(target)?.resume()?,
        Command::Restart => connect(target)?.restart()?,
        Command::Crash(args) => crash::run(&connect(target)?, &args)?,
        Command::Cpu(CpuCommand::Online(args)) => cpu::online(&connect(target)?, &args)?,
        Command::BootTimeline(args) => boot_timeline::run(&connect(target)?, &args)?,
        Command::PowerOff => connect(target)?.power_off()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(target: &Target) -> Result<Client, Failure> {
    let address = registry::find(target.vm.as_deref())?;
    Ok(Client::connect_within(address, target.timeout)?)
}
