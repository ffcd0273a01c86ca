//! The command line.

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  ohcldiag ping                         does the paravisor answer, and how fast
  ohcldiag inspect                      its state, all of it
  ohcldiag inspect --depth 0            only the names at the top
  ohcldiag kmsg -f                      the kernel's log, and what comes next
  ohcldiag shell                        a shell in VTL2 (images built with --dev)
  ohcldiag --vm ./vm.sock ping          a VM by the socket of its vsock helper

Exit codes: 0 done; 1 failed; 2 wrong command line; 3 no VM, or not reachable; 4 no answer
in time; exec and shell return the program's own code (128 + the signal that ended it).";

/// Asks a running paravisor over vsock.
#[derive(Debug, Parser)]
#[command(name = "ohcldiag", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The VM: a name from `ohcldiag list`, the path of a hybrid vsock (with a '/'), or a
    /// vsock context id. Without it, the only VM that runs here.
    #[arg(long, global = true, value_name = "PATH|CID|NAME")]
    pub(crate) vm: Option<String>,
    /// How long an answer may take: 2, 0.5s, 300ms.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Asks whether the paravisor answers, and measures how long that takes.
    Ping(PingArgs),
    /// Shows the tree of live state, or changes a value in it.
    Inspect(InspectArgs),
    /// Shows the log of VTL2's kernel, which has the paravisor's messages too.
    Kmsg(KmsgArgs),
    /// Runs a program in VTL2.
    Exec(ExecArgs),
    /// Opens a shell in VTL2; only development images have one.
    Shell(ShellArgs),
    /// Shows or fetches a file of VTL2.
    File(FileArgs),
    /// Stops the guest's processors until `resume`.
    Pause,
    /// Lets a paused guest go on.
    Resume,
    /// Restarts the VM worker; its guest goes on where it was.
    Restart,
    /// Makes a process of the paravisor crash.
    Crash(CrashArgs),
    /// Has processors of VTL2 run Linux.
    #[command(
        subcommand,
        after_help = "\
Examples:
  ohcldiag cpu online 3"
    )]
    Cpu(CpuCommand),
    /// Lists the VMs that run here.
    List(ListArgs),
    /// Shows when each stage of the boot was.
    BootTimeline(BootTimelineArgs),
    /// Powers the VM off, in order.
    PowerOff,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag ping
  ohcldiag ping --count 1000 --json")]
