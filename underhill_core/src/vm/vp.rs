//! A VP's thread: it runs the guest, and serves what the guest stops at.

use super::Machine;
use super::exits::Exits;
use super::exits::Served;
use super::gate::Memory;
use super::gate::Task;
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
use virt::Start;
use virt::Vp;

/// Stack of a VP's thread: formatting a report is the deepest that it goes.
const STACK: usize = 128 << 10;

/// What is known of a VP from outside.
#[derive(Debug, Default)]
pub(crate) struct VpStats {
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
enum State {
    Held,
    Running,
    Stalled,
    Ended,
}

impl VpStats {
    fn set(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }

    fn count(&self, exit: &Exit) {
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
    thread::Builder::new()
        .name(format!("vp{index}"))
        .stack_size(STACK)
        .spawn(move || {
            if let Err(error) = super::priority::yield_to_others() {
                tracing::warn!(%error, "VP {index} does not yield to the rest of VTL2");
            }
            let stats = &machine.vps[index as usize];
            match machine.partition.clone().bind(index) {
                Ok(mut vp) => {
                    // Whoever waits for it may have given up because of another one.
                    let _ = bound.send(Ok(()));
                    live(&machine, stats, vp.as_mut());
                }
                Err(error) => {
                    let _ = bound.send(Err(error));
                }
            }
            stats.set(State::Ended);
        })
}

/// Does what the owner says, until it says that this is the end.
fn live(machine: &Machine, stats: &VpStats, vp: &mut dyn Vp) {
    let mut memory = Memory::default();
    loop {
        stats.set(State::Held);
        match machine.gate.next(&mut memory) {
            Task::Run => {
                run(machine, stats, vp);
                if let Ok(registers) = vp.registers() {
                    stats.rip.store(registers.rip, Relaxed);
                }
            }
            Task::Reset => {
                stats.resets.fetch_add(1, Relaxed);
                let start = match vp.index() {
                    0 => Start::Run(*machine.start()),
                    _ => Start::WaitForSipi,
                };
                let outcome = vp.reset(&start);
                let outcome = outcome.map_err(|error| {
                    format!(
                        "VP {} cannot be reset: {}",
                        vp.index(),
                        kernel_log::chain(&error)
                    )
                });
                machine.gate.reset_done(outcome);
            }
            Task::End => return,
        }
    }
}

/// Runs the guest until the gate closes.
fn run(machine: &Machine, stats: &VpStats, vp: &mut dyn Vp) {
    let exits = Exits {
        chipset: &machine.chipset,
        memory: machine.partition.memory(),
        crash: &machine.crash,
    };
    stats.set(State::Running);
    while machine.gate.is_open() {
        // Before the exit that may be held up, so that no room is missed.
        let unstalls = machine.gate.unstalls();
        let exit = match vp.run() {
            Ok(exit) => exit,
            Err(error) => {
                let reason = format!("it cannot run: {}", kernel_log::chain(&error));
                let text = report(vp, &reason, None);
                return machine.herald.tell(Happening::Stopped(text));
            }
        };
        stats.count(&exit);
        match exits.serve(vp, exit) {
            Served::Done => {}
            Served::Stalled => {
                stats.stalls.fetch_add(1, Relaxed);
                stats.set(State::Stalled);
                machine.gate.wait_for_room(unstalls);
                stats.set(State::Running);
            }
            Served::Happened(happening) => return machine.herald.tell(happening),
        }
    }
}
