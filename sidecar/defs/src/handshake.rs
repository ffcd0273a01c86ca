//! How a command passes from the worker to a CPU, and its answer back.
//!
//! ```text
//!            worker: ask                CPU: finish
//!    IDLE ----------------> RUN -----------------------> IDLE   then event flag `n`
//!     |                      | worker: stop               ^
//!     |                      '--------> STOP -------------'
//!     |  worker: ask             CPU: leave
//!     '----------------> REMOVE ------------------> REMOVED     then event flag `n`
//! ```
//!
//! Whoever changes the status gives away the command page and the register page with it; who
//! sees the change has them. Behind each change by the worker comes an interrupt of the
//! request vector, behind each by the CPU an event. Neither is looked for: an interrupt that
//! was not needed (the command had just ended when it was to be stopped) is taken later and
//! changes nothing.
//!
//! The CPU looks at its status with interrupts off, and waits for one so that an interrupt
//! since the look ends the wait: by `sti; hlt`, or, while VTL0 runs, by entering it with the
//! interrupt pending.

use crate::CpuStatus;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;

/// The cell of a status; a trait so that loom's atomics can take its place.
pub trait Cell {
    /// Reads it, and acquires what came with it.
    fn load(&self) -> u8;
    /// Writes it, releases what goes with it, and acquires what came with a `stop` before.
    fn replace(&self, value: u8);
    /// Writes it if it is `current`; else, what it is.
    fn exchange(&self, current: u8, new: u8) -> Result<(), u8>;
}

impl Cell for AtomicU8 {
    fn load(&self) -> u8 {
        self.load(Acquire)
    }

    fn replace(&self, value: u8) {
        self.swap(value, AcqRel);
    }

    fn exchange(&self, current: u8, new: u8) -> Result<(), u8> {
        match self.compare_exchange(current, new, AcqRel, Relaxed) {
            Ok(_) => Ok(()),
            Err(found) => Err(found),
        }
    }
}

/// The CPU is not idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotIdle(
    /// What it is.
    pub CpuStatus,
);

/// What the worker asks of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To execute its command page.
    Run,
    /// To leave the sidecar.
    Remove,
}

/// Worker: what the CPU does. If it is idle, the worker has its pages.
pub fn status(cell: &impl Cell) -> CpuStatus {
    CpuStatus(cell.load())
}

/// Worker: gives the CPU its pages. It is to be interrupted afterwards.
pub fn ask(cell: &impl Cell, request: Request) -> Result<(), NotIdle> {
    let status = match request {
        Request::Run => CpuStatus::RUN,
        Request::Remove => CpuStatus::REMOVE,
    };
    cell.exchange(CpuStatus::IDLE.0, status.0)
        .map_err(|found| NotIdle(CpuStatus(found)))
}

/// Worker: has the command come to an end. True if the CPU is to be interrupted; false if
/// nothing is left to be stopped.
pub fn stop(cell: &impl Cell) -> bool {
    cell.exchange(CpuStatus::RUN.0, CpuStatus::STOP.0).is_ok()
}

/// CPU: what it is asked. If anything, it has its pages.
pub fn next(cell: &impl Cell) -> Option<Request> {
    match CpuStatus(cell.load()) {
        CpuStatus::RUN | CpuStatus::STOP => Some(Request::Run),
        CpuStatus::REMOVE => Some(Request::Remove),
        _ => None,
    }
}

/// CPU: whether the command that it executes is to come to an end.
pub fn must_stop(cell: &impl Cell) -> bool {
    cell.load() == CpuStatus::STOP.0
}

/// CPU: gives the worker its pages. The event is to be signalled afterwards.
pub fn finish(cell: &impl Cell) {
    cell.replace(CpuStatus::IDLE.0);
}

/// CPU: gives its pages away for ever. The event is to be signalled afterwards.
pub fn leave(cell: &impl Cell) {
    cell.replace(CpuStatus::REMOVED.0);
}

