//! A VP's thread: it runs the guest, and serves what the guest stops at.

use super::Machine;
use super::exits::Served;
use super::gate::Memory;
use super::gate::Task;
use super::place::Place;
use super::power::Happening;
use super::report::report;
use inspect::Inspect;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use virt::Exit;
use virt::RemoteVp;
use virt::Start;
use virt::Vp;

/// Stack of a VP's thread: formatting a report is the deepest that it goes.
const STACK: usize = 128 << 10;

/// What is known of a VP from outside.
#[derive(Debug, Default)]
pub(crate) struct VpStats {
    /// Where it runs.
    pub(super) place: Place,
    state: AtomicU8,
    ports: AtomicU64,
    memory: AtomicU64,
    msrs: AtomicU64,
    cpuid: AtomicU64,
    ends_of_interrupt: AtomicU64,
    cancelled: AtomicU64,
    others: AtomicU64,
    stalls: AtomicU64,
    resets: AtomicU64,
    /// Where it was when it was held last.
    rip: AtomicU64,
}

/// What a VP does. The order is that of [`VpStats::state`]'s numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Held,
    Running,
    Stalled,
    Ended,
}

impl VpStats {
    pub(super) fn set(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }

    pub(super) fn stalled(&self) {
        self.stalls.fetch_add(1, Relaxed);
        self.set(State::Stalled);
    }

    /// Notes where a VP is that does not run any more.
    pub(super) fn note(&self, vp: &mut dyn Vp) {
        if let Ok(registers) = vp.registers() {
            self.rip.store(registers.rip, Relaxed);
        }
    }

    pub(super) fn count(&self, exit: &Exit) {
        let counter = match exit {
            Exit::Cancelled => &self.cancelled,
            Exit::Port(_) => &self.ports,
            Exit::Memory(_) => &self.memory,
            Exit::Msr(_) => &self.msrs,
            Exit::Cpuid(_) => &self.cpuid,
            Exit::Eoi { .. } => &self.ends_of_interrupt,
            Exit::Halt | Exit::TripleFault | Exit::Unknown { .. } => &self.others,
        };
        counter.fetch_add(1, Relaxed);
    }
}

impl Inspect for VpStats {
    fn inspect(&self, request: inspect::Request<'_>) {
        let state = match self.state.load(Relaxed) {
            0 => "held",
            1 => "running",
            2 => "stalled",
            _ => "ended",
        };
        request
            .respond()
            .field("state", state)
            .merge(&self.place)
            .counter("stalls", &self.stalls)
            .counter("resets", &self.resets)
            .hex("held_at_rip", &self.rip)
            .child("exits", |request| {
                request
                    .respond()
                    .counter("port", &self.ports)
                    .counter("memory", &self.memory)
                    .counter("msr", &self.msrs)
                    .counter("cpuid", &self.cpuid)
                    .counter("end_of_interrupt", &self.ends_of_interrupt)
                    .counter("cancelled", &self.cancelled)
                    .counter("other", &self.others);
            });
    }
}

/// Starts the thread of VP `index`. `bound` is told when it has the VP.
pub(crate) fn spawn(
    machine: Arc<Machine>,
    index: u32,
    bound: oneshot::Sender<Result<(), virt::Error>>,
) -> io::Result<JoinHandle<()>> {
    thread(index).spawn(move || {
        match bind(&machine, index) {
            Ok(mut vp) => {
                // Whoever waits for it may have given up because of another one.
                let _ = bound.send(Ok(()));
                live(&machine, vp.as_mut(), Memory::default());
            }
            Err(error) => {
                let _ = bound.send(Err(error));
            }
        }
        machine.vps[index as usize].set(State::Ended);
    })
}

/// Starts the thread of a VP that leaves the sidecar: it first has Linux boot the CPU. `done`
/// is called when the thread has the VP, or never will; then the thread ends.
pub(super) fn spawn_leaver(
    machine: Arc<Machine>,
    vp: Box<dyn RemoteVp>,
    memory: Memory,
    done: impl FnOnce(Result<(), virt::Error>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let index = vp.index();
    thread(index).spawn(
        move || match vp.leave().and_then(|()| bind(&machine, index)) {
            Ok(mut vp) => {
                done(Ok(()));
                live(&machine, vp.as_mut(), memory);
                machine.vps[index as usize].set(State::Ended);
            }
            Err(error) => done(Err(error)),
        },
    )
}

fn thread(index: u32) -> thread::Builder {
    thread::Builder::new()
        .name(format!("vp{index}"))
        .stack_size(STACK)
}

fn bind(machine: &Machine, index: u32) -> Result<Box<dyn Vp>, virt::Error> {
    if let Err(error) = super::priority::yield_to_others() {
        tracing::warn!(%error, "VP {index} does not yield to the rest of VTL2");
    }
    machine.partition.clone().bind(index)
}

/// Does what the owner says, until it says that this is the end.
fn live(machine: &Machine, vp: &mut dyn Vp, mut memory: Memory) {
    let stats = &machine.vps[vp.index() as usize];
    loop {
        stats.set(State::Held);
        match machine.gate.next(&mut memory) {
            Task::Run => {
                run(machine, stats, vp);
                stats.note(vp);
            }
            Task::Reset => machine.gate.reset_done(reset(machine, stats, vp)),
            Task::End => return,
        }
    }
}

/// Resets a VP that does not run.
pub(super) fn reset(machine: &Machine, stats: &VpStats, vp: &mut dyn Vp) -> Result<(), String> {
    stats.resets.fetch_add(1, Relaxed);
    let start = match vp.index() {
        0 => Start::Run(*machine.start()),
        _ => Start::WaitForSipi,
    };
    vp.reset(&start).map_err(|error| {
        format!(
            "VP {} cannot be reset: {}",
            vp.index(),
            kernel_log::chain(&error)
        )
    })
}

/// Tells that a VP cannot run.
pub(super) fn cannot_run(machine: &Machine, vp: &mut dyn Vp, error: &virt::Error) {
    let reason = format!("it cannot run: {}", kernel_log::chain(error));
    let text = report(vp, &reason, None);
    machine.herald.tell(Happening::Stopped(text));
}

/// Runs the guest until the gate closes.
fn run(machine: &Machine, stats: &VpStats, vp: &mut dyn Vp) {
    let exits = machine.exits();
    stats.set(State::Running);
    while machine.gate.is_open() {
        // Before the exit that may be held up, so that no room is missed.
        let unstalls = machine.gate.unstalls();
        let exit = match vp.run() {
            Ok(exit) => exit,
            Err(error) => return cannot_run(machine, vp, &error),
        };
        stats.count(&exit);
        match exits.serve(vp, exit) {
            Served::Done => {}
            Served::Stalled => {
                stats.stalled();
                machine.gate.wait_for_room(unstalls);
                stats.set(State::Running);
            }
            Served::Happened(happening) => return machine.herald.tell(happening),
        }
    }
}
