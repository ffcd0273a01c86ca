//! VPs without threads: one thread has all that are in the sidecar.
//!
//! It sleeps until one of them has stopped, or the gate has something new, and serves their
//! exits one after the other. That is slower than a thread for each, so a VP that uses devices
//! again and again *leaves*: Linux gets its CPU, and the VP a thread.
//!
//! ```text
//!             +------------------- serve ------------------+
//!             v                                            |
//!   asks the gate --Run--> runs --stopped--> exit --enough, or it is its turn--> leaves
//!             ^                               |                                    |
//!             +---- the gate is closed -------+              thread: vp::spawn_leaver
//! ```
//!
//! * Promises: one VP leaves at a time, because Linux boots one CPU at a time; the others run,
//!   also those that are to leave. So no VP stands for longer than its own way takes, however
//!   many are on theirs. A VP leaves when its exit has been served: there is nothing that both
//!   sides would have to know.
//! * A VP that is lost on its way stops the VM with a report, but answers the gate on.

use super::Machine;
use super::bell::Bell;
use super::exits::Served;
use super::gate::Memory;
use super::gate::Task;
use super::place::Reason;
use super::power::Happening;
use super::vp;
use super::vp::State;
use rustix::event::epoll;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use virt::Exit;
use virt::RemoteVp;

/// Stack of the thread: as that of a VP's.
const STACK: usize = 128 << 10;
/// Events that are taken at once.
const EVENTS: usize = 16;
/// Exits for devices that a VP has in the sidecar before it leaves. To leave takes about as
/// long as so many exits take longer than on a CPU of Linux: whatever the guest does later, it
/// has then lost at most twice what it had to.
const EXITS: u32 = 256;
/// What the bell is called among the events; VPs have their indices.
const BELL: u64 = u64::MAX;

/// Where the thread is asked.
pub(crate) struct Remotes {
    bell: Arc<Bell>,
    asks: mpsc::Sender<Ask>,
}

/// Linux shall get the CPU of a VP.
struct Ask {
    vp: u32,
    done: oneshot::Sender<()>,
}

/// A VP has left, or could not.
struct Arrival {
    vp: u32,
    outcome: Result<(), virt::Error>,
}

impl Remotes {
    /// Asks that Linux gets the CPU of `vp`. What is returned ends when it has, when it
    /// cannot, or at once if it has had it.
    pub(crate) fn ask(&self, vp: u32) -> oneshot::Receiver<()> {
        let (done, receiver) = oneshot::channel();
        // Without the thread, all VPs have left.
        let _ = self.asks.send(Ask { vp, done });
        self.bell.ring();
        receiver
    }
}

/// Starts the thread for `vps`.
pub(crate) fn spawn(
    machine: Arc<Machine>,
    vps: Vec<Box<dyn RemoteVp>>,
) -> io::Result<(Remotes, JoinHandle<()>)> {
    let bell = Arc::new(Bell::new()?);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let readable = epoll::EventFlags::IN;
    epoll::add(&epoll, &*bell, epoll::EventData::new_u64(BELL), readable)?;
    let mut driven = BTreeMap::new();
    for vp in vps {
        let index = vp.index();
        let data = epoll::EventData::new_u64(index.into());
        // Told once, since an event that comes late, behind the answer, may never be asked for.
        let once = readable | epoll::EventFlags::ET;
        epoll::add(&epoll, vp.event(), data, once)?;
        machine.vps[index as usize].place.in_sidecar();
        driven.insert(index, Driven::new(vp));
    }
    machine.gate.ring(bell.clone());
    let (asks, receiver) = mpsc::channel();
    let (arrival, arrivals) = mpsc::channel();
    let driver = Driver {
        machine,
        epoll,
        bell: bell.clone(),
        vps: driven,
        queue: VecDeque::new(),
        leaving: None,
        asks: receiver,
        arrival,
        arrivals,
        waiting: Vec::new(),
    };
    let thread = thread::Builder::new()
        .name("sidecar".to_owned())
        .stack_size(STACK)
        .spawn(move || driver.live())?;
    Ok((Remotes { bell, asks }, thread))
}

/// A VP that the thread has.
struct Driven {
    body: Body,
    memory: Memory,
    doing: Doing,
    /// Exits for devices so far.
    exits: u32,
}

