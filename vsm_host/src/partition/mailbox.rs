//! How a parked CPU is told to start its VP.
//!
//! The one who starts a VP claims its mailbox, leaves the context, sends an NMI and then
//! releases the mailbox. The parked CPU sleeps with NMIs open only while it sleeps
//! (GIF is clear otherwise), so that
//! - no wake-up is lost: an NMI that comes before the CPU sleeps stays pending;
//! - no NMI is left over: it was sent before the release that the CPU waits for, so the
//!   window that the CPU opens once more afterwards takes it. Left pending, it would only
//!   cost VTL2 an exit: NMIs are the host's at any time (`partition::nmi`), and nobody
//!   sends one for another reason to a VP that has not been started.
//!
//! A VP that runs can be started again if its software has said that it leaves, and will
//! suspend itself: the starter leaves the context and sends nothing, and the VP takes the
//! context when it suspends itself. One that has suspended itself before is stopped.
//!
//! The order of these steps is checked by loom below.

use core::sync::atomic::{AtomicU32, Ordering};

/// The VP has not been started.
const STOPPED: u32 = 0;
/// Somebody is starting it.
const CLAIMED: u32 = 1;
/// It runs.
const STARTED: u32 = 2;
/// It runs, and somebody is starting it again.
const RECLAIMED: u32 = 3;
/// It runs, and begins again as soon as it suspends itself.
const RESTARTING: u32 = 4;

/// The atomic word of a mailbox; a trait so that loom's can take its place.
pub trait Word {
    /// A word with a value.
    fn new(value: u32) -> Self;
    /// Reads, with acquire ordering.
    fn load(&self) -> u32;
    /// Writes, with release ordering.
    fn store(&self, value: u32);
    /// Replaces `from` by `to`, or says that it was something else.
    fn replace(&self, from: u32, to: u32) -> bool;
}

impl Word for AtomicU32 {
    fn new(value: u32) -> Self {
        Self::new(value)
    }

    fn load(&self) -> u32 {
        self.load(Ordering::Acquire)
    }

    fn store(&self, value: u32) {
        self.store(value, Ordering::Release);
    }

    fn replace(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// What the parked CPU does to wait.
pub trait Sleeper {
    /// Halts with NMIs open until an NMI has been taken; closes them again.
    fn sleep(&mut self);
    /// Takes an NMI that is pending.
    fn drain(&mut self);
    /// Lets time pass.
    fn relax(&mut self);
}

/// When a VP takes the context that is left for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// When it suspends itself; until then it goes on.
    WhenSuspended,
}

/// State of a VP that others may start.
pub struct Mailbox<W: Word = AtomicU32>(W);

impl<W: Word> Mailbox<W> {
    /// The mailbox of a VP that is stopped.
    pub fn new() -> Self {
        Self(W::new(STOPPED))
    }

    /// Starts the VP: `prepare` leaves the context, `wake` sends the NMI. False if the VP
    /// is not stopped, nor one that runs and `leaves`; neither has been called then.
    pub fn start(
        &self,
        leaves: impl Fn() -> bool,
        prepare: impl FnOnce(Start),
        wake: impl FnOnce(),
    ) -> bool {
        // It is tried once more only after a VP that leaves has suspended itself, or somebody
        // else has started it.
        loop {
            match self.0.load() {
                STOPPED => {
                    if self.0.replace(STOPPED, CLAIMED) {
                        prepare(Start::Now);
                        wake();
                        self.0.store(STARTED);
                        return true;
                    }
                }
                STARTED if leaves() => {
                    if self.0.replace(STARTED, RECLAIMED) {
                        prepare(Start::WhenSuspended);
                        self.0.store(RESTARTING);
                        return true;
                    }
                }
                _ => return false,
            }
        }
    }

    /// Whether the VP has been started, and not suspended itself.
    pub fn is_started(&self) -> bool {
        matches!(self.0.load(), STARTED | RECLAIMED | RESTARTING)
    }

    /// Called by the VP's own CPU: the VP runs no more. If it has been started again it is
    /// started now, and before others see that, `renew` is called.
    pub fn suspend(&self, sleeper: &mut impl Sleeper, renew: impl FnOnce()) {
        loop {
            match self.0.load() {
                STARTED => {
                    if self.0.replace(STARTED, STOPPED) {
                        return;
                    }
                }
                RECLAIMED => sleeper.relax(),
                RESTARTING => {
                    renew();
                    self.0.store(STARTED);
                    return;
                }
                // It does not run.
                _ => return,
            }
        }
    }

    /// Called by the VP's own CPU: returns when the VP has been started.
    pub fn wait(&self, sleeper: &mut impl Sleeper) {
        loop {
            match self.0.load() {
                STOPPED => sleeper.sleep(),
                CLAIMED => sleeper.relax(),
                _ => break,
            }
        }
        sleeper.drain();
    }
}

impl<W: Word> Default for Mailbox<W> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::atomic::{AtomicBool, AtomicU32 as LoomU32};
    use loom::sync::{Arc, Condvar, Mutex};

    impl Word for LoomU32 {
        fn new(value: u32) -> Self {
            Self::new(value)
        }

        fn load(&self) -> u32 {
            self.load(Ordering::Acquire)
        }

        fn store(&self, value: u32) {
            self.store(value, Ordering::Release);
        }

        fn replace(&self, from: u32, to: u32) -> bool {
            self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        }
    }