pub(crate) struct PingArgs {
    /// How many times; one follows the other at once.
    #[arg(long, short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,
    /// One object with times in nanoseconds.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag inspect memory
  ohcldiag inspect vm/topology --json
  ohcldiag inspect diag --periodic 1         every second, counters as rates
  ohcldiag inspect log/filter -u debug       change a value

What cannot be had is shown in angle brackets and does not fail the command, unless it is
what was asked for. `_` is a directory below the depth. With --json, values are plain,
`_` is null and a failure is {\"$error\": \"…\"}; --periodic prints one line per time.")]
pub(crate) struct InspectArgs {
    /// Names separated by '/'; without it, everything.
    #[arg(default_value = "")]
    pub(crate) path: String,
    /// How many levels below the path; 0 shows only what is directly in it.
    #[arg(long, short, value_name = "LEVELS")]
    pub(crate) depth: Option<u32>,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// Changes the value at the path, and shows what it is then.
    #[arg(long, short, value_name = "VALUE", conflicts_with_all = ["depth", "periodic"])]
    pub(crate) update: Option<String>,
    /// Again and again after so much time (2, 0.5s, 300ms), counters as rates.
    #[arg(long, short, value_name = "TIME", value_parser = interval)]
    pub(crate) periodic: Option<Duration>,
    /// With --periodic: how many times; without it, until Ctrl-C.
    #[arg(long, requires = "periodic", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag kmsg | grep openvmm_hcl
  ohcldiag kmsg -f")]
pub(crate) struct KmsgArgs {
    /// Go on with new records until Ctrl-C, or the end of the VM.
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag exec -- ps
  ohcldiag exec -e RUST_LOG=debug -- /bin/program --option
  ohcldiag exec -- sh -c 'cat > /tmp/file' < file
  ohcldiag exec --tty -- top

Without --tty the program's output is passed on byte for byte, unless it goes to a
terminal: then control characters are shown instead of carried out.")]
pub(crate) struct ExecArgs {
    /// Give the program a terminal, as `shell` does.
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Set a variable (NAME=VALUE) or remove one (NAME).
    #[arg(long, short, value_name = "NAME[=VALUE]", value_parser = variable)]
    pub(crate) env: Vec<(String, Option<String>)>,
    /// Start from an empty environment.
    #[arg(long)]
    pub(crate) clear_env: bool,
    /// Give the program no input.
    #[arg(long, short, conflicts_with = "tty")]
    pub(crate) no_stdin: bool,
    /// The program and its arguments. What follows the program is not for `ohcldiag`.
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag shell
  ohcldiag shell -c 'ls /proc'

`exit` or Ctrl-D ends it. Build an image with a shell by `cargo xtask run --dev`.")]
pub(crate) struct ShellArgs {
    /// Run this instead of asking for commands, without a terminal.
    #[arg(short, value_name = "COMMANDS")]
    pub(crate) commands: Option<String>,
    /// The shell.
    #[arg(long, default_value = "/bin/sh")]
    pub(crate) shell: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag file /proc/meminfo
  ohcldiag file /proc/kcore -o core
  ohcldiag file -f /run/log")]
pub(crate) struct FileArgs {
    /// The file.
    pub(crate) path: String,
    /// Go on as the file grows, until Ctrl-C.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Write it to this file of the host instead of stdout.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag crash underhill_vm        the worker: the paravisor notices and restarts it
  ohcldiag crash 42")]
pub(crate) struct CrashArgs {
    /// A process id in VTL2, or the name of a process as `inspect proc` shows it.
    #[arg(value_name = "PID|NAME")]
    pub(crate) process: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CpuCommand {
    /// Has VTL2's Linux boot a processor that is in the sidecar.
    Online(OnlineArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag cpu online 3
  ohcldiag cpu online 3 --json
  ohcldiag inspect vm/vp/3               where a processor is, why and since when

The guest's other processors run on meanwhile. There is no way back.")]
pub(crate) struct OnlineArgs {
    /// The processor, as the guest numbers them too.
    #[arg(value_name = "N")]
    pub(crate) cpu: u32,
    /// One object: the processor, and why it has left the sidecar (null: it was not there).
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag list
  ohcldiag list --json")]
pub(crate) struct ListArgs {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ohcldiag boot-timeline
  ohcldiag boot-timeline --json

All stages stamp the same clock. A picture is made by `cargo xtask run --timeline boot.html`.")]
pub(crate) struct BootTimelineArgs {
    /// For programs: times in nanoseconds.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A time with a unit; without one, in seconds.
fn time(text: &str) -> Result<Duration, String> {
    let (number, factor) = match text {
        _ if text.ends_with("ms") => (text.trim_end_matches("ms"), 1e-3),
        _ if text.ends_with('s') => (text.trim_end_matches('s'), 1.0),
        _ => (text, 1.0),
    };
    let expectation = || format!("expected a time like 2, 0.5s or 300ms, not {text:?}");
    let number: f64 = number.trim().parse().map_err(|_| expectation())?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| expectation())
}

/// As [`time`], but not so short that it would be a flood.
fn interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(10);
    match time(text)? {
        time if time < LEAST => Err("expected at least 10ms".to_owned()),
        time => Ok(time),
    }
}

fn variable(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name {
        "" => Err("expected NAME=VALUE or NAME".to_owned()),
        name => Ok((name.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("2"), Ok(Duration::from_secs(2)));
        assert_eq!(time("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(time("300ms"), Ok(Duration::from_millis(300)));
        for wrong in ["", "x", "-1", "1h", "inf", "1e99s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        assert!(interval("1ms").is_err());
    }

    #[test]
    fn a_programs_options_are_its_own() {
        let cli = Cli::try_parse_from(["ohcldiag", "exec", "ls", "--timeout", "-l"]).unwrap();
        let Command::Exec(args) = cli.command else {
            panic!("expected exec");
        };
        assert_eq!(args.command, ["ls", "--timeout", "-l"]);
        assert!(Cli::try_parse_from(["ohcldiag", "exec", "--unknown", "ls"]).is_err());
    }

    #[test]
    fn variables_are_set_or_removed() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), Some("b=c".into()))));
        assert_eq!(variable("A="), Ok(("A".into(), Some(String::new()))));
        assert_eq!(variable("A"), Ok(("A".into(), None)));
        assert!(variable("=x").is_err());
    }
}
