//! The guest and its machine: VPs of a partition, a chipset, and what holds them together.
//!
//! ```text
//!   VP threads          run the guest, serve its exits on the chipset       [`vp`], [`exits`]
//!   one for the sidecar the same, for VPs that have no thread               [`remote`]
//!      | tell()                                      | Wake, ApicBus        [`devices`]
//!      v                                             v
//!   the worker's thread: [`Vm`], the owner      poller, serial clients      [`serial`]
//! ```
//!
//! * Promises: the machine is never half stopped. Whatever concerns all of it (reset, pause,
//!   save, the guest's end) is done by the owner, while the [`gate`] holds every VP.
//! * Lock order: a device's lock, then the gate's or a port's. Nobody takes a device's lock
//!   while holding another.
//! * The guest is not trusted: an exit has any value, and what cannot be served stops the
//!   VM with a [`report`], not the process.

mod bell;
mod crash;
mod devices;
mod emulate;
mod exits;
mod gate;
mod hand_over;
mod load;
mod payload;
mod place;
mod power;
mod priority;
mod remote;
mod report;
mod saved;
mod serial;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod threads;
mod vp;

pub(crate) use payload::DIRECTORY;
pub(crate) use payload::KERNEL;
pub(crate) use power::Happening;
pub(crate) use saved::SavedVm;
pub(crate) use serial::COM1_VSOCK;
pub(crate) use serial::COM2_VSOCK;

use crate::clock::Stamp;
use crate::protocol::GuestEvent;
use crate::protocol::OnGuestCrash;
use byte_stream::Listener;
use chipset::Chipset;
use chipset::LifecycleError;
use crash::Crash;
use exits::Exits;
use gate::Gate;
use inspect::Inspect;
use inspect::Unit;
use load::LoadError;
use payload::Payload;
use payload::PayloadError;
use power::Herald;
use remote::Remotes;
use serial::Port;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use virt::Partition;
use virt::VpState;
use vp::VpStats;

/// How long a serial client may take to fetch the guest's last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Reports that are logged in full; of those that follow, some are.
const REPORTS_LOGGED: u64 = 4;

/// Names of the serial ports.
const SERIAL: [&str; 2] = ["com1", "com2"];

/// Why there is no running guest.
#[derive(Debug, Error)]
pub(crate) enum VmError {
    /// A thread of a VP.
    #[error("the thread of VP {vp} cannot be started")]
    Thread {
        vp: u32,
        #[source]
        error: io::Error,
    },
    /// Its VP.
    #[error("VP {vp} cannot be used")]
    Bind {
        vp: u32,
        #[source]
        error: virt::Error,
    },
    /// It ended without a word.
    #[error("the thread of VP {vp} has ended")]
    Ended { vp: u32 },
    /// The thread for VPs that have none.
    #[error("the thread for VPs in the sidecar cannot be started")]
    Sidecar(#[source] io::Error),
    /// The guest's files.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// They were there when the VM was made.
    #[error("there is no kernel for the guest any more")]
    NoKernel,
    /// The guest.
    #[error("the guest cannot be loaded")]
    Load(#[from] LoadError),
    /// The VPs.
    #[error("{0}")]
    Reset(String),
    /// The chipset.
    #[error(transparent)]
    Chipset(#[from] LifecycleError),
}

/// What a VM is made of.
pub(crate) struct Setup {
    /// Directory of the guest's files.
    pub(crate) payload: PathBuf,
    /// What is done when the guest has crashed.
    pub(crate) on_crash: OnGuestCrash,
    /// Where clients of COM1 and COM2 come from.
    pub(crate) listeners: [Option<Listener>; 2],
    /// A VP leaves the sidecar when its exits tell that more will come.
    pub(crate) leave_on_exit: bool,
}

/// What all threads share.
pub(crate) struct Machine {
    partition: Arc<dyn Partition>,
    chipset: Chipset,
    gate: Arc<Gate>,
    herald: Herald,
    crash: Crash,
    /// How VP 0 starts.
    start: Mutex<VpState>,
    vps: Vec<VpStats>,
    leave_on_exit: bool,
    /// All that run.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Machine {
    fn start(&self) -> MutexGuard<'_, VpState> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exits(&self) -> Exits<'_> {
        Exits {
            chipset: &self.chipset,
            memory: self.partition.memory(),
            crash: &self.crash,
        }
    }
}

/// Where the guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestState {
    /// Not started yet.
    New,
    /// Its VPs run.
    Running,
    /// A client has paused it.
    Paused,
    /// It has switched itself off.
    PoweredOff,
    /// It has crashed and stays as it is.
    Crashed,
    /// The VM could not go on with it.
    Stopped,
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::PoweredOff => "powered_off",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
        })
    }
}