enum Body {
    Vp(Box<dyn RemoteVp>),
    /// A thread has it, which prepares the CPU.
    Leaving,
    /// It cannot run any more; why.
    Lost(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Waits for the gate.
    Asks,
    /// May run as long as the gate is open.
    Ready,
    /// Runs the guest; `unstalls` is what the gate said before.
    Runs { unstalls: u64 },
    /// A device could not take a write.
    Stalled { unstalls: u64 },
    /// The gate has said that this is the end.
    Ended,
}

impl Driven {
    fn new(vp: Box<dyn RemoteVp>) -> Self {
        Self {
            body: Body::Vp(vp),
            memory: Memory::default(),
            doing: Doing::Asks,
            exits: 0,
        }
    }
}

struct Driver {
    machine: Arc<Machine>,
    epoll: OwnedFd,
    bell: Arc<Bell>,
    vps: BTreeMap<u32, Driven>,
    /// Those that are to leave.
    queue: VecDeque<(u32, Reason)>,
    /// The one that does.
    leaving: Option<u32>,
    asks: mpsc::Receiver<Ask>,
    arrival: mpsc::Sender<Arrival>,
    arrivals: mpsc::Receiver<Arrival>,
    waiting: Vec<Ask>,
}

impl Driver {
    fn live(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        self.all();
        while !self.vps.is_empty() {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let reason = format!("VPs in the sidecar cannot be waited for: {error}");
                    return self.machine.herald.tell(Happening::Stopped(reason));
                }
            }
            for event in &events {
                match event.data.u64() {
                    BELL => {
                        self.bell.has_rung();
                        self.arrived();
                        self.asked();
                        self.all();
                    }
                    vp => self.step(vp as u32),
                }
            }
            self.next_leaves();
        }
    }

    fn all(&mut self) {
        let vps: Vec<_> = self.vps.keys().copied().collect();
        for vp in vps {
            self.step(vp);
        }
    }

    /// Goes on with a VP until it runs, or must wait.
    fn step(&mut self, index: u32) {
        let Some(driven) = self.vps.get_mut(&index) else {
            return;
        };
        let machine = &self.machine;
        let stats = &machine.vps[index as usize];
        let vp = match &mut driven.body {
            Body::Vp(vp) => vp.as_mut(),
            Body::Leaving => return,
            Body::Lost(reason) => {
                answer_for(machine, &mut driven.memory, &mut driven.doing, reason);
                return self.forget_ended(index);
            }
        };
        loop {
            driven.doing = match driven.doing {
                Doing::Asks => match machine.gate.try_next(&mut driven.memory) {
                    None => return stats.set(State::Held),
                    Some(Task::Run) => Doing::Ready,
                    Some(Task::Reset) => {
                        machine.gate.reset_done(vp::reset(machine, stats, vp));
                        Doing::Asks
                    }
                    Some(Task::End) => Doing::Ended,
                },
                Doing::Ready => start(machine, vp),
                Doing::Runs { unstalls } => match vp.stopped() {
                    Ok(None) => return,
                    Ok(Some(exit)) => {
                        stats.count(&exit);
                        let reason = Reason::of(&exit);
                        driven.exits = driven.exits.saturating_add(reason.is_some().into());
                        if let Some(reason) = reason
                            && machine.leave_on_exit
                            && driven.exits >= EXITS
                            && !self.queue.iter().any(|(queued, _)| *queued == index)
                        {
                            self.queue.push_back((index, reason));
                        }
                        serve(machine, vp, exit, unstalls)
                    }
                    Err(error) => {
                        vp::cannot_run(machine, vp, &error);
                        Doing::Asks
                    }
                },
                Doing::Stalled { .. } if !machine.gate.is_open() => Doing::Asks,
                Doing::Stalled { unstalls } if machine.gate.unstalls() == unstalls => {
                    return stats.set(State::Stalled);
                }
                Doing::Stalled { .. } => Doing::Ready,
                Doing::Ended => {
                    stats.set(State::Ended);
                    return self.forget_ended(index);
                }
            };
            let turn = self.leaving.is_none()
                && self
                    .queue
                    .front()
                    .is_some_and(|(queued, _)| *queued == index);
            if turn && !matches!(driven.doing, Doing::Runs { .. } | Doing::Ended) {
                return self.leave(index);
            }
        }
    }

    fn forget_ended(&mut self, index: u32) {
        if self
            .vps
            .get(&index)
            .is_some_and(|driven| driven.doing == Doing::Ended)
        {
            self.vps.remove(&index);
        }
    }

    /// Lets the next VP leave, if it can.
    fn next_leaves(&mut self) {
        while self.leaving.is_none()
            && let Some((index, _)) = self.queue.front()
        {
            let index = *index;
            match self.vps.get(&index) {
                Some(Driven {
                    body: Body::Vp(_),
                    doing: Doing::Runs { .. },
                    ..
                }) => return self.machine.partition.cancel(index),
                Some(Driven {
                    body: Body::Vp(_), ..
                }) => self.leave(index),
                _ => drop(self.queue.pop_front()),
            }
        }
    }

    /// The first of the queue leaves. It does not run.
    fn leave(&mut self, index: u32) {
        let Some((_, reason)) = self.queue.pop_front() else {
            return;
        };
        let Some(driven) = self.vps.get_mut(&index) else {
            return;
        };
        let Body::Vp(vp) = std::mem::replace(&mut driven.body, Body::Leaving) else {
            return;
        };
        tracing::debug!(%reason, "VP {index} leaves the sidecar");
        self.machine.vps[index as usize].place.leaves(reason);
        self.leaving = Some(index);
        // Nobody waits for it here any more.
        let _ = epoll::delete(&self.epoll, vp.event());
        let (arrival, bell) = (self.arrival.clone(), self.bell.clone());
        let done = move |outcome| {
            // The thread that listens ends after this.
            let _ = arrival.send(Arrival { vp: index, outcome });
            bell.ring();
        };
        let memory = driven.memory.clone();
        match vp::spawn_leaver(self.machine.clone(), vp, memory, done) {
            Ok(thread) => self.machine.threads().push(thread),
            Err(error) => self.lost(index, &format!("its thread cannot be started: {error}")),
        }
    }

    fn arrived(&mut self) {
        while let Ok(Arrival { vp, outcome }) = self.arrivals.try_recv() {
            match outcome {
                Ok(()) => {
                    self.leaving = None;
                    self.vps.remove(&vp);
                    self.machine.vps[vp as usize].place.left(&Ok(()));
                }
                Err(error) => self.lost(vp, &kernel_log::chain(&error)),
            }
            self.answer();
        }
    }

    /// A VP is lost between sidecar and Linux.
    fn lost(&mut self, index: u32, error: &str) {
        let reason = format!("VP {index} is lost between sidecar and Linux: {error}");
        self.leaving = None;
        let place = &self.machine.vps[index as usize].place;
        place.left(&Err(reason.clone()));
        if let Some(driven) = self.vps.get_mut(&index) {
            driven.body = Body::Lost(reason.clone());
            driven.doing = Doing::Asks;
        }
        self.machine.herald.tell(Happening::Stopped(reason));
        self.step(index);
    }

    fn asked(&mut self) {
        while let Ok(ask) = self.asks.try_recv() {
            let queued = self.queue.iter().any(|(vp, _)| *vp == ask.vp);
            let here = matches!(
                self.vps.get(&ask.vp),
                Some(Driven {
                    body: Body::Vp(_),
                    ..
                })
            );
            if here && !queued {
                self.queue.push_back((ask.vp, Reason::Request));
            }
            self.waiting.push(ask);
        }
        self.answer();
    }

    /// Tells those who wait for VPs that are not on their way any more.
    fn answer(&mut self) {
        let (leaving, queue) = (self.leaving, &self.queue);
        let pending =
            |ask: &mut Ask| leaving == Some(ask.vp) || queue.iter().any(|(vp, _)| *vp == ask.vp);
        for ask in self.waiting.extract_if(.., |ask| !pending(ask)) {
            // It may not wait any more.
            let _ = ask.done.send(());
        }
    }
}

