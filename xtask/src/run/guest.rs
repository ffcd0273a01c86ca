//! The guest of a run: which one, and the tour that an unattended run takes through it.

use crate::cache::Cache;
use crate::cargo::Workspace;
use crate::guest::image::GuestParts;
use crate::guest::initrd;
use crate::guest::kernel;
use crate::guest::kernel::Suite;
use crate::run::ms;
use anyhow::Context as _;
use boot_events::GUEST_STARTED;
use boot_events::GUEST_TOUR_ENDED;
use inspect::printable;
use qemu::GuestConsole;
use qemu::GuestConsoleError;
use qemu::GuestPort;
use qemu::Line;
use qemu::Vm;
use serde::Serialize;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

/// The kernel's command line. The console is a serial port, and each byte that goes there
/// costs time: only warnings do before the shell.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 quiet";

/// Stands for "no initrd".
const NONE: &str = "none";

/// Options that choose the guest.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GuestArgs {
    /// The guest's kernel: a file (bzImage or vmlinux), or a suite of Debian (bookworm,
    /// trixie, trixie-backports).
    #[arg(long, value_name = "FILE|SUITE", default_value = "bookworm")]
    kernel: String,
    /// The guest's initrd, or `none`; a small busybox, if not given.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The guest's command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// The paravisor alone, without a guest.
    #[arg(long, conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    no_guest: bool,
}

/// What the guest has told on the tour.
#[derive(Debug, Serialize)]
pub(crate) struct Tour {
    /// When its init started, after QEMU's start.
    pub(crate) started_ms: f64,
    #[serde(skip)]
    pub(crate) started: Duration,
    /// When it had told everything.
    pub(crate) ended_ms: f64,
    #[serde(skip)]
    pub(crate) ended: Duration,
    /// What it told.
    pub(crate) lines: Vec<String>,
}

impl GuestArgs {
    /// There is one.
    pub(crate) fn wanted(&self) -> bool {
        !self.no_guest
    }

    /// The tour is part of the initrd that we make.
    pub(crate) fn has_tour(&self) -> bool {
        self.initrd.is_none() && self.cmdline.is_none()
    }

    /// Refuses files that are not there, before anything is fetched or built.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let suites = Suite::ALL.map(Suite::name);
        anyhow::ensure!(
            suites.contains(&self.kernel.as_str()) || Path::new(&self.kernel).is_file(),
            "--kernel {}: no such file, expected a kernel or one of Debian's suites {}",
            self.kernel,
            suites.join(", ")
        );
        if let Some(initrd) = &self.initrd {
            anyhow::ensure!(
                initrd.as_os_str() == NONE || initrd.is_file(),
                "--initrd {}: no such file, expected an initrd or `{NONE}`",
                initrd.display()
            );
        }
        Ok(())
    }

    /// The guest's files, fetched and built if they are not there yet.
    pub(crate) fn parts(
        &self,
        cache: &Cache,
        workspace: &Workspace,
        tour: bool,
    ) -> anyhow::Result<GuestParts> {
        let kernel = match Suite::by_name(&self.kernel) {
            Some(suite) => kernel::ensure(cache, suite)?.vmlinuz,
            None => PathBuf::from(&self.kernel),
        };
        let initrd = match &self.initrd {
            None => Some(initrd::ensure(workspace)?),
            Some(path) if path.as_os_str() == NONE => None,
            Some(path) => Some(path.clone()),
        };
        let command_line = match &self.cmdline {
            Some(text) => text.clone(),
            None if tour => format!("{COMMAND_LINE} {}", initrd::TOUR),
            None => COMMAND_LINE.to_owned(),
        };
        Ok(GuestParts {
            kernel,
            initrd,
            command_line,
        })
    }
}