/// CPU: its kernel has failed, and its pages say why. The event is to be signalled afterwards.
pub fn fail(cell: &impl Cell) {
    cell.replace(CpuStatus::FAILED.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::Condvar;
    use loom::sync::Mutex;
    use loom::sync::atomic::AtomicU8 as LoomU8;
    use loom::thread;

    impl Cell for LoomU8 {
        fn load(&self) -> u8 {
            self.load(Acquire)
        }

        fn replace(&self, value: u8) {
            self.swap(value, AcqRel);
        }

        fn exchange(&self, current: u8, new: u8) -> Result<(), u8> {
            match self.compare_exchange(current, new, AcqRel, Relaxed) {
                Ok(_) => Ok(()),
                Err(found) => Err(found),
            }
        }
    }

    /// An interrupt that is pending, or a counter of events: set by one, awaited by another.
    struct Signal {
        set: Mutex<bool>,
        changed: Condvar,
    }

    impl Signal {
        fn new() -> Self {
            Self {
                set: Mutex::new(false),
                changed: Condvar::new(),
            }
        }

        fn set(&self) {
            *self.set.lock().unwrap() = true;
            self.changed.notify_one();
        }

        fn wait(&self) {
            let mut set = self.set.lock().unwrap();
            while !*set {
                set = self.changed.wait(set).unwrap();
            }
            *set = false;
        }
    }

    /// A CPU, whose pages are a number. If both sides had them at once, loom would fail.
    struct Model {
        status: LoomU8,
        page: UnsafeCell<u32>,
        interrupt: Signal,
        event: Signal,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                status: LoomU8::new(CpuStatus::IDLE.0),
                page: UnsafeCell::new(0),
                interrupt: Signal::new(),
                event: Signal::new(),
            })
        }

        fn with_page<T>(&self, work: impl FnOnce(&mut u32) -> T) -> T {
            self.page.with_mut(|page| {
                #[expect(unsafe_code, reason = "loom's cell hands out a pointer")]
                // SAFETY: loom reports an access that is not exclusive.
                work(unsafe { &mut *page })
            })
        }

        /// The CPU's kernel. Odd numbers are guests that run until they are stopped.
        fn live(&self) {
            loop {
                match next(&self.status) {
                    None => self.interrupt.wait(),
                    Some(Request::Remove) => {
                        self.with_page(|page| *page += 100);
                        leave(&self.status);
                        return self.event.set();
                    }
                    Some(Request::Run) => {
                        let runs = self.with_page(|page| {
                            *page += 10;
                            *page % 2 == 1
                        });
                        while runs && !must_stop(&self.status) {
                            self.interrupt.wait();
                        }
                        finish(&self.status);
                        self.event.set();
                    }
                }
            }
        }

        fn ask(&self, request: Request, number: u32) {
            self.with_page(|page| *page = number);
            ask(&self.status, request).unwrap();
            self.interrupt.set();
        }

        fn stop(&self) {
            if stop(&self.status) {
                self.interrupt.set();
            }
        }

        fn wait(&self, status: CpuStatus) -> u32 {
            loop {
                self.event.wait();
                if super::status(&self.status) == status {
                    return self.with_page(|page| *page);
                }
            }
        }
    }

    fn model(worker: impl Fn(&Arc<Model>) + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        // More take minutes, and the races are between few steps.
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let model = Model::new();
            let cpu = {
                let model = model.clone();
                thread::spawn(move || model.live())
            };
            worker(&model);
            model.ask(Request::Remove, 0);
            assert_eq!(model.wait(CpuStatus::REMOVED), 100);
            cpu.join().unwrap();
        });
    }

    #[test]
    fn each_command_is_executed_once() {
        model(|cpu| {
            for number in [2, 4] {
                cpu.ask(Request::Run, number);
                assert_eq!(cpu.wait(CpuStatus::IDLE), number + 10);
            }
        });
    }

    #[test]
    fn a_guest_stops_when_it_is_told_to() {
        model(|cpu| {
            cpu.ask(Request::Run, 1);
            cpu.stop();
            assert_eq!(cpu.wait(CpuStatus::IDLE), 11);
        });
    }

    #[test]
    fn a_stop_that_comes_too_late_does_not_stop_the_next_command() {
        model(|cpu| {
            let other = {
                let cpu = cpu.clone();
                thread::spawn(move || cpu.stop())
            };
            cpu.ask(Request::Run, 2);
            assert_eq!(cpu.wait(CpuStatus::IDLE), 12);
            other.join().unwrap();
            cpu.ask(Request::Run, 4);
            assert_eq!(cpu.wait(CpuStatus::IDLE), 14);
        });
    }

    #[test]
    fn a_cpu_that_is_not_idle_is_not_asked() {
        let cell = AtomicU8::new(CpuStatus::RUN.0);
        let refused = ask(&cell, Request::Remove);
        assert_eq!(refused, Err(NotIdle(CpuStatus::RUN)));
        assert!(stop(&cell) && !stop(&cell));
        assert!(must_stop(&cell));
    }
}
