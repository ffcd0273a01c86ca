//! What is done about a worker that has died. Time comes from outside, so every path is
//! tested without it.

use openhcl_config::OnCrash;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

/// The policy and what it remembers.
#[derive(Debug)]
pub struct Policy {
    on_crash: OnCrash,
    max_restarts: usize,
    window: Duration,
    /// Times of the restarts within the window, the oldest first.
    restarts: VecDeque<Instant>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Start another one; the number of restarts within the window, this one included.
    Restart {
        /// Which restart it is.
        number: usize,
    },
    /// Leave it at that.
    GiveUp {
        /// Why.
        reason: String,
    },
}

impl Policy {
    /// The policy of a configuration.
    pub fn new(worker: &openhcl_config::Worker) -> Self {
        Self {
            on_crash: *worker.on_crash,
            max_restarts: usize::try_from(*worker.max_restarts).unwrap_or(usize::MAX),
            window: *worker.restart_window,
            restarts: VecDeque::new(),
        }
    }

    /// A worker has died although nobody asked it to.
    pub fn died(&mut self, now: Instant) -> Verdict {
        if self.on_crash == OnCrash::Stop {
            return Verdict::GiveUp {
                reason: "the configuration says so (worker.on_crash)".to_owned(),
            };
        }
        let window = self.window;
        self.restarts
            .retain(|restart| now.saturating_duration_since(*restart) < window);
        if self.restarts.len() >= self.max_restarts {
            return Verdict::GiveUp {
                reason: format!(
                    "{} restarts within {} ms are all that the configuration allows",
                    self.max_restarts,
                    self.window.as_millis()
                ),
            };
        }
        self.restarts.push_back(now);
        Verdict::Restart {
            number: self.restarts.len(),
        }
    }

    /// Somebody who knows better starts a worker: what was before is forgotten.
    pub fn reset(&mut self) {
        self.restarts.clear();
    }

    /// Restarts that the window still holds.
    pub fn restarts_in_window(&self, now: Instant) -> usize {
        self.restarts
            .iter()
            .filter(|restart| now.saturating_duration_since(**restart) < self.window)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn policy(on_crash: OnCrash, max_restarts: usize) -> Policy {
        Policy {
            on_crash,
            max_restarts,
            window: WINDOW,
            restarts: VecDeque::new(),
        }
    }

    #[test]
    fn a_worker_is_restarted_until_the_budget_is_spent() {
        let mut policy = policy(OnCrash::Restart, 2);
        let now = Instant::now();
        assert_eq!(policy.died(now), Verdict::Restart { number: 1 });
        assert_eq!(policy.died(now), Verdict::Restart { number: 2 });
        assert_eq!(
            policy.died(now),
            Verdict::GiveUp {
                reason: "2 restarts within 60000 ms are all that the configuration allows"
                    .to_owned()
            }
        );
        assert_eq!(policy.restarts_in_window(now), 2);
    }

    #[test]
    fn restarts_long_ago_are_forgotten() {
        let mut policy = policy(OnCrash::Restart, 1);
        let now = Instant::now();
        assert_eq!(policy.died(now), Verdict::Restart { number: 1 });
        assert!(matches!(
            policy.died(now + WINDOW - Duration::from_millis(1)),
            Verdict::GiveUp { .. }
        ));
        assert_eq!(policy.died(now + WINDOW), Verdict::Restart { number: 1 });
    }

    #[test]
    fn a_budget_of_nothing_restarts_nothing() {
        let mut policy = policy(OnCrash::Restart, 0);
        assert!(matches!(
            policy.died(Instant::now()),
            Verdict::GiveUp { .. }
        ));
    }

    #[test]
    fn the_configuration_may_forbid_restarts() {
        let mut policy = policy(OnCrash::Stop, 5);
        assert_eq!(
            policy.died(Instant::now()),
            Verdict::GiveUp {
                reason: "the configuration says so (worker.on_crash)".to_owned()
            }
        );
    }

    #[test]
    fn a_start_by_hand_renews_the_budget() {
        let mut policy = policy(OnCrash::Restart, 1);
        let now = Instant::now();
        policy.died(now);
        policy.reset();
        assert_eq!(policy.died(now), Verdict::Restart { number: 1 });
    }
}
