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
//! The order of these steps is checked by loom below.

use core::sync::atomic::{AtomicU32, Ordering};

/// The VP has not been started.
const STOPPED: u32 = 0;
/// Somebody is starting it.
const CLAIMED: u32 = 1;
/// It runs.
const STARTED: u32 = 2;

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

/// State of a VP that others may start.
pub struct Mailbox<W: Word = AtomicU32>(W);

impl<W: Word> Mailbox<W> {
    /// The mailbox of a VP that is stopped.
    pub fn new() -> Self {
        Self(W::new(STOPPED))
    }

    /// Starts the VP: `prepare` leaves the context, `wake` sends the NMI. False if the VP
    /// is not stopped; nothing has been called then.
    pub fn start(&self, prepare: impl FnOnce(), wake: impl FnOnce()) -> bool {
        if !self.0.replace(STOPPED, CLAIMED) {
            return false;
        }
        prepare();
        wake();
        self.0.store(STARTED);
        true
    }

    /// Whether the VP has been started.
    pub fn is_started(&self) -> bool {
        self.0.load() == STARTED
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
    use loom::sync::atomic::AtomicU32 as LoomU32;
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
    }

    impl Cpu {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                mailbox: Mailbox::new(),
                nmi: Mutex::new(false),
                raised: Condvar::new(),
                context: LoomU32::new(0),
            })
        }

        fn start(&self, context: u32) -> bool {
            self.mailbox.start(
                || self.context.store(context, Ordering::Relaxed),
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
}
