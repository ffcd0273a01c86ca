//! How a change of the guest's nested page table reaches processors that run the guest.
//!
//! A processor that is in VTL0 may use an older translation until it leaves, and its walk
//! may be in a table that is not in use any more. So a change counts when every processor
//! that was in VTL0 then has left it, and forgets what it knows before it enters again.
//!
//! The changes are counted: the [`Changes`]. A VP that enters says so in its [`Presence`],
//! with the number of the last change that it knows, and then looks whether that still is
//! the last one. The VP that has changed something counts it, and then looks who is
//! inside with an older number. Of these two looks at least one sees the other's word, as
//! both first take their turn at the one counter. Nobody waits but the VP that changes,
//! which is in VTL2; those it waits for leave by the NMI that it sends them, and need
//! nothing that it holds.
//!
//! Loom checks the order of these steps below.

use core::sync::atomic::{AtomicU64, Ordering};

/// An atomic word; a trait so that loom's can take its place.
pub trait Word {
    /// A word with a value.
    fn new(value: u64) -> Self;
    /// Reads, with acquire ordering.
    fn load(&self) -> u64;
    /// Writes, with release ordering.
    fn store(&self, value: u64);
    /// Adds and returns the sum; acquires and releases.
    fn add(&self, value: u64) -> u64;
}

/// Implements [`Word`] by the methods that atomic words of the core library and of loom have
/// in common.
macro_rules! impl_word {
    ($word:ty) => {
        impl Word for $word {
            fn new(value: u64) -> Self {
                Self::new(value)
            }

            fn load(&self) -> u64 {
                self.load(Ordering::Acquire)
            }

            fn store(&self, value: u64) {
                self.store(value, Ordering::Release);
            }

            fn add(&self, value: u64) -> u64 {
                self.fetch_add(value, Ordering::AcqRel) + value
            }
        }
    };
}

impl_word!(AtomicU64);

/// Value of a presence: not inside.
const OUTSIDE: u64 = 0;

/// Counts changes, from 1.
pub struct Changes<W: Word = AtomicU64>(W);

/// Whether a VP is in VTL0, and the last change that it knew when it entered.
pub struct Presence<W: Word = AtomicU64>(W);

impl<W: Word> Changes<W> {
    /// Nothing has been changed.
    pub fn new() -> Self {
        Self(W::new(1))
    }

    /// The number of the last change.
    fn last(&self) -> u64 {
        // Not a mere load: whoever counts later sees what the caller has written before.
        self.0.add(0)
    }

    /// To be called after a change: returns when no VP uses what was there before. `others`
    /// are all VPs but the caller, which is not in VTL0. `wake` makes one leave it; `relax`
    /// lets time pass.
    pub fn spread<'a, T>(
        &self,
        others: impl Iterator<Item = (&'a Presence<W>, T)> + Clone,
        wake: impl Fn(T),
        relax: impl Fn(),
    ) where
        W: 'a,
    {
        let change = self.0.add(1);
        // All are called before the first one is waited for.
        for (presence, cpu) in others.clone() {
            if presence.is_inside_before(change) {
                wake(cpu);
            }
        }
        for (presence, _) in others {
            while presence.is_inside_before(change) {
                relax();
            }
        }
    }
}

impl<W: Word> Presence<W> {
    /// The VP is not in VTL0.
    pub fn new() -> Self {
        Self(W::new(OUTSIDE))
    }

    /// By the VP: is about to enter. Yields the last change: whoever knows an older one only
    /// has to forget all translations.
    pub fn enter(&self, changes: &Changes<W>) -> u64 {
        let mut known = changes.last();
        loop {
            self.0.store(known);
            let last = changes.last();
            if last == known {
                return known;
            }
            known = last;
        }
    }

    /// By the VP: has left. Nothing may come between the exit and this that waits for
    /// another VP.
    pub fn leave(&self) {
        self.0.store(OUTSIDE);
    }

    fn is_inside_before(&self, change: u64) -> bool {
        (OUTSIDE + 1..change).contains(&self.0.load())
    }
}

impl<W: Word> Default for Changes<W> {
    fn default() -> Self {
        Self::new()
    }
}

impl<W: Word> Default for Presence<W> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU64 as LoomU64};
    use loom::thread;

    impl_word!(LoomU64);

    /// A page that a processor has translated, or not.
    const VALID: u64 = 1;
    const GONE: u64 = 0;

    /// A machine whose page table has one page.
    struct Machine {
        changes: Changes<LoomU64>,
        presences: [Presence<LoomU64>; 2],
        /// The entry in memory.
        entry: LoomU64,
        /// The page has been given to somebody else.
        reused: AtomicBool,
    }

    impl Machine {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                changes: Changes::new(),
                presences: [Presence::new(), Presence::new()],
                entry: LoomU64::new(VALID),
                reused: AtomicBool::new(false),
            })
        }

        /// A VP in VTL0, `times`. Its TLB is as stale as it can be.
        fn guest(&self, vp: usize, times: u32) {
            let mut known = self.changes.last();
            let mut tlb = self.entry.load(Ordering::Relaxed);
            for _ in 0..times {
                let last = self.presences[vp].enter(&self.changes);
                if last != known {
                    known = last;
                    tlb = self.entry.load(Ordering::Relaxed);
                }
                if tlb == VALID {
                    assert!(!self.reused.load(Ordering::Relaxed));
                }
                self.presences[vp].leave();
            }
        }

        fn change(&self, vps: usize) {
            self.entry.store(GONE, Ordering::Relaxed);
            // Each leaves by itself, sooner or later.
            let others = self.presences.iter().zip(0..vps);
            self.changes.spread(others, |_| (), thread::yield_now);
            self.reused.store(true, Ordering::Relaxed);
        }
    }

    fn model(test: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(test);
    }

    #[test]
    fn nobody_uses_what_was_there_before_the_change() {
        model(|| {
            let machine = Machine::new();
            let guest = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.guest(0, 2))
            };
            machine.change(1);
            guest.join().unwrap();
        });
    }

    #[test]
    fn nor_does_any_of_several() {
        model(|| {
            let machine = Machine::new();
            let guests = [0, 1].map(|vp| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.guest(vp, 1))
            });
            machine.change(2);
            for guest in guests {
                guest.join().unwrap();
            }
        });
    }

    #[test]
    fn a_vp_that_knows_the_change_is_not_called() {
        let changes: Changes = Changes::new();
        let presences: [Presence; 3] = Default::default();
        let first = presences[0].enter(&changes);
        presences[1].enter(&changes);
        presences[1].leave();
        let called = std::cell::RefCell::new(Vec::new());
        let spread = || {
            changes.spread(
                presences.iter().zip(0..),
                |vp| {
                    called.borrow_mut().push(vp);
                    presences[vp].leave();
                },
                || unreachable!(),
            );
        };
        spread();
        assert_eq!(called.take(), [0]);
        let second = presences[0].enter(&changes);
        assert!(second > first);
        assert_eq!(presences[0].enter(&changes), second);
        spread();
        assert_eq!(called.take(), [0]);
    }
}
