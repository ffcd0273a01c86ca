//! When the stages of the boot were reached, all on one clock.
//!
//! Stamps have three forms: reference time (the boot shim's, in the device tree), the
//! kernel's time (records of its log, the start of PID 1), and the processor's counter
//! (the processes of the paravisor). [`Clock`] turns all into reference time, which begins
//! with the partition: on `vsm_host`, with the host's first instruction, so that the
//! host's own log has the same clock.
//!
//! The pairs that tie the clocks together are
//!
//! - reference time and counter, read together by the shim;
//! - counter and `CLOCK_BOOTTIME`, read together by this process, twice: from the distance
//!   follows the counter's frequency;
//! - counter and the log's time of this process's first record.
//!
//! A shim that left no counter makes the kernel's start the zero ([`Zero::Kernel`]).

use inspect::Inspect;
use inspect::Request;
use inspect::Unit;
use std::time::Duration;
use underhill_core::clock::Ticks;

/// The most stamps that are kept: a worker that restarts for ever must not fill memory.
const MILESTONES_MAX: usize = 256;

/// Reference time counts in these.
const REFERENCE_UNIT_NS: u64 = 100;

/// A moment that two clocks tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The processor's counter.
    pub ticks: Ticks,
    /// The other clock in nanoseconds.
    pub ns: u64,
}

/// What time zero is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// The begin of the partition.
    Partition,
    /// The kernel's start.
    Kernel,
}

/// Translates between the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// A moment in the clock of the timeline.
    anchor: Pair,
    /// Reads of `CLOCK_BOOTTIME`, the second later than the first.
    boot_time: (Pair, Pair),
    /// What is zero.
    pub zero: Zero,
}

impl Clock {
    /// From the shim's pair, if there is one, and two pairs of `CLOCK_BOOTTIME`.
    pub fn new(shim: Option<Pair>, first: Pair, last: Pair) -> Self {
        let (anchor, zero) = match shim {
            Some(pair) => (pair, Zero::Partition),
            None => (first, Zero::Kernel),
        };
        Self {
            anchor,
            boot_time: (first, last),
            zero,
        }
    }

    /// The counter's frequency in Hz; 1 GHz if the pairs are too close to tell.
    pub fn frequency(&self) -> u64 {
        let (first, last) = self.boot_time;
        let ticks = last.ticks.0.saturating_sub(first.ticks.0);
        let ns = last.ns.saturating_sub(first.ns);
        if ticks == 0 || ns == 0 {
            return 1_000_000_000;
        }
        saturated(u128::from(ticks) * 1_000_000_000 / u128::from(ns)).max(1)
    }

    /// Time of a value of the counter, in nanoseconds; what was before zero is zero.
    pub fn ns(&self, ticks: Ticks) -> u64 {
        let distance = self.ticks_to_ns(ticks.0.abs_diff(self.anchor.ticks.0));
        if ticks >= self.anchor.ticks {
            self.anchor.ns.saturating_add(distance)
        } else {
            self.anchor.ns.saturating_sub(distance)
        }
    }

    /// The counter at a time; what was before the counter's zero is zero.
    pub fn ticks(&self, ns: u64) -> Ticks {
        let distance = self.ns_to_ticks(ns.abs_diff(self.anchor.ns));
        Ticks(if ns >= self.anchor.ns {
            self.anchor.ticks.0.saturating_add(distance)
        } else {
            self.anchor.ticks.0.saturating_sub(distance)
        })
    }

    /// The counter at a moment of another clock, which `pair` ties to it.
    pub fn ticks_of(&self, pair: Pair, ns: u64) -> Ticks {
        let distance = self.ns_to_ticks(ns.abs_diff(pair.ns));
        Ticks(if ns >= pair.ns {
            pair.ticks.0.saturating_add(distance)
        } else {
            pair.ticks.0.saturating_sub(distance)
        })
    }

    fn ticks_to_ns(&self, ticks: u64) -> u64 {
        saturated(u128::from(ticks) * 1_000_000_000 / u128::from(self.frequency()))
    }

    fn ns_to_ticks(&self, ns: u64) -> u64 {
        saturated(u128::from(ns) * u128::from(self.frequency()) / 1_000_000_000)
    }
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Reads counter and `CLOCK_BOOTTIME` together.
pub fn boot_time_now() -> nix::Result<Pair> {
    let time = nix::time::ClockId::CLOCK_BOOTTIME.now()?;
    Ok(Pair {
        ticks: Ticks::now(),
        ns: saturated(Duration::from(time).as_nanos()),
    })
}

/// Nanoseconds of the shim's time; the device tree is not trusted to fit.
pub fn reference_ns(reference_time: u64) -> u64 {
    reference_time.saturating_mul(REFERENCE_UNIT_NS)
}

/// A moment of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Inspect)]
pub struct Milestone {
    /// What had been reached.
    pub name: String,
    /// Who reached it.
    pub process: String,
    /// The counter then.
    pub ticks: u64,
    /// Time since zero.
    #[inspect(unit = "ns")]
    pub ns: u64,
}

/// All moments so far.
#[derive(Debug, Default)]
pub struct Timeline {
    stamps: Vec<(String, String, Moment)>,
}

/// A moment on the clock that its reporter had.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Ticks(Ticks),
    /// Nanoseconds of reference time.
    Reference(u64),
}

