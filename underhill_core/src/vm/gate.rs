//! Who may run the guest: the threads of the VPs ask here, the owner of the VM decides.
//!
//! ```text
//!   owner          held -------- reset --------> held ---- release --> running
//!   each VP        waits          resets itself  waits                 runs the guest
//! ```
//!
//! A held VP does not run the guest, and does not touch the chipset. The owner knows that
//! all VPs are held when [`Gate::held`] returns, so there is never a half-stopped machine.
//!
//! A VP without a thread asks by [`Gate::try_next`], again whenever the [`Bell`] rings.

use super::bell::Bell;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Release;
use tokio::sync::Notify;

/// The gate of all VPs.
pub(crate) struct Gate {
    state: Mutex<State>,
    /// The VPs have something new to do.
    changed: Condvar,
    /// A VP has stopped, or has reset itself.
    progress: Notify,
    /// A copy of [`Order::Run`], for VPs between two exits.
    open: AtomicBool,
    /// How often a device that held a write up has made room.
    unstalled: AtomicU64,
    /// For VPs that do not wait here, if there are any.
    bell: OnceLock<Arc<Bell>>,
}

struct State {
    order: Order,
    /// Resets so far.
    resets: u64,
    vps: usize,
    /// VPs that wait here.
    waiting: usize,
    /// VPs that have done the last reset.
    reset_done: usize,
    /// Why a VP could not reset itself.
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Hold,
    Run,
    End,
}

/// What a VP is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Run the guest until [`Gate::is_open`] says no.
    Run,
    /// Reset itself, tell [`Gate::reset_done`], and ask again.
    Reset,
    /// End its thread.
    End,
}

/// What a VP remembers between two questions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    resets: u64,
    /// It has asked, and there was nothing to do.
    waits: bool,
}

impl Gate {
    /// A gate for so many VPs, which are held.
    pub(crate) fn new(vps: usize) -> Self {
        Self {
            state: Mutex::new(State {
                order: Order::Hold,
                resets: 0,
                vps,
                waiting: 0,
                reset_done: 0,
                failure: None,
            }),
            changed: Condvar::new(),
            progress: Notify::new(),
            open: AtomicBool::new(false),
            unstalled: AtomicU64::new(0),
            bell: OnceLock::new(),
        }
    }

    /// From now on `bell` rings when there may be something new to do. Before that, no VP
    /// asks by [`Gate::try_next`].
    pub(crate) fn ring(&self, bell: Arc<Bell>) {
        // There is one.
        let _ = self.bell.set(bell);
    }

