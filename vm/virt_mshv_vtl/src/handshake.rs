//! How a run of a VP is cancelled, so that nobody waits for nothing.
//!
//! ```text
//!   who cancels                                the VP's thread
//!   changes what the VP is to see              runs VTL0 in the driver
//!   must_kick: the flag is clear?                 which returns when the flag is set
//!     kick: the driver sets the flag,          acknowledge: clears the flag
//!     and interrupts the VP's CPU              looks at what it is to see
//! ```
//!
//! A flag that is set already needs no second kick: the VP has not acknowledged it, and will
//! look afterwards. That is so only if both sides agree on what came first, the look at the
//! flag or its clearing, hence a fence on either side. The driver itself orders nothing: it
//! sets and reads the flag relaxed.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

/// The flag in the run page; a trait so that loom's atomics can take its place.
pub(crate) trait Flag {
    fn is_set(&self) -> bool;
    /// Acquires what the kick has released.
    fn clear(&self);
    /// A fence that all threads see in the same order.
    fn fence();
}

impl Flag for AtomicU32 {
    fn is_set(&self) -> bool {
        self.load(Relaxed) != 0
    }

    fn clear(&self) {
        self.swap(0, SeqCst);
    }

    fn fence() {
        std::sync::atomic::fence(SeqCst);
    }
}

/// Whether the driver must be told that the VP is to be cancelled.
pub(crate) fn must_kick<T: Flag>(flag: &T) -> bool {
    T::fence();
    !flag.is_set()
}

/// The run has ended. The VP sees from here on what those have changed who cancelled it.
pub(crate) fn acknowledge<T: Flag>(flag: &T) {
    flag.clear();
    T::fence();
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::Condvar;
    use loom::sync::Mutex;
    use loom::sync::atomic::AtomicBool;
    use loom::sync::atomic::AtomicU32 as LoomU32;
    use loom::sync::atomic::Ordering::Acquire;
    use loom::sync::atomic::Ordering::Release;
    use loom::thread;

    impl Flag for LoomU32 {
        fn is_set(&self) -> bool {
            self.load(Relaxed) != 0
        }

        fn clear(&self) {
            self.swap(0, SeqCst);
        }

        fn fence() {
            loom::sync::atomic::fence(SeqCst);
        }
    }

    /// A VP's CPU with the driver as Linux 7.3 has it, and what a VP's thread looks at.
    struct Model {
        flag: LoomU32,
        /// An interrupt is pending at the CPU.
        interrupt: Mutex<bool>,
        interrupted: Condvar,
        open: AtomicBool,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                flag: LoomU32::new(0),
                interrupt: Mutex::new(false),
                interrupted: Condvar::new(),
                open: AtomicBool::new(true),
            })
        }

        /// `mshv_vtl_cancel` for another CPU.
        fn kick(&self) {
            if self.flag.swap(1, Relaxed) == 0 {
                *self.interrupt.lock().unwrap() = true;
                self.interrupted.notify_one();
            }
        }

        /// `mshv_vtl_ioctl_return_to_lower_vtl`: VTL0 runs until there is an interrupt. If it
        /// runs although it should not, it does so for ever, which loom reports.
        fn run(&self) {
            while self.flag.load(Relaxed) == 0 {
                let mut pending = self.interrupt.lock().unwrap();
                while !*pending {
                    pending = self.interrupted.wait(pending).unwrap();
                }
                *pending = false;
            }
        }

        fn cancel(&self) {
            if must_kick(&self.flag) {
                self.kick();
            }
        }

        /// What a VP's thread does until its gate is closed.
        fn live(&self) {
            while self.open.load(Acquire) {
                self.run();
                acknowledge(&self.flag);
            }
        }
    }

    fn model(test: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        // More take minutes, and the races are between few steps.
        builder.preemption_bound = Some(3);
        builder.check(test);
    }

    #[test]
    fn a_vp_whose_gate_was_closed_does_not_run_on() {
        model(|| {
            let model = Model::new();
            let vp = {
                let model = model.clone();
                thread::spawn(move || model.live())
            };
            model.open.store(false, Release);
            model.cancel();
            vp.join().unwrap();
        });
    }

    #[test]
    fn a_cancellation_for_another_reason_does_not_hide_the_one_that_counts() {
        model(|| {
            let model = Model::new();
            let vp = {
                let model = model.clone();
                thread::spawn(move || model.live())
            };
            let other = {
                let model = model.clone();
                thread::spawn(move || model.cancel())
            };
            model.open.store(false, Release);
            model.cancel();
            other.join().unwrap();
            vp.join().unwrap();
        });
    }

    #[test]
    fn a_vp_sees_what_was_done_before_it_was_cancelled() {
        model(|| {
            let model = Model::new();
            let done = Arc::new(LoomU32::new(0));
            let vp = {
                let (model, done) = (model.clone(), done.clone());
                thread::spawn(move || {
                    model.run();
                    acknowledge(&model.flag);
                    assert_eq!(done.load(Relaxed), 1);
                })
            };
            done.store(1, Relaxed);
            model.cancel();
            vp.join().unwrap();
        });
    }
}
