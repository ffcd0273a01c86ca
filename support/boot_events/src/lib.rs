//! The log lines that others wait for.
//!
//! Every stage of the boot chain reports its progress as text: the host on QEMU's
//! debug console, the boot shim on COM3 and in its memory log, usermode through the
//! kernel log. Tests, benches and the boot timeline wait for some of these lines, so
//! those lines are an interface. They are declared here once, used by the stage that
//! prints them and by the party that waits for them.
//!
//! * Promises: a constant of this crate appears in its log exactly as written; a
//!   `*_PREFIX` is followed by text whose form the constant's documentation gives.
//! * Refuses: to format or to write anything. It has no dependency and no state, so
//!   that it fits below every stage.
//!
//! A line of a console begins with what its speaker's log puts in front: a time, or a
//! level. [`Event::parse`] takes a line for an event only if the event's text stands right
//! behind that. Whoever speaks may quote others, a crashed guest above all; what is quoted
//! always stands behind the speaker's own words, and so is never taken for an event.

#![no_std]
#![forbid(unsafe_code)]

/// In front of every line of the host; its clock stands before it.
pub const HOST_PREFIX: &str = "vsm_host: ";
/// Ends the host's first line: `vsm_host: <version> started`.
pub const HOST_STARTED_SUFFIX: &str = " started";
/// Last line of the host before VP 0 runs its first instruction in VTL2.
pub const HOST_ENTERS_VTL2: &str = "vsm_host: VP 0 enters VTL2";
/// The same where there is no paravisor.
pub const HOST_ENTERS_GUEST: &str = "vsm_host: VP 0 enters a guest without a paravisor";
/// `vsm_host: image refused: directive 17 (PageData): reason, found X, expected Y`.
pub const HOST_IMAGE_REFUSED_PREFIX: &str = "vsm_host: image refused: ";
/// The host's own failure: `vsm_host: host error: text`.
pub const HOST_ERROR_PREFIX: &str = "vsm_host: host error: ";
/// VTL2 crashed; the decoded cause follows, registers on further lines.
pub const HOST_VTL2_CRASH_PREFIX: &str = "vsm_host: VTL2 crashed: ";
/// VTL2 asked for power-off.
pub const HOST_POWER_OFF: &str = "vsm_host: VTL2 powers off";

/// First line of the boot shim.
pub const SHIM_STARTED: &str = "openhcl_boot: started";
/// Last line of the boot shim: the next instruction belongs to the kernel.
pub const SHIM_STARTS_KERNEL: &str = "openhcl_boot: starting the kernel";
/// The boot shim gives up; the cause follows.
pub const SHIM_PANIC_PREFIX: &str = "openhcl_boot: panic: ";

/// First line of Linux.
pub const KERNEL_STARTED: &str = "Linux version ";
/// The kernel gives up; the cause follows.
pub const KERNEL_PANIC: &str = "Kernel panic - not syncing: ";

/// In front of every line of PID 1.
pub const INIT_PREFIX: &str = "underhill_init: ";
/// First line of PID 1, printed as soon as it can reach the kernel log.
pub const INIT_STARTED: &str = "underhill_init: started";
/// The paravisor is gone: `code N` or `signal N` follows, see [`ParavisorExit`].
pub const PARAVISOR_EXITED_PREFIX: &str = "underhill_init: paravisor exited: ";
/// Last line of PID 1 before it ends the machine in an orderly way.
pub const INIT_POWERING_OFF: &str = "underhill_init: powering off";

/// In front of every line of the paravisor process.
pub const PARAVISOR_PREFIX: &str = "openvmm_hcl: ";
/// First line of the paravisor process.
pub const PARAVISOR_STARTED: &str = "openvmm_hcl: started";
/// The machine as the paravisor sees it; one JSON object follows.
pub const TOPOLOGY_PREFIX: &str = "openvmm_hcl: topology ";
/// Memory use of VTL2 in bytes; one JSON object follows.
pub const MEMORY_PREFIX: &str = "openvmm_hcl: memory ";
/// A line of the boot shim's memory log, repeated by the paravisor.
pub const SHIM_LOG_PREFIX: &str = "openvmm_hcl: bootshim: ";
/// A value that somebody has configured: `path = value (source)` follows.
pub const CONFIG_PREFIX: &str = "openvmm_hcl: configured: ";
/// Diagnostics are answered on vsock, although the rest of the start may still go on.
pub const DIAG_READY: &str = "openvmm_hcl: diagnostics ready";
/// The VM worker is ready; its process id follows.
pub const WORKER_READY_PREFIX: &str = "openvmm_hcl: VM worker ready: process ";
/// The VM worker has died although nobody had asked it to: `process N: cause` follows.
pub const WORKER_DIED_PREFIX: &str = "openvmm_hcl: VM worker died: ";
/// The guest has started anew: how that was asked for, and how often it was, follow.
pub const GUEST_RESET_PREFIX: &str = "openvmm_hcl: guest reset: ";
/// The guest has switched itself off. The machine follows.
pub const GUEST_POWERED_OFF: &str = "openvmm_hcl: guest powered off";
/// The guest has crashed; the cause follows. Registers are in the worker's lines before.
pub const GUEST_CRASHED_PREFIX: &str = "openvmm_hcl: guest crashed: ";
/// The guest cannot go on, or could not be started; the cause follows.
pub const GUEST_STOPPED_PREFIX: &str = "openvmm_hcl: guest stopped: ";
/// The paravisor has finished its start.
pub const READY: &str = "openvmm_hcl: ready";

