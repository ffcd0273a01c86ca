//! Keeps a process that talks without end from pushing everything else out of the kernel's
//! log. Time comes from outside, so every path is tested without it.

use std::time::Duration;
use std::time::Instant;

/// Lets some lines pass at once, and others at intervals after that.
#[derive(Debug)]
pub struct LineLimit {
    burst: u32,
    interval: Duration,
    /// When nothing will be owed any more; each line owes an interval.
    debt_ends: Option<Instant>,
    dropped: u64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It passes; so many before it did not.
    Passes {
        /// Lines that were dropped since the last one that passed.
        dropped: u64,
    },
    /// It is dropped.
    Dropped,
}

impl LineLimit {
    /// `burst` lines pass at once, then one more after each `interval`.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Self {
            burst,
            interval,
            debt_ends: None,
            dropped: 0,
        }
    }

    /// Decides about a line that comes at `now`.
    pub fn line(&mut self, now: Instant) -> Line {
        let debt_ends = self.debt_ends.map_or(now, |ends| ends.max(now));
        if debt_ends.duration_since(now) >= self.interval * self.burst {
            self.dropped = self.dropped.saturating_add(1);
            return Line::Dropped;
        }
        self.debt_ends = Some(debt_ends + self.interval);
        Line::Passes {
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 100;
    const INTERVAL: Duration = Duration::from_millis(100);

    fn limit() -> LineLimit {
        LineLimit::new(BURST, INTERVAL)
    }

    fn passed(limit: &mut LineLimit, lines: u32, now: Instant) -> u32 {
        let passes = |_: &u32| matches!(limit.line(now), Line::Passes { .. });
        (0..lines).filter(passes).count() as u32
    }

    #[test]
    fn last_words_pass_and_a_flood_does_not() {
        let mut limit = limit();
        let now = Instant::now();
        assert_eq!(passed(&mut limit, BURST, now), BURST);
        assert_eq!(passed(&mut limit, 10_000, now), 0);
    }

    #[test]
    fn what_was_dropped_is_told_once() {
        let mut limit = limit();
        let now = Instant::now();
        passed(&mut limit, BURST + 7, now);
        let later = now + INTERVAL * 2;
        assert_eq!(limit.line(later), Line::Passes { dropped: 7 });
        assert_eq!(limit.line(later), Line::Passes { dropped: 0 });
        assert_eq!(limit.line(later), Line::Dropped);
    }

    #[test]
    fn silence_renews_the_burst() {
        let mut limit = limit();
        let now = Instant::now();
        passed(&mut limit, 10_000, now);
        let later = now + INTERVAL * BURST;
        assert_eq!(passed(&mut limit, 10_000, later), BURST);
    }
}
