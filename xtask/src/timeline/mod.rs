//! The boot on one clock: what the host's side saw on the consoles, and what the machine's
//! own programs stamped, both in time after QEMU's start.
//!
//! The machine's clock, the reference time, begins with the first instruction of
//! `vsm_host`, which stamps its log with it. A line cannot arrive before it was written, so
//! the smallest distance between a line's arrival and its stamp is where the clocks meet;
//! what a line needs from the serial port to this process is the error. Their rates are
//! the same, because the reference time is this machine's.
//!
//! Names come from the machine and are not trusted: they are cut, counted and escaped.

mod html;

use crate::run::ms;
use boot_events::Event;
use qemu::Line;
use qemu::StageName;
use qemu::Timeline;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// More of the machine's milestones than this are not shown.
const MAX_MILESTONES: usize = 500;

/// More lines of the host's log are not; a boot has six.
const MAX_HOST_LINES: usize = 40;

/// A longer name is cut, in characters.
const MAX_NAME: usize = 120;

/// One moment of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Milestone {
    /// Who reached it.
    pub(crate) process: String,
    /// What it is.
    pub(crate) name: String,
    /// When, after QEMU's start.
    #[serde(rename = "ms", serialize_with = "as_ms")]
    pub(crate) at: Duration,
    /// Who measured.
    pub(crate) clock: Clock,
}

/// Who measured a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Clock {
    /// This machine: when the line arrived, or the answer.
    Host,
    /// The VM: a stamp of its own.
    Guest,
}

/// A moment that the machine has stamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Who reached it.
    pub(crate) process: String,
    /// What it is.
    pub(crate) name: String,
    /// When, after the stamps' zero.
    pub(crate) after_zero: Duration,
}

/// What the machine's stamps are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zero {
    /// The first instruction of `vsm_host`.
    Partition,
    /// The kernel's start: the boot shim left no counter.
    Kernel,
}

/// All moments of a boot, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BootTimeline {
    /// The moments.
    pub(crate) milestones: Vec<Milestone>,
    /// So many more came and are not here.
    pub(crate) dropped: usize,
}

impl BootTimeline {
    /// Joins what the host's side saw (its stages, and the lines of the host's log) with
    /// the stamps of the machine.
    pub(crate) fn join(stages: &Timeline, host: &[Line], zero: Zero, stamps: Vec<Stamp>) -> Self {
        let mut milestones = vec![Milestone {
            process: "qemu".to_owned(),
            name: "process starts".to_owned(),
            at: Duration::ZERO,
            clock: Clock::Host,
        }];
        let partition = partition_start(host);
        if let Some(partition) = partition {
            milestones.extend(host_log(host).map(|(stamp, text)| Milestone {
                process: "vsm_host".to_owned(),
                name: short(text),
                at: partition.saturating_add(stamp),
                clock: Clock::Guest,
            }));
        }
        let zero = match zero {
            Zero::Partition => partition,
            Zero::Kernel => stages.end_of(StageName::OpenhclBoot),
        };
        let mut dropped = 0;
        match zero {
            Some(zero) if !stamps.is_empty() => {
                dropped = stamps.len().saturating_sub(MAX_MILESTONES);
                let stamps = stamps.into_iter().take(MAX_MILESTONES);
                milestones.extend(stamps.map(|stamp| Milestone {
                    process: short(&stamp.process),
                    name: short(&stamp.name),
                    at: zero.saturating_add(stamp.after_zero),
                    clock: Clock::Guest,
                }));
            }
            // Of a machine that stamps nothing, what its consoles tell.
            _ => milestones.extend(stages.stages.iter().filter_map(|stage| {
                let (process, name) = end_of(stage.name)?;
                Some(Milestone {
                    process: process.to_owned(),
                    name: name.to_owned(),
                    at: stage.end,
                    clock: Clock::Host,
                })
            })),
        }
        let mut timeline = Self {
            milestones,
            dropped,
        };
        timeline.sort();
        timeline
    }

    /// Adds a moment that this machine has seen.
    pub(crate) fn add(&mut self, process: &str, name: &str, at: Duration) {
        self.milestones.push(Milestone {
            process: process.to_owned(),
            name: name.to_owned(),
            at,
            clock: Clock::Host,
        });
        self.sort();
    }

    /// The timeline as one HTML page.
    pub(crate) fn to_html(&self, title: &str) -> String {
        html::page(self, title)
    }

    /// The last moment.
    pub(crate) fn end(&self) -> Duration {
        self.milestones
            .last()
            .map_or(Duration::ZERO, |last| last.at)
    }

