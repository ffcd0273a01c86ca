//! `tracing` events become records of the kernel's log.
//!
//! One event is one record: a text that is longer is cut, line feeds are escaped. Spans
//! are ignored: nothing here is nested deeply enough to need them, and a subscriber that
//! stores them would grow with what outsiders do.

use crate::KernelLog;
use crate::Level;
use crate::filter::Filter;
use std::fmt;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::RwLock;
use tracing::Event;
use tracing::Metadata;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::subscriber::SetGlobalDefaultError;

/// Stands at the end of a text that was cut.
const CUT: &str = "…";

/// The filter of a running subscriber, which may change.
#[derive(Debug, Clone)]
pub struct FilterHandle(Arc<RwLock<Filter>>);

impl FilterHandle {
    /// The filter that counts now.
    pub fn get(&self) -> Filter {
        // A filter is replaced as a whole: it is valid even if a thread died meanwhile.
        match self.0.read() {
            Ok(filter) => filter.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        }
    }

    /// Puts another filter into its place.
    pub fn set(&self, filter: Filter) {
        match self.0.write() {
            Ok(mut current) => *current = filter,
            Err(poisoned) => *poisoned.into_inner() = filter,
        }
        tracing::callsite::rebuild_interest_cache();
    }

    fn with<T>(&self, read: impl FnOnce(&Filter) -> T) -> T {
        match self.0.read() {
            Ok(filter) => read(&filter),
            Err(poisoned) => read(&poisoned.into_inner()),
        }
    }
}

/// Sends all events of this process to `log`.
pub fn install(log: KernelLog, filter: Filter) -> Result<FilterHandle, SetGlobalDefaultError> {
    let filter = FilterHandle(Arc::new(RwLock::new(filter)));
    tracing::subscriber::set_global_default(KernelLogSubscriber {
        log,
        filter: filter.clone(),
    })?;
    Ok(filter)
}

struct KernelLogSubscriber {
    log: KernelLog,
    filter: FilterHandle,
}

impl Subscriber for KernelLogSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_span() || !self.enabled(metadata) {
            Interest::never()
        } else {
            Interest::always()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.with(|filter| filter.passes(metadata))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter.with(Filter::most_verbose))
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = Line::new(self.log.record_capacity());
        line.speaker(metadata.target(), self.log.prefix());
        event.record(&mut line);
        self.log.write(level(*metadata.level()), &line.finish());
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

fn level(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

/// A line under construction: the message, then ` name=value` for each field.
struct Line {
    message: String,
    fields: String,
    capacity: usize,
}

impl Line {
    fn new(capacity: usize) -> Self {
        Self {
            message: String::new(),
            fields: String::new(),
            capacity,
        }
    }

    /// Names the crate that speaks, unless the log's prefix already does.
    fn speaker(&mut self, target: &str, prefix: &str) {
        let name = target.split("::").next().unwrap_or(target);
        if !prefix.starts_with(name) {
            self.message = format!("{name}: ");
        }
    }

    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let (text, name) = match field.name() {
            "message" => (&mut self.message, None),
            name => (&mut self.fields, Some(name)),
        };
        let mut text = Limited {
            text,
            capacity: self.capacity,
        };
        // The only error is that there is no more room, which `finish` shows.
        let _ = match name {
            Some(name) => write!(text, " {name}={value}"),
            None => text.write_fmt(value),
        };
    }

    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        if self.message.len() > self.capacity {
            let room = self.capacity.saturating_sub(CUT.len());
            let end = self.message.floor_char_boundary(room);
            self.message.truncate(end);
            self.message.push_str(CUT);
        }
        self.message
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, format_args!("{}", crate::chain(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

/// Keeps a text from growing without end, and on one line.
struct Limited<'a> {
    text: &'a mut String,
    capacity: usize,
}

impl Write for Limited<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for c in part.chars() {
            if self.text.len() > self.capacity {
                return Err(fmt::Error);
            }
            if c.is_control() {
                write!(self.text, "{}", c.escape_default())?;
            } else {
                self.text.push(c);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FACILITY_PARAVISOR;
    use std::path::Path;

    fn logged(filter: &str, events: impl FnOnce()) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = KernelLog::open_at(file.path(), FACILITY_PARAVISOR, "kernel_log: ");
        let subscriber = KernelLogSubscriber {
            log,
            filter: FilterHandle(Arc::new(RwLock::new(filter.parse().unwrap()))),
        };
        tracing::subscriber::with_default(subscriber, events);
        lines(file.path())
    }

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn an_event_is_one_record_with_its_fields() {
        let lines = logged("info", || {
            tracing::info!(pid = 7, name = "vm", "started");
            tracing::debug!("not of interest");
            tracing::warn!(target: "mesh::channel", "closed");
        });
        assert_eq!(
            lines,
            [
                "<30>kernel_log: started pid=7 name=vm",
                "<28>kernel_log: mesh: closed",
            ]
        );
    }

    #[test]
    fn an_error_is_shown_with_its_causes_on_one_line() {
        let error = std::io::Error::other("one\ntwo");
        let lines = logged("info", || {
            tracing::error!(
                error = &error as &(dyn std::error::Error + 'static),
                "failed"
            );
        });
        assert_eq!(lines, ["<27>kernel_log: failed error=one\\ntwo"]);
    }

    #[test]
    fn an_endless_text_is_cut_to_one_record() {
        let lines = logged("info", || {
            tracing::info!(tail = 1, "{}", "é\n".repeat(5000))
        });
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with(CUT) && lines[0].len() < boot_events::KERNEL_LOG_RECORD_MAX);
    }

    #[test]
    fn a_span_costs_nothing_and_its_events_pass() {
        let lines = logged("debug", || {
            let _span = tracing::info_span!("span", a = 1).entered();
            tracing::debug!("inside");
        });
        assert_eq!(lines, ["<31>kernel_log: inside"]);
    }
}