/// The owner of a VM. It lives on the worker's thread.
pub(crate) struct Vm {
    machine: Arc<Machine>,
    serial: [Port; 2],
    happened: mpsc::UnboundedReceiver<Happening>,
    poller: Arc<Notify>,
    payload: PathBuf,
    on_crash: OnGuestCrash,
    state: GuestState,
    resets: u64,
    /// The last report.
    report: Option<String>,
    /// Reports so far.
    reports: u64,
    /// Where VPs are asked to leave the sidecar, if any is there.
    remotes: Option<Remotes>,
    /// Of COM1 and COM2, until their clients are served.
    listeners: [Option<Listener>; 2],
    /// The poller, and those who serve the serial ports' clients. They end with this.
    tasks: JoinSet<()>,
}

impl Vm {
    /// A machine whose VPs are held. Must be called within a tokio runtime.
    pub(crate) async fn new(partition: Arc<dyn Partition>, setup: Setup) -> Result<Self, VmError> {
        let vps = partition.vp_count();
        let gate = Arc::new(Gate::new(vps as usize));
        let (sender, happened) = mpsc::unbounded_channel();
        let herald = Herald::new(gate.clone(), partition.clone(), sender);
        let poller = Arc::new(Notify::new());
        let serial = [Port::default(), Port::default()];
        let chipset = devices::chipset(
            partition.clone(),
            gate.clone(),
            herald.clone(),
            poller.clone(),
            &serial,
        );
        let machine = Arc::new(Machine {
            partition,
            chipset,
            gate,
            herald,
            crash: Crash::default(),
            start: Mutex::new(VpState::at_reset()),
            vps: (0..vps).map(|_| VpStats::default()).collect(),
            leave_on_exit: setup.leave_on_exit,
            threads: Mutex::default(),
        });
        let mut vm = Self {
            machine,
            serial,
            happened,
            poller,
            payload: setup.payload,
            on_crash: setup.on_crash,
            state: GuestState::New,
            resets: 0,
            report: None,
            reports: 0,
            remotes: None,
            listeners: setup.listeners,
            tasks: JoinSet::new(),
        };
        vm.start_threads().await?;
        vm.tasks.spawn(poll(vm.machine.clone(), vm.poller.clone()));
        Ok(vm)
    }

    /// From now on the serial ports' clients are served. Others wait to be accepted.
    fn serve_clients(&mut self) {
        for (index, listener) in std::mem::take(&mut self.listeners).into_iter().enumerate() {
            if let Some(listener) = listener {
                self.serve(index, listener);
            }
        }
    }

    fn serve(&mut self, index: usize, listener: Listener) {
        let port = self.serial[index].clone();
        let machine = self.machine.clone();
        self.tasks.spawn(async move {
            let poll = || {
                let uart = match index {
                    0 => machine.chipset.com1(),
                    _ => machine.chipset.com2(),
                };
                uart.with(chipset::Device::poll);
            };
            if let Err(error) = serial::serve(port, listener, poll).await {
                tracing::error!(%error, "{} has no more clients", SERIAL[index]);
            }
        });
    }

    /// Starts the guest. Adds moments to `stamps`.
    pub(crate) async fn boot(&mut self, stamps: &mut Vec<Stamp>) -> Result<(), VmError> {
        self.serve_clients();
        self.machine.gate.held().await;
        self.load().await?;
        stamps.push(Stamp::now("vtl0_loaded"));
        self.machine.chipset.start()?;
        self.run();
        stamps.push(Stamp::now("vtl0_started"));
        Ok(())
    }

    /// Pauses the guest, if it runs.
    pub(crate) async fn pause(&mut self) -> Result<(), Refused> {
        if self.state != GuestState::Running {
            return Err(Refused {
                action: "paused",
                state: self.state,
            });
        }
        let held = self.hold().await;
        self.state = GuestState::Paused;
        if let Err(error) = held {
            self.stop(kernel_log::chain(&error));
        }
        Ok(())
    }

    /// Lets a paused guest go on.
    pub(crate) fn resume(&mut self) -> Result<(), Refused> {
        if self.state != GuestState::Paused {
            return Err(Refused {
                action: "resumed",
                state: self.state,
            });
        }
        match self.machine.chipset.resume() {
            Ok(()) => self.run(),
            Err(error) => {
                self.stop(kernel_log::chain(&error));
            }
        }
        Ok(())
    }

    /// Waits until something has happened that [`Vm::handle`] must see. Nothing does while
    /// the guest does not run.
    pub(crate) async fn happened(&mut self) -> Happening {
        if self.state == GuestState::Running
            && let Some(happening) = self.happened.recv().await
        {
            return happening;
        }
        std::future::pending().await
    }

    /// Does what `happening` demands, and says what others should know.
    pub(crate) async fn handle(&mut self, happening: Happening) -> Vec<GuestEvent> {
        if let Err(error) = self.hold().await {
            return vec![self.stop(kernel_log::chain(&error))];
        }
        // What other VPs have said meanwhile came too late.
        while self.happened.try_recv().is_ok() {}
        match happening {
            Happening::PoweredOff => {
                self.state = GuestState::PoweredOff;
                self.last_words().await;
                vec![GuestEvent::PoweredOff]
            }
            Happening::Reset(source) => vec![self.reset(source).await],
            Happening::Stopped(report) => vec![self.stop(report)],
            Happening::Crashed(report) => self.crashed(report).await,
        }
    }