/// Has the guest run.
fn start(machine: &Machine, vp: &mut dyn RemoteVp) -> Doing {
    if !machine.gate.is_open() {
        return stop(machine, vp);
    }
    machine.vps[vp.index() as usize].set(State::Running);
    // Before the exit that may be held up, so that no room is missed.
    let unstalls = machine.gate.unstalls();
    match vp.start() {
        Ok(()) => Doing::Runs { unstalls },
        Err(error) => {
            vp::cannot_run(machine, vp, &error);
            Doing::Asks
        }
    }
}

fn stop(machine: &Machine, vp: &mut dyn RemoteVp) -> Doing {
    machine.vps[vp.index() as usize].note(vp);
    Doing::Asks
}

fn serve(machine: &Machine, vp: &mut dyn RemoteVp, exit: Exit, unstalls: u64) -> Doing {
    match machine.exits().serve(vp, exit) {
        Served::Done => Doing::Ready,
        Served::Stalled => {
            machine.vps[vp.index() as usize].stalled();
            Doing::Stalled { unstalls }
        }
        Served::Happened(happening) => {
            let doing = stop(machine, vp);
            machine.herald.tell(happening);
            doing
        }
    }
}

/// What a VP says at the gate that there is no more.
fn answer_for(machine: &Machine, memory: &mut Memory, doing: &mut Doing, reason: &str) {
    while *doing == Doing::Asks
        && let Some(task) = machine.gate.try_next(memory)
    {
        match task {
            Task::Run => machine.herald.tell(Happening::Stopped(reason.to_owned())),
            Task::Reset => machine.gate.reset_done(Err(reason.to_owned())),
            Task::End => *doing = Doing::Ended,
        }
    }
}

#[cfg(test)]
mod tests;
