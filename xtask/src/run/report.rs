//! An unattended run: boots, lets the guest or the paravisor tell about itself, and reports.

use crate::run::Guest;
use crate::run::Run;
use crate::run::diag;
use crate::run::diag::Answers;
use crate::run::event_json;
use crate::run::guest;
use crate::run::guest::Tour;
use crate::timeline::BootTimeline;
use anyhow::Context as _;
use boot_events::Event;
use qemu::Exit;
use qemu::GuestConsole;
use qemu::Timeline;
use qemu::Vm;
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;
use vsm_host_defs::ExitReason;

/// A guest of which nobody here knows what it does may take its time.
const OTHER_GUEST_DEADLINE: Duration = Duration::from_secs(3600);

/// What an unattended run has to say.
struct Report {
    exit: Exit,
    stages: Timeline,
    answers: Option<Answers>,
    tour: Option<Tour>,
}

impl Run<'_> {
    /// Boots, asks, waits for the power-off or orders it, and reports.
    pub(super) fn unattended(&self, json: bool, deadline: Duration) -> anyhow::Result<()> {
        let mut vm = self
            .machine
            .start_with_echo(self.qemu, self.consoles, |_| {
                // A guest has more to say than the logs of those who carry it.
                let shown = !json && self.guest == Guest::None;
                shown.then(|| Box::new(std::io::stdout()) as qemu::Echo)
            })?;
        vm.wait_for_event(Event::Ready, deadline)?;
        // First of all: the guest may be quick to end.
        let mut console = match self.guest {
            Guest::None => None,
            Guest::Tour | Guest::Other => Some(guest::connect(&mut vm)?),
        };
        let mut answers = match self.diag {
            true => Some(
                diag::ask(&vm)
                    .with_context(|| format!("the paravisor is ready, but\n{}", vm.report()))?,
            ),
            false => None,
        };
        let tour = match &mut console {
            Some(console) => self.follow(&mut vm, console, json, deadline)?,
            None => None,
        };
        if let Some(answers) = &mut answers {
            if let Some(tour) = &tour {
                answers.timeline.add("guest", "init started", tour.started);
                answers.timeline.add("guest", "tour ended", tour.ended);
            }
            self.write_timeline(&answers.timeline)?;
            if console.is_none() {
                answers.client.power_off()?;
            }
        }
        let exit = vm.wait_exit(deadline)?;
        let report = Report {
            exit,
            stages: Timeline::of(&vm),
            answers,
            tour,
        };
        report.print(&vm, json)?;
        anyhow::ensure!(
            exit == Exit::Host(ExitReason::PowerOff),
            "{exit}, expected an orderly power-off\n{}",
            vm.report()
        );
        Ok(())
    }

    /// Lets the guest do what it does, up to its end.
    fn follow(
        &self,
        vm: &mut Vm,
        console: &mut GuestConsole,
        json: bool,
        deadline: Duration,
    ) -> anyhow::Result<Option<Tour>> {
        if self.crash_ends {
            console.give_up_on_crash();
        }
        if self.guest == Guest::Tour {
            return match guest::tour(console, deadline) {
                Ok(tour) => Ok(Some(tour)),
                Err(error) => anyhow::bail!("{error}\n{}", vm.report()),
            };
        }
        let ended = console.wait_end(OTHER_GUEST_DEADLINE);
        if !json {
            std::io::stdout().write_all(&console.bytes())?;
        }
        anyhow::ensure!(
            ended,
            "the guest has not powered off within {OTHER_GUEST_DEADLINE:?}\n{}",
            vm.report()
        );
        // With its console the machine ends, unless it is only the guest that did.
        if let Some(cause) = console.stopped() {
            anyhow::bail!("the guest stopped: {cause}\n{}", vm.report());
        }
        Ok(None)
    }

    pub(super) fn write_timeline(&self, timeline: &BootTimeline) -> anyhow::Result<()> {
        let Some(path) = self.timeline else {
            return Ok(());
        };
        let image = self.image.display();
        let page = timeline.to_html(&format!("Boot of {image}"));
        std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))
    }
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
                "guest": self.tour,
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
        if let Some(tour) = &self.tour {
            for line in &tour.lines {
                writeln!(stdout, "{line}")?;
            }
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
