//! How long each stage of the boot took, from the lines that the stages log.

use crate::Source;
use crate::Vm;
use boot_events::Event;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A stage of the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// QEMU's process starts, its firmware runs and enters the host.
    Qemu,
    /// The bare-metal host, up to VP 0's first instruction in VTL2.
    VsmHost,
    /// The boot shim.
    OpenhclBoot,
    /// Linux, up to the first line of PID 1.
    Linux,
    /// PID 1 and the paravisor's start.
    Usermode,
    /// The orderly end.
    PowerOff,
}

/// A stage and when it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Which.
    pub name: StageName,
    /// Its begin, after the start of QEMU, in milliseconds.
    #[serde(rename = "start_ms", serialize_with = "as_ms")]
    pub start: Duration,
    /// Its end, after the start of QEMU, in milliseconds.
    #[serde(rename = "end_ms", serialize_with = "as_ms")]
    pub end: Duration,
}

/// The stages of a boot, in order. A stage whose last line did not come is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The stages.
    pub stages: Vec<Stage>,
}

impl Timeline {
    /// Reads the stages from the consoles of a machine.
    pub fn of(vm: &Vm) -> Self {
        let mut marks: Vec<(StageName, Duration)> = Vec::new();
        for source in Source::ALL {
            for line in vm.lines(source) {
                let name = Event::parse(&line.text).and_then(|event| ended_stage(source, event));
                // The first line of its kind counts: the kernel's log may repeat.
                if let Some(name) = name
                    && !marks.iter().any(|(known, _)| *known == name)
                {
                    marks.push((name, line.at));
                }
            }
        }
        if let Some(at) = vm.ended_at() {
            marks.push((StageName::PowerOff, at));
        }
        Self::from_marks(&marks)
    }

    fn from_marks(marks: &[(StageName, Duration)]) -> Self {
        let mut start = Duration::ZERO;
        let stages = marks
            .iter()
            .map(|&(name, at)| {
                // Two consoles, two threads: neighbours may be stamped in the wrong order
                // by the time of a thread switch.
                let end = at.max(start);
                let stage = Stage { name, start, end };
                start = end;
                stage
            })
            .collect();
        Self { stages }
    }

    /// When a stage ended, after the start of QEMU.
    pub fn end_of(&self, name: StageName) -> Option<Duration> {
        Some(self.stage(name)?.end)
    }

    /// One of the stages.
    pub fn stage(&self, name: StageName) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

impl Stage {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        self.end.saturating_sub(self.start)
    }
}

impl StageName {
    /// All, in the order of the boot.
    pub const ALL: [Self; 6] = [
        Self::Qemu,
        Self::VsmHost,
        Self::OpenhclBoot,
        Self::Linux,
        Self::Usermode,
        Self::PowerOff,
    ];

    /// Name for people, the same as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::VsmHost => "vsm_host",
            Self::OpenhclBoot => "openhcl_boot",
            Self::Linux => "linux",
            Self::Usermode => "usermode",
            Self::PowerOff => "power_off",
        }
    }

    const fn explanation(self) -> &'static str {
        match self {
            Self::Qemu => "process, firmware, loader",
            Self::VsmHost => "bare-metal host until VTL2 runs",
            Self::OpenhclBoot => "boot shim until the kernel runs",
            Self::Linux => "kernel until PID 1's first line",
            Self::Usermode => "PID 1 and the paravisor until it is ready",
            Self::PowerOff => "until QEMU has ended",
        }
    }
}

/// The stage that a line is the last one of.
fn ended_stage(source: Source, event: Event<'_>) -> Option<StageName> {
    match (source, event) {
        (Source::Host, Event::HostStarted(_)) => Some(StageName::Qemu),
        (Source::Host, Event::HostEntersVtl2) => Some(StageName::VsmHost),
        (Source::Vtl2, Event::ShimStartsKernel) => Some(StageName::OpenhclBoot),
        (Source::Vtl2, Event::InitStarted) => Some(StageName::Linux),
        (Source::Vtl2, Event::Ready) => Some(StageName::Usermode),
        _ => None,
    }
}

fn as_ms<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // Microseconds are more than the stamps can tell.
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14}{:>10}{:>10}", "stage", "ms", "until")?;
        for stage in &self.stages {
            writeln!(
                f,
                "{:<14}{:>10.1}{:>10.1}  {}",
                stage.name.name(),
                stage.duration().as_secs_f64() * 1e3,
                stage.end.as_secs_f64() * 1e3,
                stage.name.explanation(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn stages_join_without_gaps_and_never_run_backwards() {
        let timeline = Timeline::from_marks(&[
            (StageName::Qemu, ms(100)),
            (StageName::VsmHost, ms(160)),
            (StageName::OpenhclBoot, ms(159)),
            (StageName::Linux, ms(400)),
        ]);
        let durations: Vec<_> = timeline.stages.iter().map(Stage::duration).collect();
        assert_eq!(durations, [ms(100), ms(60), ms(0), ms(240)]);
        assert_eq!(timeline.end_of(StageName::Linux), Some(ms(400)));
        assert_eq!(timeline.end_of(StageName::PowerOff), None);
    }

    #[test]
    fn json_names_stages_and_counts_in_milliseconds() {
        let timeline = Timeline::from_marks(&[(StageName::VsmHost, Duration::from_micros(1500))]);
        assert_eq!(
            serde_json::to_string(&timeline).unwrap(),
            r#"{"stages":[{"name":"vsm_host","start_ms":0.0,"end_ms":1.5}]}"#
        );
        for name in StageName::ALL {
            let json = serde_json::to_value(name).unwrap();
            assert_eq!(json, name.name());
        }
    }

    #[test]
    fn a_line_ends_a_stage_only_on_the_console_of_its_speaker() {
        let event = Event::HostEntersVtl2;
        assert_eq!(ended_stage(Source::Host, event), Some(StageName::VsmHost));
        assert_eq!(ended_stage(Source::Vtl2, event), None);
    }
}