/// First line of our initrd in the guest, on its console; its uptime follows.
pub const GUEST_STARTED: &str = "guest: init started";
/// The guest has told what it was asked for.
pub const GUEST_TOUR_ENDED: &str = "guest: tour ended";

/// Bytes that one record of the kernel log may have, as the kernel's own limit for a
/// write to `/dev/kmsg` (`PRINTKRB_RECORD_MAX`, 1024, terminator included).
pub const KERNEL_LOG_RECORD_MAX: usize = 1023;

/// How the paravisor process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParavisorExit {
    /// It returned this exit code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ParavisorExit {
    /// Reads what follows [`PARAVISOR_EXITED_PREFIX`].
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, number) = text.trim_end().split_once(' ')?;
        let number = number.parse().ok()?;
        match kind {
            "code" => Some(Self::Code(number)),
            "signal" => Some(Self::Signal(number)),
            _ => None,
        }
    }
}

impl core::fmt::Display for ParavisorExit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A line of some log that has a meaning for a waiting party.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The host runs; the text is its version.
    HostStarted(&'a str),
    /// VP 0 enters VTL2 for the first time.
    HostEntersVtl2,
    /// The host refuses the image; the text says which directive and why.
    HostImageRefused(&'a str),
    /// The host itself failed.
    HostError(&'a str),
    /// VTL2 crashed; the text is the decoded cause.
    Vtl2Crashed(&'a str),
    /// VTL2 asked for power-off.
    HostPowerOff,
    /// The boot shim runs.
    ShimStarted,
    /// The boot shim hands over to the kernel.
    ShimStartsKernel,
    /// The boot shim gave up.
    ShimPanic(&'a str),
    /// Linux runs; the text is its version line.
    KernelStarted(&'a str),
    /// Linux gave up.
    KernelPanic(&'a str),
    /// PID 1 runs.
    InitStarted,
    /// The paravisor process ended.
    ParavisorExited(ParavisorExit),
    /// PID 1 ends the machine.
    InitPoweringOff,
    /// The paravisor process runs.
    ParavisorStarted,
    /// The machine as the paravisor sees it, as JSON.
    Topology(&'a str),
    /// Memory use of VTL2, as JSON.
    Memory(&'a str),
    /// The diagnostics answer.
    DiagReady,
    /// The VM worker is ready; the text is its process id.
    WorkerReady(&'a str),
    /// The VM worker has died; the text says which process and why.
    WorkerDied(&'a str),
    /// The guest has started anew; the text says why and how often.
    GuestReset(&'a str),
    /// The guest has switched itself off.
    GuestPoweredOff,
    /// The guest has crashed; the text is the cause.
    GuestCrashed(&'a str),
    /// The guest cannot go on, or could not be started; the text is the cause.
    GuestStopped(&'a str),
    /// The paravisor has finished its start.
    Ready,
}

/// Whose log a line is of, as what stands in front of it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    /// `[   12.345 ms] `
    Host,
    /// `[INFO] `
    Shim,
    /// `[    0.012345] `: the kernel's own lines, and those of usermode.
    Kernel,
}

impl Log {
    /// Splits a line behind what the log puts in front, which is the first of its kind: each
    /// line of a log has one, so what is quoted stands behind it. Before it there may be the
    /// prompt of a shell on the same console.
    fn split(line: &str) -> Option<(Self, &str)> {
        line.match_indices('[')
            .find_map(|(at, _)| Self::split_front(&line[at + 1..]))
    }

    fn split_front(line: &str) -> Option<(Self, &str)> {
        let (front, text) = line.split_once("] ")?;
        let log = if let Some(ms) = front.strip_suffix(" ms") {
            is_time(ms).then_some(Self::Host)
        } else if is_time(front) {
            Some(Self::Kernel)
        } else {
            let level = !front.is_empty() && front.bytes().all(|b| b.is_ascii_uppercase());
            level.then_some(Self::Shim)
        };
        Some((log?, text))
    }
}

/// Digits with a point among them, which are moved to the right.
fn is_time(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts = text.trim_start_matches(' ').split_once('.');
    parts.is_some_and(|(whole, rest)| digits(whole) && digits(rest))
}

impl<'a> Event<'a> {
    /// The event that `line` of a console reports.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (log, text) = Log::split(line)?;
        let text = Text(text.trim_end());
        match log {
            Log::Host => Self::of_host(text),
            Log::Shim => Self::of_shim(text),
            Log::Kernel => Self::of_kernel(text).or_else(|| Self::of_usermode(text)),
        }
    }

    fn of_host(text: Text<'a>) -> Option<Self> {
        if let Some(reason) = text.after(HOST_IMAGE_REFUSED_PREFIX) {
            Some(Self::HostImageRefused(reason))
        } else if let Some(cause) = text.after(HOST_ERROR_PREFIX) {
            Some(Self::HostError(cause))
        } else if let Some(cause) = text.after(HOST_VTL2_CRASH_PREFIX) {
            Some(Self::Vtl2Crashed(cause))
        } else if text.is(HOST_ENTERS_VTL2) {
            Some(Self::HostEntersVtl2)
        } else if text.is(HOST_POWER_OFF) {
            Some(Self::HostPowerOff)
        } else {
            let version = text.after(HOST_PREFIX)?.strip_suffix(HOST_STARTED_SUFFIX)?;
            (!version.contains(' ')).then_some(Self::HostStarted(version))
        }
    }

    fn of_shim(text: Text<'a>) -> Option<Self> {
        if text.is(SHIM_STARTED) {
            Some(Self::ShimStarted)
        } else if text.is(SHIM_STARTS_KERNEL) {
            Some(Self::ShimStartsKernel)
        } else {
            text.after(SHIM_PANIC_PREFIX).map(Self::ShimPanic)
        }
    }

    fn of_kernel(text: Text<'a>) -> Option<Self> {
        match text.after(KERNEL_PANIC) {
            Some(cause) => Some(Self::KernelPanic(cause)),
            None => text.after(KERNEL_STARTED).map(Self::KernelStarted),
        }
    }

    fn of_usermode(text: Text<'a>) -> Option<Self> {
        if text.is(INIT_STARTED) {
            Some(Self::InitStarted)
        } else if let Some(exit) = text.after(PARAVISOR_EXITED_PREFIX) {
            ParavisorExit::parse(exit).map(Self::ParavisorExited)
        } else if text.is(INIT_POWERING_OFF) {
            Some(Self::InitPoweringOff)
        } else if text.is(PARAVISOR_STARTED) {
            Some(Self::ParavisorStarted)
        } else if let Some(json) = text.after(TOPOLOGY_PREFIX) {
            Some(Self::Topology(json))
        } else if let Some(json) = text.after(MEMORY_PREFIX) {
            Some(Self::Memory(json))
        } else if text.is(DIAG_READY) {
            Some(Self::DiagReady)
        } else if let Some(process) = text.after(WORKER_READY_PREFIX) {
            Some(Self::WorkerReady(process))
        } else if let Some(cause) = text.after(WORKER_DIED_PREFIX) {
            Some(Self::WorkerDied(cause))
        } else if let Some(source) = text.after(GUEST_RESET_PREFIX) {
            Some(Self::GuestReset(source))
        } else if text.is(GUEST_POWERED_OFF) {
            Some(Self::GuestPoweredOff)
        } else if let Some(cause) = text.after(GUEST_CRASHED_PREFIX) {
            Some(Self::GuestCrashed(cause))
        } else if let Some(cause) = text.after(GUEST_STOPPED_PREFIX) {
            Some(Self::GuestStopped(cause))
        } else {
            text.is(READY).then_some(Self::Ready)
        }
    }
}

/// What somebody said.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn after(self, prefix: &str) -> Option<&'a str> {
        self.0.strip_prefix(prefix)
    }

    fn is(self, text: &str) -> bool {
        self.0 == text
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::string::ToString;

    #[test]
    fn a_line_is_recognised_behind_the_decoration_of_each_console() {
        assert_eq!(
            Event::parse("[    0.012 ms] vsm_host: 0.1.0 started\r\n"),
            Some(Event::HostStarted("0.1.0"))
        );
        assert_eq!(
            Event::parse("[INFO] openhcl_boot: started"),
            Some(Event::ShimStarted)
        );
        assert_eq!(
            Event::parse("[    0.345678] underhill_init: started\r"),
            Some(Event::InitStarted)
        );
        assert_eq!(
            Event::parse("[    0.4] openvmm_hcl: topology {\"vps\":[1]}\n"),
            Some(Event::Topology("{\"vps\":[1]}"))
        );
    }

    #[test]
    fn what_becomes_of_a_worker_is_told_with_its_process() {
        assert_eq!(
            Event::parse("[ 2.1] openvmm_hcl: VM worker ready: process 40\r"),
            Some(Event::WorkerReady("40"))
        );
        assert_eq!(
            Event::parse(
                "[    3.100000] openvmm_hcl: VM worker died: process 40: signal 9 (SIGKILL)"
            ),
            Some(Event::WorkerDied("process 40: signal 9 (SIGKILL)"))
        );
        assert_eq!(
            Event::parse("[    3.100000] openvmm_hcl: diagnostics ready"),
            Some(Event::DiagReady)
        );
    }

    #[test]
    fn what_becomes_of_the_guest_is_told() {
        assert_eq!(
            Event::parse("[    3.100000] openvmm_hcl: guest reset: port 0xcf9, reset 2\r"),
            Some(Event::GuestReset("port 0xcf9, reset 2"))
        );
        assert_eq!(
            Event::parse("[ 3.1] openvmm_hcl: guest powered off"),
            Some(Event::GuestPoweredOff)
        );
        assert_eq!(
            Event::parse("[    3.100000] openvmm_hcl: guest crashed: VP 1: triple fault"),
            Some(Event::GuestCrashed("VP 1: triple fault"))
        );
        assert_eq!(
            Event::parse("[    3.100000] openvmm_hcl: guest stopped: VP 0: it cannot run"),
            Some(Event::GuestStopped("VP 0: it cannot run"))
        );
    }

    #[test]
    fn a_line_that_only_begins_like_an_event_is_none() {
        assert_eq!(
            Event::parse("[    1.000 ms] vsm_host: VP 0 enters VTL2 again"),
            None
        );
        assert_eq!(
            Event::parse("[    1.000 ms] vsm_host: VP 3 is started"),
            None
        );
        assert_eq!(Event::parse("[    3.100000] openvmm_hcl: readying"), None);
        assert_eq!(Event::parse(""), None);
    }

    #[test]
    fn a_prompt_may_stand_before_a_line_of_the_log() {
        assert_eq!(
            Event::parse("/ # [    3.1] openvmm_hcl: ready\r"),
            Some(Event::Ready)
        );
    }

    #[test]
    fn words_of_others_that_a_speaker_quotes_are_no_event() {
        let quoted = [
            READY,
            GUEST_POWERED_OFF,
            HOST_POWER_OFF,
            SHIM_STARTED,
            KERNEL_PANIC,
        ];
        let fronts = [
            "[    3.1] underhill_vm: ",
            "[    3.1] [    3.1] ",
            "",
            " ",
            "[] ",
            "[x] ",
        ];
        for text in quoted {
            for front in fronts {
                assert_eq!(
                    Event::parse(&std::format!("{front}{text}")),
                    None,
                    "{front}{text}"
                );
            }
        }
        let cause = "VP 0: openvmm_hcl: ready";
        let line = std::format!("[    3.1] {GUEST_CRASHED_PREFIX}{cause}");
        assert_eq!(Event::parse(&line), Some(Event::GuestCrashed(cause)));
    }

    #[test]
    fn an_event_counts_only_in_the_log_of_its_speaker() {
        for line in [
            "[    3.1] vsm_host: VTL2 powers off",
            "[    3.1 ms] openvmm_hcl: ready",
            "[INFO] openvmm_hcl: ready",
            "[    3.1] openhcl_boot: started",
        ] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_refusal_keeps_its_reason() {
        assert_eq!(
            Event::parse("[ 1.000 ms] vsm_host: image refused: directive 17 (PageData): overlap"),
            Some(Event::HostImageRefused("directive 17 (PageData): overlap"))
        );
    }

    #[test]
    fn paravisor_exit_round_trips() {
        for exit in [
            ParavisorExit::Code(0),
            ParavisorExit::Code(101),
            ParavisorExit::Signal(9),
        ] {
            assert_eq!(ParavisorExit::parse(&exit.to_string()), Some(exit));
        }
        assert_eq!(ParavisorExit::parse("code"), None);
        assert_eq!(ParavisorExit::parse("code x"), None);
        assert_eq!(ParavisorExit::parse("core 3"), None);
    }
}
