//! Lines of the log that others wait for: see `boot_events`.

use crate::line_limit::Line;
use crate::line_limit::LineLimit;
use boot_events::GUEST_CRASHED_PREFIX;
use boot_events::GUEST_POWERED_OFF;
use boot_events::GUEST_RESET_PREFIX;
use boot_events::GUEST_STOPPED_PREFIX;
use boot_events::PARAVISOR_PREFIX;
use kernel_log::FACILITY_PARAVISOR;
use kernel_log::KernelLog;
use kernel_log::Level;
use std::time::Duration;
use std::time::Instant;
use underhill_core::protocol::GuestEvent;
use underhill_core::protocol::OnGuestCrash;

/// Resets, and crashes, of a guest that are logged at once, and the time after which one more
/// is. A guest that resets itself in a loop does that several times a second.
const GUEST_LINES: u32 = 20;
const GUEST_LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Tells what becomes of the guest, as far as it is not a flood. The count of what was left
/// out stands in the line after that.
#[derive(Debug)]
pub(crate) struct GuestLog {
    resets: LineLimit,
    crashes: LineLimit,
}

impl Default for GuestLog {
    fn default() -> Self {
        let limit = || LineLimit::new(GUEST_LINES, GUEST_LINE_INTERVAL);
        Self {
            resets: limit(),
            crashes: limit(),
        }
    }
}

impl GuestLog {
    /// Logs that `event` has happened, at `now`.
    pub(crate) fn tell(&mut self, event: &GuestEvent, now: Instant) {
        let log = KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX);
        self.tell_to(&log, event, now);
    }

    fn tell_to(&mut self, log: &KernelLog, event: &GuestEvent, now: Instant) {
        let (limit, level, prefix, text) = match event {
            GuestEvent::Reset { source, count } => {
                let text = format!("{source}, reset {count}");
                (
                    Some(&mut self.resets),
                    Level::Info,
                    GUEST_RESET_PREFIX,
                    text,
                )
            }
            GuestEvent::Crashed { report, action } => {
                // One that is not followed by another start is the last one.
                let again = *action == OnGuestCrash::Reset;
                let limit = again.then_some(&mut self.crashes);
                (
                    limit,
                    Level::Error,
                    GUEST_CRASHED_PREFIX,
                    first_line(report),
                )
            }
            GuestEvent::PoweredOff => (None, Level::Info, GUEST_POWERED_OFF, String::new()),
            GuestEvent::Stopped { report } => {
                let text = first_line(report);
                (None, Level::Error, GUEST_STOPPED_PREFIX, text)
            }
        };
        let verdict = limit.map_or(Line::Passes { dropped: 0 }, |limit| limit.line(now));
        let Line::Passes { dropped } = verdict else {
            return;
        };
        if dropped > 0 {
            log.warning(&format!(
                "{dropped} lines about the guest were left out here"
            ));
        }
        log_event(log, level, prefix, &text);
    }
}

/// The worker has logged all of the report.
fn first_line(report: &str) -> String {
    report.lines().next().unwrap_or_default().to_owned()
}

/// Logs a line that others wait for, whatever the filter of the log is.
pub(crate) fn event(level: Level, prefix: &'static str, text: &str) {
    let log = KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX);
    log_event(&log, level, prefix, text);
}

/// The text may quote a worker or its guest: it stays one line, or what it quotes could be
/// a line of ours.
fn log_event(log: &KernelLog, level: Level, prefix: &'static str, text: &str) {
    let text = inspect::printable(text);
    log.write(level, &format!("{}{text}", crate::own(prefix)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use boot_events::Event;
    use boot_events::KERNEL_LOG_RECORD_MAX;
    use boot_events::WORKER_DIED_PREFIX;

    #[test]
    fn what_an_event_quotes_cannot_become_a_line_of_its_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = KernelLog::open_at(file.path(), FACILITY_PARAVISOR, PARAVISOR_PREFIX);
        // Where the record ends, "ready" begins.
        let long = KERNEL_LOG_RECORD_MAX - "<27>\n".len() - WORKER_DIED_PREFIX.len();
        let long = "x".repeat(long) + "ready";
        for text in ["process 7: no\nready", "no\r\nguest powered off", &long] {
            log_event(&log, Level::Error, WORKER_DIED_PREFIX, text);
        }
        let lines = std::fs::read_to_string(file.path()).unwrap();
        let events = lines.lines().filter(|line| {
            let (_, text) = line.split_once('>').unwrap();
            Event::parse(&format!("[    1.0] {text}")).is_some()
        });
        assert_eq!(events.count(), 3, "{lines}");
    }
    #[test]
    fn a_guest_that_resets_itself_without_end_does_not_fill_the_log() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = KernelLog::open_at(file.path(), FACILITY_PARAVISOR, PARAVISOR_PREFIX);
        let mut guest = GuestLog::default();
        let now = Instant::now();
        let report = "VP 0: triple fault\nrip 0".to_owned();
        for count in 1..=1000 {
            let crashed = GuestEvent::Crashed {
                report: report.clone(),
                action: OnGuestCrash::Reset,
            };
            let source = "crash".to_owned();
            guest.tell_to(&log, &crashed, now);
            guest.tell_to(&log, &GuestEvent::Reset { source, count }, now);
        }
        let crashed = GuestEvent::Crashed {
            report,
            action: OnGuestCrash::Halt,
        };
        guest.tell_to(&log, &crashed, now);
        guest.tell_to(&log, &GuestEvent::PoweredOff, now);
        let source = "port 0xcf9".to_owned();
        let later = now + GUEST_LINE_INTERVAL;
        let again = GuestEvent::Reset { source, count: 1 };
        guest.tell_to(&log, &again, later);

        let lines = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<_> = lines.lines().collect();
        let burst = 2 * GUEST_LINES as usize;
        assert_eq!(
            lines[burst..],
            [
                "<27>openvmm_hcl: guest crashed: VP 0: triple fault",
                "<30>openvmm_hcl: guest powered off",
                "<28>openvmm_hcl: 980 lines about the guest were left out here",
                "<30>openvmm_hcl: guest reset: port 0xcf9, reset 1",
            ]
        );
    }
}