impl Timeline {
    /// `process` has reached `name`.
    pub fn add(&mut self, process: &str, name: &str, ticks: Ticks) {
        self.push(process, name, Moment::Ticks(ticks));
    }

    /// `process` has reached `name` at a reference time.
    pub fn add_reference(&mut self, process: &str, name: &str, ns: u64) {
        self.push(process, name, Moment::Reference(ns));
    }

    fn push(&mut self, process: &str, name: &str, moment: Moment) {
        if self.stamps.len() < MILESTONES_MAX {
            self.stamps
                .push((process.to_owned(), name.to_owned(), moment));
        }
    }

    /// All, in the order of time.
    pub fn milestones(&self, clock: &Clock) -> Vec<Milestone> {
        let mut milestones: Vec<_> = self
            .stamps
            .iter()
            .map(|(process, name, moment)| {
                let (ticks, ns) = match *moment {
                    Moment::Ticks(ticks) => (ticks, clock.ns(ticks)),
                    Moment::Reference(ns) => (clock.ticks(ns), ns),
                };
                Milestone {
                    name: name.clone(),
                    process: process.clone(),
                    ticks: ticks.0,
                    ns,
                }
            })
            .collect();
        milestones.sort_by_key(|milestone| milestone.ticks);
        milestones
    }

    /// Answers for `boot`.
    pub fn inspect(&self, clock: &Clock, request: Request<'_>) {
        let zero = match clock.zero {
            Zero::Partition => "begin of the partition",
            Zero::Kernel => "start of the kernel",
        };
        let mut response = request.respond();
        response
            .field("zero", zero)
            .unit("counter_frequency", Unit::Hertz, &clock.frequency())
            .field("milestones", &self.milestones(clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn pair(ticks: u64, ns: u64) -> Pair {
        Pair {
            ticks: Ticks(ticks),
            ns,
        }
    }

    /// 2.5 GHz; the shim ended at 100 ms, when the counter was 1,000,000,000.
    fn clock() -> Clock {
        Clock::new(
            Some(pair(1_000_000_000, 100_000_000)),
            pair(2_000_000_000, 300_000_000),
            pair(4_500_000_000, 1_300_000_000),
        )
    }

    #[test]
    fn the_counter_is_reference_time_in_other_units() {
        let clock = clock();
        assert_eq!(clock.frequency(), 2_500_000_000);
        assert_eq!(clock.ns(Ticks(1_000_000_000)), 100_000_000);
        assert_eq!(clock.ns(Ticks(1_000_002_500)), 100_001_000);
        assert_eq!(clock.ns(Ticks(999_997_500)), 99_999_000);
        assert_eq!(clock.ticks(100_001_000), Ticks(1_000_002_500));
    }

    #[test]
    fn the_kernels_time_is_tied_by_a_pair() {
        let clock = clock();
        let log = pair(2_000_000_000, 250_000_000);
        let start_of_kernel = clock.ticks_of(log, 0);
        assert_eq!(start_of_kernel, Ticks(1_375_000_000));
        assert_eq!(clock.ns(start_of_kernel), 250_000_000);
    }

    #[test]
    fn without_the_shims_pair_the_kernel_is_zero() {
        let clock = Clock::new(None, pair(2_000, 300), pair(4_000, 2_300));
        assert_eq!(clock.zero, Zero::Kernel);
        assert_eq!(clock.ns(Ticks(2_000)), 300);
    }

    #[test]
    fn milestones_come_in_the_order_of_time_and_are_limited() {
        let mut timeline = Timeline::default();
        timeline.add("underhill_vm", "ready", Ticks(1_000_005_000));
        timeline.add("openhcl_boot", "end", Ticks(1_000_000_000));
        let milestones = timeline.milestones(&clock());
        assert_eq!(milestones[0].name, "end");
        assert_eq!(
            (milestones[1].name.as_str(), milestones[1].ns),
            ("ready", 100_002_000)
        );
        for _ in 0..2 * MILESTONES_MAX {
            timeline.add("underhill_vm", "ready", Ticks(0));
        }
        assert_eq!(timeline.milestones(&clock()).len(), MILESTONES_MAX);
    }

    proptest! {
        #[test]
        fn clocks_of_any_values_never_panic(values: [u64; 8]) {
            let [a, b, c, d, e, f, g, h] = values;
            let clock = Clock::new(Some(pair(a, b)), pair(c, d), pair(e, f));
            let _ = clock.ns(Ticks(g));
            let _ = clock.ticks(h);
            let _ = clock.ticks_of(pair(a, h), g);
            let _ = reference_ns(a);
        }
    }
}
