//! What this process has sent and received.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// Counts since the process started, of all channels to other processes together. Messages
/// inside the process are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Packets sent: messages, answers and cancellations.
    pub packets_sent: u64,
    /// Bytes of what was sent, large messages whole.
    pub bytes_sent: u64,
    /// Packets received, broken ones included.
    pub packets_received: u64,
    /// Bytes of what was received in packets; what came through memory is not counted.
    pub bytes_received: u64,
    /// Messages of both directions that went through memory.
    pub large_messages: u64,
    /// Times that a packet did not fit into the peer's queue.
    pub queue_full: u64,
    /// Calls made to other processes.
    pub calls: u64,
    /// Packets and messages that broke the rules.
    pub refused: u64,
}

pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Counters {
    pub(crate) packets_sent: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) packets_received: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) large_messages: Counter,
    pub(crate) queue_full: Counter,
    pub(crate) calls: Counter,
    pub(crate) refused: Counter,
}

pub(crate) static COUNTERS: Counters = Counters {
    packets_sent: Counter::new(),
    bytes_sent: Counter::new(),
    packets_received: Counter::new(),
    bytes_received: Counter::new(),
    large_messages: Counter::new(),
    queue_full: Counter::new(),
    calls: Counter::new(),
    refused: Counter::new(),
};

/// The counts of this process.
pub fn stats() -> Stats {
    Stats {
        packets_sent: COUNTERS.packets_sent.get(),
        bytes_sent: COUNTERS.bytes_sent.get(),
        packets_received: COUNTERS.packets_received.get(),
        bytes_received: COUNTERS.bytes_received.get(),
        large_messages: COUNTERS.large_messages.get(),
        queue_full: COUNTERS.queue_full.get(),
        calls: COUNTERS.calls.get(),
        refused: COUNTERS.refused.get(),
    }
}