    /// Who reached any milestone, in the order of their first.
    pub(crate) fn processes(&self) -> Vec<&str> {
        let mut processes: Vec<&str> = Vec::new();
        for milestone in &self.milestones {
            if !processes.contains(&milestone.process.as_str()) {
                processes.push(&milestone.process);
            }
        }
        processes
    }

    fn sort(&mut self) {
        self.milestones.sort_by_key(|milestone| milestone.at);
    }
}

/// When the partition began, after QEMU's start.
fn partition_start(host: &[Line]) -> Option<Duration> {
    let distance = |line: &Line| line.at.checked_sub(host_stamp(&line.text)?.0);
    host.iter().filter_map(distance).min()
}

/// Stamps and texts of the host's log, up to VP 0's entry into VTL2.
fn host_log(host: &[Line]) -> impl Iterator<Item = (Duration, &str)> {
    let end = host
        .iter()
        .position(|line| Event::parse(&line.text) == Some(Event::HostEntersVtl2));
    let boot = end.map_or(0, |end| end + 1).min(MAX_HOST_LINES);
    host[..boot]
        .iter()
        .filter_map(|line| host_stamp(&line.text))
}

/// Reads `[   12.345 ms] vsm_host: text`.
fn host_stamp(line: &str) -> Option<(Duration, &str)> {
    let (stamp, text) = line.trim_start().strip_prefix('[')?.split_once(" ms] ")?;
    let text = text.strip_prefix(boot_events::HOST_PREFIX)?;
    let (ms, us) = stamp.trim_start().split_once('.')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if us.len() != 3 || !digits(ms) || !digits(us) {
        return None;
    }
    let whole = ms.parse::<u64>().ok()?.checked_mul(1000)?;
    let us = whole.checked_add(us.parse().ok()?)?;
    Some((Duration::from_micros(us), text))
}

/// What the end of a stage means, and for whom.
fn end_of(stage: StageName) -> Option<(&'static str, &'static str)> {
    Some(match stage {
        StageName::OpenhclBoot => ("openhcl_boot", "starts the kernel"),
        StageName::Linux => ("underhill_init", "first line"),
        StageName::Usermode => ("openvmm_hcl", "ready"),
        // The host's own log has the first two, and the last is not a part of the boot.
        StageName::Qemu | StageName::VsmHost | StageName::PowerOff => return None,
    })
}

/// Names are for people: one line, no control characters, not too long.
fn short(name: &str) -> String {
    let mut text: String = name
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(MAX_NAME)
        .collect();
    if name.chars().nth(MAX_NAME).is_some() {
        text.push('…');
    }
    text
}

fn as_ms<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(ms(*duration))
}

impl Clock {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }
}

