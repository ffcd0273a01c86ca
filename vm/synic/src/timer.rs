//! Synthetic timers: TLFS "Timers". Times are reference times.

use hv_defs::synic::TimerConfig;
use vapic::MsrError;

/// The shortest time between two expirations of a periodic timer, in 100 ns: a guest
/// cannot keep the host busy. A shorter period is served at this pace.
pub const SHORTEST_PERIOD: u64 = 1_000;
/// Periods that a timer that is not lazy catches up on; more are lost.
const MOST_BEHIND: u64 = 8;

/// An expiration whose message has not been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Undelivered {
    /// See `messages::Waiting::order`.
    pub(crate) order: u64,
    pub(crate) expired_at: u64,
}

/// A synthetic timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Timer {
    pub(crate) config: TimerConfig,
    pub(crate) count: u64,
    /// When it expires next.
    pub(crate) expires: Option<u64>,
    /// A periodic timer does not expire again before.
    pub(crate) rest_until: u64,
    pub(crate) undelivered: Option<Undelivered>,
}

impl Timer {
    pub(crate) fn write_config(&mut self, msr: u32, value: u64, now: u64) -> Result<(), MsrError> {
        if value & TimerConfig::RESERVED != 0 {
            return Err(MsrError::new(msr, Some(value), "reserved bits to be zero"));
        }
        self.config = TimerConfig::from_bits(value);
        self.restart(now);
        Ok(())
    }

    pub(crate) fn write_count(&mut self, count: u64, now: u64) {
        self.count = count;
        let enabled = count != 0 && (self.config.enabled() || self.config.auto_enable());
        self.config.set_enabled(enabled);
        self.restart(now);
    }

    /// Begins anew; what was not delivered is void.
    fn restart(&mut self, now: u64) {
        if !self.config.direct() && self.config.sint() == 0 {
            self.config.set_enabled(false);
        }
        self.undelivered = None;
        self.rest_until = 0;
        self.expires = (self.config.enabled() && self.count != 0).then(|| {
            if self.config.periodic() {
                now.saturating_add(self.count)
            } else {
                self.count
            }
        });
    }

    /// When it has expired, if it has since it was last asked. At most one expiration at a
    /// time, and none while the message of the last one waits.
    pub(crate) fn poll(&mut self, now: u64) -> Option<u64> {
        let expires = self.expires.filter(|expires| *expires <= now)?;
        if self.undelivered.is_some() {
            return None;
        }
        if !self.config.periodic() {
            self.expires = None;
            self.config.set_enabled(false);
            return Some(expires);
        }
        if now < self.rest_until {
            return None;
        }
        // Not zero: a timer with a count of zero does not run.
        let period = self.count.max(1);
        let missed = (now - expires) / period;
        let skipped = if self.config.lazy() {
            missed
        } else {
            missed.saturating_sub(MOST_BEHIND)
        };
        let expired_at = expires + skipped * period;
        let next = expired_at.saturating_add(period);
        self.expires = Some(next);
        if self.config.lazy() && now != expired_at && next.saturating_sub(now) <= period / 8 {
            // Shortly before the next one is due.
            return None;
        }
        // While it catches up its period is half as long.
        self.rest_until = now.saturating_add((period / 2).max(SHORTEST_PERIOD));
        Some(expired_at)
    }

    /// When to poll next. While a message waits there is nothing to do.
    pub(crate) fn next(&self) -> Option<u64> {
        let expires = self.expires.filter(|_| self.undelivered.is_none())?;
        Some(if self.config.periodic() {
            expires.max(self.rest_until)
        } else {
            expires
        })
    }
}