    /// VPs may run.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Acquire)
    }

    /// A VP asks, and waits until there is something to do.
    pub(crate) fn next(&self, memory: &mut Memory) -> Task {
        let mut state = self.lock();
        loop {
            if let Some(task) = self.task(&mut state, memory) {
                return task;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A VP asks. If there is nothing to do, it counts as one that waits, and asks again
    /// later.
    pub(crate) fn try_next(&self, memory: &mut Memory) -> Option<Task> {
        self.task(&mut self.lock(), memory)
    }

    fn task(&self, state: &mut State, memory: &mut Memory) -> Option<Task> {
        if !memory.waits {
            memory.waits = true;
            state.waiting += 1;
            self.progress.notify_one();
        }
        let task = match state.order {
            Order::End => Task::End,
            _ if memory.resets < state.resets => Task::Reset,
            Order::Run => Task::Run,
            Order::Hold => return None,
        };
        memory.resets = state.resets;
        memory.waits = false;
        state.waiting -= 1;
        Some(task)
    }

    /// A VP has reset itself, or could not.
    pub(crate) fn reset_done(&self, outcome: Result<(), String>) {
        let mut state = self.lock();
        state.reset_done += 1;
        if let Err(failure) = outcome {
            state.failure.get_or_insert(failure);
        }
        self.progress.notify_one();
    }

    /// Lets no VP run again. Those that run must be cancelled after this.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if state.order == Order::Run {
            state.order = Order::Hold;
        }
        self.open.store(false, Release);
        self.tell_vps();
    }

    /// Returns when no VP runs.
    pub(crate) async fn held(&self) {
        self.until(|state| state.waiting == state.vps).await;
    }

    /// Has each VP reset itself. All must be held.
    pub(crate) async fn reset(&self) -> Result<(), String> {
        {
            let mut state = self.lock();
            state.resets += 1;
            state.reset_done = 0;
            state.failure = None;
        }
        self.tell_vps();
        self.until(|state| state.reset_done == state.vps && state.waiting == state.vps)
            .await;
        match self.lock().failure.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Lets the VPs run.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        if state.order == Order::Hold {
            state.order = Order::Run;
            self.open.store(true, Release);
        }
        self.tell_vps();
    }

    /// Ends the threads of the VPs. Those that run must be cancelled after this.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.order = Order::End;
        self.open.store(false, Release);
        self.tell_vps();
    }

    /// How often [`Gate::unstalled`] was called. A VP asks before each write.
    pub(crate) fn unstalls(&self) -> u64 {
        self.unstalled.load(Acquire)
    }

    /// A device that has held a write up has room.
    pub(crate) fn unstalled(&self) {
        let _state = self.lock();
        self.unstalled.fetch_add(1, Release);
        self.tell_vps();
    }

    /// A VP whose write was held up waits until there is room, or it may not run. `before`
    /// is what [`Gate::unstalls`] said before the write.
    pub(crate) fn wait_for_room(&self, before: u64) {
        let mut state = self.lock();
        while state.order == Order::Run && self.unstalls() == before {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tell_vps(&self) {
        self.changed.notify_all();
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    async fn until(&self, done: impl Fn(&State) -> bool) {
        // One waits at a time, the owner, so a permit that is stored is enough.
        while !done(&self.lock()) {
            self.progress.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A VP that runs nothing.
    fn vp(gate: &Arc<Gate>, resets: Result<(), String>) -> thread::JoinHandle<u32> {
        let gate = gate.clone();
        thread::spawn(move || {
            let mut memory = Memory::default();
            let mut runs = 0;
            loop {
                match gate.next(&mut memory) {
                    Task::Run => {
                        runs += 1;
                        while gate.is_open() {
                            thread::yield_now();
                        }
                    }
                    Task::Reset => gate.reset_done(resets.clone()),
                    Task::End => return runs,
                }
            }
        })
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn all_vps_stop_reset_and_run_together() {
        let gate = Arc::new(Gate::new(3));
        let vps: Vec<_> = (0..3).map(|_| vp(&gate, Ok(()))).collect();
        block_on(async {
            gate.held().await;
            for _ in 0..20 {
                assert_eq!(gate.reset().await, Ok(()));
                gate.release();
                gate.close();
                gate.held().await;
            }
        });
        gate.end();
        for vp in vps {
            assert!(vp.join().unwrap() <= 20);
        }
    }

    #[test]
    fn a_vp_that_cannot_reset_is_told() {
        let gate = Arc::new(Gate::new(2));
        let vps = [vp(&gate, Ok(())), vp(&gate, Err("no".to_owned()))];
        let outcome = block_on(async {
            gate.held().await;
            gate.reset().await
        });
        assert_eq!(outcome, Err("no".to_owned()));
        gate.end();
        for vp in vps {
            assert_eq!(vp.join().unwrap(), 0);
        }
    }

    #[test]
    fn a_vp_without_a_thread_is_called_by_the_bell() {
        let gate = Gate::new(1);
        let bell = Arc::new(Bell::new().unwrap());
        gate.ring(bell.clone());
        let mut memory = Memory::default();
        assert_eq!(gate.try_next(&mut memory), None);
        assert_eq!(gate.try_next(&mut memory), None);
        block_on(gate.held());
        assert!(!bell.has_rung());

        gate.release();

        assert!(bell.has_rung());
        assert_eq!(gate.try_next(&mut memory), Some(Task::Run));
        gate.close();
        assert!(bell.has_rung());
        assert_eq!(gate.try_next(&mut memory), None);
        gate.end();
        assert_eq!(gate.try_next(&mut memory), Some(Task::End));
    }

    #[test]
    fn room_that_came_before_the_wait_is_not_missed() {
        let gate = Gate::new(1);
        gate.release();
        let before = gate.unstalls();
        gate.unstalled();
        gate.wait_for_room(before);
        // A VP that may not run does not wait either.
        gate.close();
        gate.wait_for_room(gate.unstalls());
    }

    #[test]
    fn a_waiting_vp_goes_on_when_there_is_room() {
        let gate = Arc::new(Gate::new(1));
        gate.release();
        let before = gate.unstalls();
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || gate.wait_for_room(before))
        };
        gate.unstalled();
        waiter.join().unwrap();
    }
}