impl fmt::Display for BootTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} {:>9}  {:<15} milestone", "ms", "+ms", "process")?;
        let mut before = Duration::ZERO;
        for milestone in &self.milestones {
            writeln!(
                f,
                "{:>10.3} {:>9.3}  {:<15} {}",
                ms(milestone.at),
                ms(milestone.at - before),
                milestone.process,
                milestone.name
            )?;
            before = milestone.at;
        }
        if self.dropped != 0 {
            writeln!(f, "({} more)", self.dropped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use qemu::Stage;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    pub(crate) fn stamp(process: &str, name: &str, ms: u64) -> Stamp {
        Stamp {
            process: process.to_owned(),
            name: name.to_owned(),
            after_zero: at(ms),
        }
    }

    fn stages() -> Timeline {
        let mut start = Duration::ZERO;
        let ends = [
            (StageName::Qemu, 143),
            (StageName::VsmHost, 175),
            (StageName::OpenhclBoot, 194),
            (StageName::Linux, 1085),
            (StageName::Usermode, 1187),
        ];
        let stages = ends.map(|(name, end)| {
            let stage = Stage {
                name,
                start,
                end: at(end),
            };
            start = stage.end;
            stage
        });
        Timeline {
            stages: stages.into(),
        }
    }

    /// The first line needs 3 ms to here, the second one: the partition began at 140 ms.
    fn host() -> Vec<Line> {
        let line = |ms, text: &str| Line {
            at: at(ms),
            text: text.to_owned(),
        };
        vec![
            line(143, "[    0.000 ms] vsm_host: 0.1.0 started"),
            line(160, "[   20.000 ms] vsm_host: image loaded"),
            line(160, "  something else"),
            line(175, "[   34.500 ms] vsm_host: VP 0 enters VTL2"),
            line(900, "[  759.000 ms] vsm_host: of later"),
        ]
    }

    /// A boot with these stamps.
    pub(crate) fn boot(stamps: Vec<Stamp>) -> BootTimeline {
        BootTimeline::join(&stages(), &host(), Zero::Partition, stamps)
    }

    fn shown(timeline: &BootTimeline) -> Vec<(&str, u128)> {
        let rows = timeline.milestones.iter();
        rows.map(|m| (m.process.as_str(), m.at.as_micros()))
            .collect()
    }

    #[test]
    fn the_machines_stamps_are_moved_to_the_clock_of_qemus_start() {
        let stamps = vec![
            stamp("underhill_vm", "ready", 1020),
            stamp("openhcl_boot", "entry", 35),
        ];
        let mut timeline = boot(stamps);
        timeline.add("ohcldiag", "ping answered", at(1250));

        assert_eq!(
            shown(&timeline),
            [
                ("qemu", 0),
                ("vsm_host", 140_000),
                ("vsm_host", 160_000),
                ("vsm_host", 174_500),
                ("openhcl_boot", 175_000),
                ("underhill_vm", 1_160_000),
                ("ohcldiag", 1_250_000),
            ]
        );
        assert_eq!(timeline.end(), at(1250));
        assert_eq!(timeline.processes()[1], "vsm_host");
    }

    #[test]
    fn stamps_may_be_counted_from_the_kernels_start() {
        let stamps = vec![stamp("underhill_vm", "ready", 1000)];
        let timeline = BootTimeline::join(&stages(), &host(), Zero::Kernel, stamps);
        assert_eq!(shown(&timeline)[4], ("underhill_vm", 1_194_000));
    }

    #[test]
    fn a_machine_that_stamps_nothing_is_shown_by_its_consoles() {
        let timeline = boot(Vec::new());
        assert_eq!(
            shown(&timeline)[4..],
            [
                ("openhcl_boot", 194_000),
                ("underhill_init", 1_085_000),
                ("openvmm_hcl", 1_187_000),
            ]
        );
        // Nothing ties these stamps to anything.
        let stray = vec![stamp("a", "b", 1)];
        let timeline = BootTimeline::join(&Timeline::default(), &[], Zero::Partition, stray);
        assert_eq!(shown(&timeline), [("qemu", 0)]);
    }

    #[test]
    fn only_the_hosts_own_stamps_are_read() {
        for line in [
            "vsm_host: x",
            "[ ms] vsm_host: x",
            "[1.5 ms] vsm_host: x",
            "[-1.500 ms] vsm_host: x",
            "[+1.500 ms] vsm_host: x",
            "[99999999999999999999.000 ms] vsm_host: x",
            "[18446744073709551.616 ms] vsm_host: x",
            "[1.000 ms] openhcl_boot: x",
        ] {
            assert_eq!(host_stamp(line), None, "{line}");
        }
        let read = host_stamp("[ 1146.713 ms] vsm_host: VTL2 powers off");
        assert_eq!(
            read,
            Some((Duration::from_micros(1_146_713), "VTL2 powers off"))
        );
    }

    #[test]
    fn text_and_json_have_every_milestone_with_its_time() {
        let timeline = boot(vec![stamp("linux", "start_kernel", 55)]);
        let text = timeline.to_string();
        assert!(
            text.contains("   195.000    20.500  linux           start_kernel\n"),
            "{text}"
        );
        let json = serde_json::to_value(&timeline).unwrap();
        assert_eq!(
            json["milestones"][4],
            serde_json::json!({
                "process": "linux", "name": "start_kernel", "ms": 195.0, "clock": "guest",
            })
        );
    }

    #[test]
    fn a_machine_cannot_flood_the_timeline() {
        let long = "x\n".repeat(1000);
        let timeline = boot(vec![stamp("p", &long, 1); 10_000]);
        assert_eq!(timeline.milestones.len(), MAX_MILESTONES + 4);
        assert_eq!(timeline.dropped, 10_000 - MAX_MILESTONES);
        let text = timeline.to_string();
        assert_eq!(text.lines().count(), 1 + MAX_MILESTONES + 4 + 1);
        assert!(text.len() < 200 * 1024, "{} bytes", text.len());
    }

    #[test]
    fn a_stamp_of_the_end_of_time_does_no_harm() {
        let mut far = stamp("p", "far", 0);
        far.after_zero = Duration::from_nanos(u64::MAX);
        let timeline = boot(vec![far]);
        assert!(!timeline.to_html("t").is_empty());
        assert!(!timeline.to_string().is_empty());
    }
}