    struct Cpu {
        mailbox: Mailbox<LoomU32>,
        /// An NMI waits at the CPU.
        nmi: Mutex<bool>,
        raised: Condvar,
        context: LoomU32,
        /// The VP will suspend itself.
        leaves: AtomicBool,
    }

    impl Cpu {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                mailbox: Mailbox::new(),
                nmi: Mutex::new(false),
                raised: Condvar::new(),
                context: LoomU32::new(0),
                leaves: AtomicBool::new(false),
            })
        }

        fn start(&self, context: u32) -> bool {
            self.mailbox.start(
                || self.leaves.load(Ordering::Acquire),
                |_| self.context.store(context, Ordering::Relaxed),
                || {
                    *self.nmi.lock().unwrap() = true;
                    self.raised.notify_one();
                },
            )
        }
    }

    struct LoomSleeper<'a>(&'a Cpu);

    impl Sleeper for LoomSleeper<'_> {
        fn sleep(&mut self) {
            // A lost wake-up would block this for ever, which loom reports.
            let mut nmi = self.0.nmi.lock().unwrap();
            while !*nmi {
                nmi = self.0.raised.wait(nmi).unwrap();
            }
            *nmi = false;
        }

        fn drain(&mut self) {
            *self.0.nmi.lock().unwrap() = false;
        }

        fn relax(&mut self) {
            loom::thread::yield_now();
        }
    }

    #[test]
    fn a_started_vp_wakes_sees_its_context_and_has_no_nmi_left() {
        loom::model(|| {
            let cpu = Cpu::new();
            let starter = {
                let cpu = Arc::clone(&cpu);
                loom::thread::spawn(move || assert!(cpu.start(7)))
            };
            cpu.mailbox.wait(&mut LoomSleeper(&cpu));
            assert_eq!(cpu.context.load(Ordering::Relaxed), 7);
            assert!(!*cpu.nmi.lock().unwrap());
            starter.join().unwrap();
            assert!(!*cpu.nmi.lock().unwrap());
        });
    }

    #[test]
    fn of_two_starters_one_wins() {
        loom::model(|| {
            let cpu = Cpu::new();
            let other = {
                let cpu = Arc::clone(&cpu);
                loom::thread::spawn(move || cpu.start(1))
            };
            let here = cpu.start(2);
            let there = other.join().unwrap();
            assert!(here != there);
            cpu.mailbox.wait(&mut LoomSleeper(&cpu));
            assert_eq!(
                cpu.context.load(Ordering::Relaxed),
                if here { 2 } else { 1 }
            );
        });
    }

    /// The VP runs with context 1, leaves and suspends itself.
    fn run_and_leave(cpu: &Cpu) {
        assert!(cpu.start(1));
        cpu.mailbox.wait(&mut LoomSleeper(cpu));
        assert_eq!(cpu.context.load(Ordering::Relaxed), 1);
        cpu.leaves.store(true, Ordering::Release);
        cpu.mailbox.suspend(&mut LoomSleeper(cpu), || {
            cpu.leaves.store(false, Ordering::Relaxed);
        });
        cpu.mailbox.wait(&mut LoomSleeper(cpu));
    }

    #[test]
    fn a_vp_that_leaves_is_started_again_when_it_has_suspended_itself() {
        loom::model(|| {
            let cpu = Cpu::new();
            let starter = {
                let cpu = Arc::clone(&cpu);
                loom::thread::spawn(move || {
                    // What the VP's software says before others are told to start it.
                    while !cpu.leaves.load(Ordering::Acquire) {
                        loom::thread::yield_now();
                    }
                    assert!(cpu.start(2));
                })
            };
            run_and_leave(&cpu);
            assert_eq!(cpu.context.load(Ordering::Relaxed), 2);
            assert!(cpu.mailbox.is_started());
            assert!(!*cpu.nmi.lock().unwrap());
            starter.join().unwrap();
            assert!(!*cpu.nmi.lock().unwrap());
        });
    }

    #[test]
    fn of_two_who_start_it_again_one_wins() {
        loom::model(|| {
            let cpu = Cpu::new();
            assert!(cpu.start(1));
            cpu.mailbox.wait(&mut LoomSleeper(&cpu));
            cpu.leaves.store(true, Ordering::Release);
            let starters = [2, 3].map(|context| {
                let cpu = Arc::clone(&cpu);
                loom::thread::spawn(move || cpu.start(context))
            });
            let [first, second] = starters.map(|starter| starter.join().unwrap());
            assert!(first != second);
            let mut renewed = false;
            cpu.mailbox
                .suspend(&mut LoomSleeper(&cpu), || renewed = true);
            cpu.mailbox.wait(&mut LoomSleeper(&cpu));
            assert!(renewed);
            let expected = if first { 2 } else { 3 };
            assert_eq!(cpu.context.load(Ordering::Relaxed), expected);
        });
    }

    #[test]
    fn a_vp_that_stays_is_not_started_again() {
        let mailbox = Mailbox::<AtomicU32>::new();
        assert!(mailbox.start(|| false, |_| (), || ()));
        let start = |leaves: bool| {
            let mut started = None;
            let done = mailbox.start(|| leaves, |start| started = Some(start), || ());
            assert_eq!(done, started.is_some());
            started
        };
        assert_eq!(start(false), None);
        assert_eq!(start(true), Some(Start::WhenSuspended));
        assert!(mailbox.is_started());
        assert_eq!(start(true), None);
    }
}
