//! Lines of the log that others wait for: see `boot_events`.

use boot_events::PARAVISOR_PREFIX;
use kernel_log::FACILITY_PARAVISOR;
use kernel_log::KernelLog;
use kernel_log::Level;

/// Logs the first line of a report for others to wait for. The worker has logged it all.
pub(crate) fn guest_report(prefix: &'static str, report: &str) {
    let first = report.lines().next().unwrap_or_default();
    event(Level::Error, prefix, first);
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
}
