//! Deadlines of VPs, kept by comparators of the HPET.
//!
//! A comparator sends an NMI to one CPU. Each VP has a comparator of its own if there are
//! enough. If not, VPs share one: it stands at the earliest of their deadlines and its NMI
//! goes to the CPU that this deadline belongs to. That CPU leaves its VTL, wakes the other
//! CPUs whose deadline has passed as well, and sets the comparator to the next one.
//!
//! A comparator compares for equality only, and it may be set a moment too late. So the
//! counter is read after it is set; a deadline that has passed is reported instead.

use alloc::vec::Vec;

/// A comparator, and the clocks and CPUs around it.
pub trait Comparator {
    /// The time-stamp counter, in which deadlines are told.
    fn tsc(&self) -> u64;
    /// The main counter of the HPET.
    fn counter(&self) -> u64;
    /// Its highest value, of 32 or 64 ones. Then it begins again.
    fn counter_mask(&self) -> u64;
    /// Sets the comparator: an NMI goes to the CPU of `apic_id` when the counter is `at`.
    fn start(&mut self, apic_id: u32, at: u64);
    /// Switches it off.
    fn stop(&mut self);
    /// Sends an NMI to a CPU now.
    fn wake(&self, apic_id: u32);
}

/// Rates of the clocks.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Time-stamp counter, per second.
    pub tsc_hz: u64,
    /// Period of the HPET in femtoseconds.
    pub hpet_period_fs: u64,
}

/// A comparator is set at most that far ahead; a later deadline is looked at again then.
/// So counters of 32 bits do, and no clock of an emulator overflows.
const MAX_AHEAD: u64 = 1 << 30;

/// Whether the counter has reached `at`, which is less than half its range away.
fn has_reached(comparator: &impl Comparator, at: u64) -> bool {
    let mask = comparator.counter_mask();
    comparator.counter().wrapping_sub(at) & mask <= mask / 2
}

impl Rates {
    /// Ticks of the HPET in which at least `ticks` of the TSC pass.
    fn hpet_ticks(&self, ticks: u64) -> u64 {
        let fs = u128::from(ticks) * 1_000_000_000_000_000 / u128::from(self.tsc_hz.max(1));
        let ahead = fs / u128::from(self.hpet_period_fs.max(1)) + 1;
        u64::try_from(ahead).map_or(MAX_AHEAD, |ahead| ahead.min(MAX_AHEAD))
    }
}

/// VPs that share a comparator.
pub struct Group {
    members: Vec<Member>,
    rates: Rates,
    set: Option<Set>,
}

struct Member {
    apic_id: u32,
    /// TSC.
    deadline: Option<u64>,
}

/// What the comparator stands at.
#[derive(Debug, Clone, Copy)]
struct Set {
    member: usize,
    deadline: u64,
    at: u64,
}

impl Group {
    /// VPs with these APIC ids; none has a deadline. The comparator is off.
    pub fn new(apic_ids: impl IntoIterator<Item = u32>, rates: Rates) -> Self {
        let member = |apic_id| Member {
            apic_id,
            deadline: None,
        };
        Self {
            members: apic_ids.into_iter().map(member).collect(),
            rates,
            set: None,
        }
    }

    /// Sets the deadline of a member. True: it has passed, and no NMI will tell.
    pub fn arm(
        &mut self,
        member: usize,
        deadline: Option<u64>,
        comparator: &mut impl Comparator,
    ) -> bool {
        let Some(own) = self.members.get_mut(member) else {
            return false;
        };
        own.deadline = deadline;
        self.settle(member, comparator)
    }

    /// To be called by the CPU of a member that an NMI has reached: the comparator may have
    /// sent it. The deadlines that have passed are forgotten.
    pub fn fired(&mut self, member: usize, comparator: &mut impl Comparator) {
        // It may have fired before the deadline: far ones, and rounding.
        if self.set.is_some_and(|set| has_reached(comparator, set.at)) {
            self.set = None;
        }
        self.settle(member, comparator);
    }

    /// Brings the comparator to the earliest deadline that is still to come; true if the
    /// caller's has passed.
    fn settle(&mut self, caller: usize, comparator: &mut impl Comparator) -> bool {
        let mut passed = false;
        loop {
            let now = comparator.tsc();
            for (index, member) in self.members.iter_mut().enumerate() {
                if member.deadline.is_none_or(|deadline| deadline > now) {
                    continue;
                }
                member.deadline = None;
                if index == caller {
                    passed = true;
                } else {
                    comparator.wake(member.apic_id);
                }
            }
            let earliest = (0..self.members.len())
                .filter_map(|index| Some((self.members[index].deadline?, index)))
                .min();
            let Some((deadline, member)) = earliest else {
                if self.set.take().is_some() {
                    comparator.stop();
                }
                return passed;
            };
            if self
                .set
                .is_some_and(|set| (set.deadline, set.member) == (deadline, member))
            {
                return passed;
            }
            let ahead = self.rates.hpet_ticks(deadline - now);
            let at = comparator.counter().wrapping_add(ahead) & comparator.counter_mask();
            comparator.start(self.members[member].apic_id, at);
            if !has_reached(comparator, at) {
                self.set = Some(Set {
                    member,
                    deadline,
                    at,
                });
                return passed;
            }
            // Too late, perhaps without an NMI: look at the clock again.
            self.set = None;
        }
    }
}

#[cfg(test)]
mod tests;