    async fn crashed(&mut self, report: String) -> Vec<GuestEvent> {
        self.tell("the guest has crashed", &report);
        self.state = GuestState::Crashed;
        let mut events = vec![GuestEvent::Crashed {
            report,
            action: self.on_crash,
        }];
        match self.on_crash {
            OnGuestCrash::Halt => {}
            OnGuestCrash::Reset => events.push(self.reset("crash".to_owned()).await),
            OnGuestCrash::PowerOff => self.last_words().await,
        }
        events
    }

    /// Starts the guest anew. All VPs are held, the chipset is paused.
    async fn reset(&mut self, source: String) -> GuestEvent {
        self.resets = self.resets.saturating_add(1);
        match self.restart().await {
            Ok(()) => GuestEvent::Reset {
                source,
                count: self.resets,
            },
            Err(error) => self.stop(kernel_log::chain(&error)),
        }
    }

    async fn restart(&mut self) -> Result<(), VmError> {
        self.machine.chipset.reset()?;
        self.machine.crash.reset();
        self.load().await?;
        self.machine.chipset.resume()?;
        self.run();
        Ok(())
    }

    /// Brings memory and VPs to the state in which the guest starts.
    ///
    /// VPs come first: with their reset the host takes its pages (hypercall page, clock)
    /// out of the guest's memory, and what had been below them appears again.
    async fn load(&mut self) -> Result<(), VmError> {
        let partition = &self.machine.partition;
        let (memory, vps) = (partition.memory(), partition.vp_count());
        let payload = Payload::open(&self.payload)?.ok_or(VmError::NoKernel)?;
        let registers = load::registers(&payload, memory, vps)?;
        *self.machine.start() = VpState::from(&registers);
        self.machine.gate.reset().await.map_err(VmError::Reset)?;
        Ok(load::import(&payload, memory, vps)?)
    }

    /// Holds the VPs and pauses the chipset, whatever they did.
    async fn hold(&mut self) -> Result<(), LifecycleError> {
        self.machine.herald.stop_vps();
        self.machine.gate.held().await;
        if self.state == GuestState::Running {
            self.machine.chipset.pause()?;
        }
        Ok(())
    }

    fn run(&mut self) {
        self.state = GuestState::Running;
        self.machine.gate.release();
        // Something may be due since before.
        self.poller.notify_one();
    }

    /// The VM cannot go on with this guest.
    fn stop(&mut self, report: String) -> GuestEvent {
        self.tell("the VM has stopped", &report);
        self.state = GuestState::Stopped;
        GuestEvent::Stopped { report }
    }

    /// Keeps a report and logs it: all of it at first, ever more rarely if the guest goes on
    /// to crash.
    fn tell(&mut self, what: &str, report: &str) {
        self.report = Some(report.to_owned());
        self.reports = self.reports.saturating_add(1);
        if self.reports <= REPORTS_LOGGED || self.reports.is_power_of_two() {
            tracing::error!("{what}, report {}", self.reports);
            for line in report.lines() {
                tracing::error!("{line}");
            }
        }
    }

    async fn last_words(&self) {
        let [com1, com2] = &self.serial;
        tokio::join!(com1.finish(LAST_WORDS), com2.finish(LAST_WORDS));
    }
}

impl Drop for Vm {
    /// Threads and tasks have a part in the machine, so each would keep it and the others:
    /// a VM that was given up would go on to take clients.
    fn drop(&mut self) {
        self.end_vps();
    }
}

/// Polls the chipset whenever something is due, for ever.
async fn poll(machine: Arc<Machine>, poller: Arc<Notify>) {
    loop {
        match machine.chipset.poll() {
            Some(due) => {
                // Whichever comes first: there may be something earlier meanwhile.
                let _ = tokio::time::timeout(devices::until(due), poller.notified()).await;
            }
            None => poller.notified().await,
        }
    }
}

/// Something that the guest's state does not allow.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("the guest is {state} and cannot be {action}")]
pub(crate) struct Refused {
    action: &'static str,
    state: GuestState,
}

impl Inspect for Vm {
    fn inspect(&self, request: inspect::Request<'_>) {
        let machine = &self.machine;
        request
            .respond()
            .child("guest", |request| {
                request
                    .respond()
                    .display("state", &self.state)
                    .counter("resets", &self.resets)
                    .unit("memory", Unit::Bytes, &machine.partition.memory().size())
                    .child("report", |request| match &self.report {
                        Some(report) => {
                            request.respond().merge(&inspect::iter(
                                report.lines().enumerate().map(|(index, line)| {
                                    (format!("{index:02}"), inspect::printable(line).into_owned())
                                }),
                            ));
                        }
                        None => request.ignore(),
                    });
            })
            .child("vp", |request| {
                let vps = machine.vps.iter().enumerate();
                let mut response = request.respond();
                for (index, stats) in vps {
                    response.field(&index.to_string(), stats);
                }
            })
            .field("partition", &machine.partition)
            .field("chipset", &machine.chipset)
            .child("serial", |request| {
                let mut response = request.respond();
                for (name, port) in SERIAL.iter().zip(&self.serial) {
                    response.field(name, port);
                }
            });
    }
}