/// Follows the tour to its end.
pub(crate) fn tour(
    console: &mut GuestConsole,
    deadline: Duration,
) -> Result<Tour, GuestConsoleError> {
    let started = console.wait_for_text(GUEST_STARTED, deadline)?;
    let ended = console.wait_for_text(GUEST_TOUR_ENDED, deadline)?;
    Ok(Tour::new(started.at, &ended))
}

/// Connects to the guest's console, once the paravisor is ready.
pub(crate) fn connect(vm: &mut Vm) -> anyhow::Result<GuestConsole> {
    vm.guest_console(GuestPort::Com1)
        .with_context(|| format!("the guest's console cannot be reached\n{}", vm.report()))
}

impl Tour {
    fn new(started: Duration, ended: &Line) -> Self {
        let lines = ended.text.lines().map(|line| printable(line).to_string());
        let mut lines: Vec<_> = lines.collect();
        // The rest of the line with which it started; and that with which it ended.
        if let Some(first) = lines.first_mut() {
            first.insert_str(0, GUEST_STARTED);
        }
        lines.pop();
        Self {
            started_ms: ms(started),
            started,
            ended_ms: ms(ended.at),
            ended: ended.at,
            lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        guest: GuestArgs,
    }

    fn args(words: &[&str]) -> Result<GuestArgs, clap::Error> {
        let words = ["run"].iter().chain(words);
        Cli::try_parse_from(words).map(|cli| cli.guest)
    }

    fn parts(words: &[&str], tour: bool) -> GuestParts {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let workspace = Workspace::current().unwrap();
        args(words)
            .unwrap()
            .parts(&cache, &workspace, tour)
            .unwrap()
    }

    #[test]
    fn files_and_command_line_are_those_of_the_options() {
        let words = ["--kernel", "/k", "--initrd", "/i", "--cmdline", "-- a=1"];
        let expected = GuestParts {
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            command_line: "-- a=1".into(),
        };
        assert_eq!(parts(&words, true), expected);
        assert!(!args(&words).unwrap().has_tour());
    }

    #[test]
    fn files_that_are_not_there_are_named_with_what_is_expected() {
        let error = |words: &[&str]| args(words).unwrap().check().unwrap_err().to_string();
        let kernel = error(&["--kernel", "bookwurm"]);
        assert!(kernel.contains("bookwurm") && kernel.contains("bookworm, trixie"));
        assert!(error(&["--initrd", "/nowhere"]).contains("/nowhere"));
        args(&["--kernel", "trixie", "--initrd", NONE])
            .unwrap()
            .check()
            .unwrap();
    }

    #[test]
    fn a_guest_can_do_without_an_initrd() {
        let parts = parts(&["--kernel", "/k", "--initrd", "none"], false);
        assert_eq!(parts.initrd, None);
        assert_eq!(parts.command_line, COMMAND_LINE);
    }

    #[test]
    fn no_guest_means_none_at_all() {
        assert!(!args(&["--no-guest"]).unwrap().wanted());
        args(&["--no-guest", "--kernel", "/k"]).unwrap_err();
        args(&["--no-guest", "--cmdline", "x"]).unwrap_err();
        assert!(args(&[]).unwrap().wanted() && args(&[]).unwrap().has_tour());
    }

    #[test]
    fn a_tour_is_told_line_by_line_without_control_characters() {
        let text = format!(", uptime 1.5 s\r\n-- kernel\r\nLinux\x1b[0m\r\n{GUEST_TOUR_ENDED}");
        let line = Line {
            at: Duration::from_millis(1700),
            text,
        };
        let tour = Tour::new(Duration::from_millis(1500), &line);
        assert_eq!(tour.lines[0], format!("{GUEST_STARTED}, uptime 1.5 s"));
        assert_eq!(tour.lines[1], "-- kernel");
        assert!(tour.lines[2].starts_with("Linux") && !tour.lines[2].contains('\x1b'));
        assert_eq!(tour.lines.len(), 3);
        assert_eq!((tour.started_ms, tour.ended_ms), (1500.0, 1700.0));
    }
}
