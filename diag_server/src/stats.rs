//! What the server has done and holds, for inspection.

use inspect::Format;
use inspect::Inspect;
use inspect::Request;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// What the server has done and holds. Made by the caller of [`serve`](crate::serve), who
/// can show it among its live state.
#[derive(Debug, Default, Inspect)]
#[inspect(safe)]
pub struct ServerStats {
    /// Control connections now.
    pub control_connections: Gauge,
    /// Control connections that were closed because there were too many.
    pub control_connections_refused: Counter,
    /// Data connections now, idle or in use.
    pub data_connections: Gauge,
    /// Data connections that were closed because there were too many.
    pub data_connections_refused: Counter,
    /// Data connections that no request has named in time.
    pub data_connections_evicted: Counter,
    /// Requests being carried out, or whose answer is being delivered.
    pub requests: Gauge,
    /// Bytes of messages that are being received or carried out.
    #[inspect(unit = "bytes")]
    pub request_bytes: Gauge,
    /// Requests answered with success.
    pub succeeded: Counter,
    /// Requests answered with an error.
    pub failed: Counter,
    /// Messages over the limit, which were passed over.
    pub oversized_messages: Counter,
    /// Frames that are neither requests nor data, which were ignored.
    pub ignored_frames: Counter,
    /// Connections that ended within a message.
    pub truncated_messages: Counter,
    /// Connections closed because their peer sent or read too slowly.
    pub stalled_connections: Counter,
    /// Processes of clients that run.
    pub processes: Gauge,
    /// Records of the kernel's log that were overwritten before a client had read them.
    pub lost_log_records: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// How many of something there are, and the most there were at once.
///
/// Inspected, it is a directory of the two numbers.
#[derive(Debug, Default)]
pub struct Gauge(Arc<Amounts>);

#[derive(Debug, Default, Inspect)]
#[inspect(safe)]
struct Amounts {
    now: AtomicU64,
    most: AtomicU64,
}

impl Gauge {
    /// How many there are.
    pub fn get(&self) -> u64 {
        self.0.now.load(Relaxed)
    }

    /// The most there were at once.
    pub fn most(&self) -> u64 {
        self.0.most.load(Relaxed)
    }

    /// Adds `amount` until the result is dropped.
    pub(crate) fn hold(&self, amount: u64) -> Held {
        let now = self.0.now.fetch_add(amount, Relaxed) + amount;
        self.0.most.fetch_max(now, Relaxed);
        Held {
            amounts: self.0.clone(),
            amount,
        }
    }
}

impl Inspect for Counter {
    fn inspect(&self, request: Request<'_>) {
        self.0.inspect(request.format(Format::PLAIN.counter()));
    }
}

impl Inspect for Gauge {
    fn inspect(&self, request: Request<'_>) {
        self.0.inspect(request);
    }
}

/// A part of a [`Gauge`].
pub(crate) struct Held {
    amounts: Arc<Amounts>,
    amount: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.amounts.now.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Node;
    use inspect::Query;

    fn at(stats: &ServerStats, path: &str) -> Node {
        Query::new(path).evaluate(stats).now()
    }

    #[test]
    fn gauge_falls_when_what_it_counts_ends() {
        let stats = ServerStats::default();
        let first = stats.request_bytes.hold(1000);
        drop(stats.request_bytes.hold(24));
        drop(first);
        let _second = stats.request_bytes.hold(1);
        let node = at(&stats, "request_bytes").to_string();
        assert_eq!(node, "{now: 1 bytes, most: 1024 bytes}");
    }

    #[test]
    fn counters_are_inspected_as_such() {
        let stats = ServerStats::default();
        stats.succeeded.count();
        let Node::Value(value) = at(&stats, "succeeded") else {
            panic!("expected a value");
        };
        assert!(value.format.counter);
    }
}
