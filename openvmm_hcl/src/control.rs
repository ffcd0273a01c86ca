//! The control loop: the only place that starts and ends workers.
//!
//! It reacts to three things: requests (of the diagnostics), reports of the task that
//! watches the worker, and signals of PID 1. Nothing in it waits for a worker, so it
//! answers whatever state the worker is in.

use crate::events::GuestLog;
use crate::events::event;
use crate::instance::Command;
use crate::instance::EVENT_MAX;
use crate::instance::End;
use crate::instance::Instance;
use crate::instance::Patience;
use crate::instance::QUEUE;
use crate::instance::Report;
use crate::instance::WatchdogStats;
use crate::line_limit::Line;
use crate::line_limit::LineLimit;
use crate::policy::Policy;
use crate::policy::Verdict;
use crate::requests::ControlRequest;
use crate::requests::Refusal;
use crate::requests::StartOptions;
use crate::state::Paravisor;
use crate::state::Phase;
use crate::state::RunningWorker;
use boot_events::WORKER_DIED_PREFIX;
use boot_events::WORKER_READY_PREFIX;
use kernel_log::Level;
use mesh::Bytes;
use mesh::Reply;
use mesh::process::ProcessConfig;
use nix::sys::signal::Signal;
use openhcl_config::Start;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use tokio::signal::unix::Signal as SignalStream;
use tokio::sync::mpsc;
use underhill_core::PERSONA;
use underhill_core::Parameters;
use underhill_core::protocol::GuestEvent;
use underhill_core::protocol::MemoryRange;
use underhill_core::protocol::OnGuestCrash;
use underhill_core::protocol::Settings;
use underhill_core::protocol::SidecarNode;
use underhill_core::protocol::Topology;

/// Lines that a worker may write to standard error at once, and the time after which it may
/// write one more.
const WORKER_LINES: u32 = 100;
const WORKER_LINE_INTERVAL: Duration = Duration::from_millis(100);

/// Why the control loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Somebody asked for it.
    Asked,
    /// The paravisor shall crash, because a client wants that.
    Crash,
    /// The machine was to end once it had booted, but the worker has failed.
    Failed(String),
}

/// What is to follow the end of a worker that was asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum After {
    /// Nobody asked: it is a crash.
    Nothing,
    /// Another one, which goes on from its state.
    Restart,
    /// Nothing, until a client wants one.
    Stop,
    /// The end of the paravisor.
    End(Ending),
}

/// A client that waits for the outcome of its request.
type Waiting = Reply<Result<(), Refusal>>;

/// What the loop is made of.
pub(crate) struct Controller {
    paravisor: Arc<Paravisor>,
    policy: Policy,
    /// Tells once that the paravisor is up; taken when it has.
    announce: Option<Box<dyn FnOnce() + Send>>,
    /// End when up.
    exit_after_boot: bool,
    options: StartOptions,
    commands: Option<mpsc::Sender<Command>>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    after: After,
    waiting: Vec<Waiting>,
    next_generation: u32,
    guest_log: GuestLog,
    ending: Option<Ending>,
}

impl Controller {
    /// A loop that has not started. `announce` is called when the first worker is ready,
    /// or when it is clear that it has to wait.
    pub(crate) fn new(
        paravisor: Arc<Paravisor>,
        announce: impl FnOnce() + Send + 'static,
        exit_after_boot: bool,
    ) -> Self {
        let policy = Policy::new(&paravisor.config.worker);
        Self {
            paravisor,
            policy,
            announce: Some(Box::new(announce)),
            exit_after_boot,
            options: StartOptions::default(),
            commands: None,
            reports: mpsc::channel(QUEUE),
            after: After::Nothing,
            waiting: Vec::new(),
            next_generation: 0,
            guest_log: GuestLog::default(),
            ending: None,
        }
    }

    /// Runs until the paravisor is to end and its worker has ended.
    pub(crate) async fn run(
        mut self,
        mut requests: mesh::Receiver<ControlRequest>,
        [mut terminate, mut interrupt]: [SignalStream; 2],
    ) -> Ending {
        match *self.paravisor.config.worker.start {
            Start::Now => self.launch(None),
            Start::Wait => self.up(),
        }
        let mut listening = true;
        loop {
            if let Some(ending) = self.ending.take() {
                return ending;
            }
            tokio::select! {
                request = requests.recv(), if listening => match request {
                    Ok(request) => self.request(request),
                    // The diagnostics are off or have ended; signals still come.
                    Err(_) => listening = false,
                },
                Some(report) = self.reports.1.recv() => self.report(report),
                _ = terminate.recv() => self.asked_by(Signal::SIGTERM),
                _ = interrupt.recv() => self.asked_by(Signal::SIGINT),
            }
        }
    }

    fn asked_by(&mut self, signal: Signal) {
        tracing::info!("{signal} asks for the end");
        self.end(Ending::Asked);
    }

    fn request(&mut self, request: ControlRequest) {
        let phase = self.phase();
        match request {
            ControlRequest::Start(rpc) => {
                let (options, reply) = rpc.into_parts();
                match phase {
                    Phase::WaitingForStart | Phase::Stopped | Phase::Failed => {
                        self.options = options;
                        self.policy.reset();
                        self.waiting.push(reply);
                        self.launch(None);
                    }
                    phase => reply.complete(Err(wrong_state("started", phase))),
                }
            }
            ControlRequest::Stop(rpc) => {
                let ((), reply) = rpc.into_parts();
                match phase {
                    Phase::Starting | Phase::Started => {
                        self.waiting.push(reply);
                        self.stop_worker(After::Stop, Phase::Stopping);
                    }
                    phase => reply.complete(Err(wrong_state("stopped", phase))),
                }
            }
            ControlRequest::Restart(rpc) => {
                let ((), reply) = rpc.into_parts();
                match phase {
                    Phase::Started => {
                        tracing::info!("a client asks for a restart of the VM worker");
                        self.waiting.push(reply);
                        self.stop_worker(After::Restart, Phase::Restarting);
                    }
                    Phase::Failed | Phase::Stopped => {
                        self.policy.reset();
                        self.waiting.push(reply);
                        self.launch(None);
                    }
                    phase => reply.complete(Err(wrong_state("restarted", phase))),
                }
            }
            ControlRequest::Crash(rpc) => {
                let (pid, reply) = rpc.into_parts();
                reply.complete(self.crash(pid));
            }
            ControlRequest::PowerOff(rpc) => {
                tracing::info!("a client asks for power-off");
                rpc.complete(());
                self.end(Ending::Asked);
            }
        }
    }

    /// Makes the process die as if it had aborted.
    fn crash(&mut self, pid: i32) -> Result<(), Refusal> {
        let worker = self.paravisor.state().worker.as_ref().map(|w| w.pid);
        match u32::try_from(pid) {
            Ok(pid) if Some(pid) == worker => {
                tracing::warn!(pid, "a client asks for a crash of the VM worker");
                self.command(Command::Kill {
                    signal: Signal::SIGABRT,
                    reason: "a client asked for a crash".to_owned(),
                });
                Ok(())
            }
            Ok(own) if own == std::process::id() => {
                tracing::warn!("a client asks for a crash of the paravisor");
                self.end(Ending::Crash);
                Ok(())
            }
            _ => {
                let worker = worker.map_or("none".to_owned(), |pid| pid.to_string());
                Err(Refusal::NotFound(format!(
                    "process {pid} is none of the paravisor's: control process {}, VM worker {worker}",
                    std::process::id()
                )))
            }
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Ready { generation, stamps } => {
                let pid = {
                    let mut state = self.paravisor.state();
                    for stamp in stamps {
                        // The worker's first moments are part of the boot, those of later
                        // workers of what came after it.
                        let name = match generation {
                            0 => stamp.name,
                            later => format!("{} ({later})", stamp.name),
                        };
                        state.timeline.add(PERSONA, &name, stamp.ticks);
                    }
                    state.worker.as_ref().map_or(0, |worker| worker.pid)
                };
                event(Level::Info, WORKER_READY_PREFIX, &pid.to_string());
                if self.after == After::Nothing {
                    self.set_phase(Phase::Started);
                    self.answer(&Ok(()));
                    self.up();
                }
            }
            Report::Guest(event) => self.guest(event),
            Report::Stays { reason } => self.stays(&reason),
            Report::Ended(end) => self.ended(end),
        }
    }

    /// Something has become of the guest.
    fn guest(&mut self, guest: GuestEvent) {
        self.guest_log.tell(&guest, Instant::now());
        let failure = match &guest {
            GuestEvent::Crashed { report, .. } | GuestEvent::Stopped { report } => {
                let first = report.lines().next().unwrap_or_default();
                Some(first.to_owned())
            }
            GuestEvent::Reset { .. } | GuestEvent::PoweredOff => None,
        };
        let ends = matches!(
            guest,
            GuestEvent::PoweredOff
                | GuestEvent::Crashed {
                    action: OnGuestCrash::PowerOff,
                    ..
                }
        );
        self.paravisor.state().guest = Some(guest);
        match failure {
            // Nobody is going to look at a machine that was to end after its boot.
            Some(failure) if self.exit_after_boot => self.end(Ending::Failed(failure)),
            _ if ends => self.end(Ending::Asked),
            _ => {}
        }
    }

    /// The worker is not replaced, because it cannot be.
    fn stays(&mut self, reason: &str) {
        // Whoever wants the end meanwhile has asked for it, and need not be told.
        if self.after != After::Restart {
            return;
        }
        self.after = After::Nothing;
        self.set_phase(Phase::Started);
        let text = format!("the VM worker goes on and is not replaced: {reason}");
        tracing::warn!("{text}");
        self.answer(&Err(Refusal::Failed(text)));
    }

    /// The worker is gone.
    fn ended(&mut self, end: End) {
        self.commands = None;
        let after = std::mem::replace(&mut self.after, After::Nothing);
        // A worker that was asked to end and has agreed did not crash.
        let unexpected = after == After::Nothing || (!end.orderly && end.reason.is_some());
        let worker = {
            let mut state = self.paravisor.state();
            let worker = state.worker.take();
            if let Some(worker) = &worker {
                state.ended(worker, &end, unexpected);
            }
            worker
        };
        if unexpected {
            let pid = worker.map_or(0, |worker| worker.pid);
            let text = format!("process {pid}: {}", end.describe());
            event(Level::Error, WORKER_DIED_PREFIX, &text);
            for line in &end.last_lines {
                tracing::error!("last words of the VM worker: {line}");
            }
        } else {
            tracing::info!("VM worker ended: {}", end.describe());
        }
        match after {
            After::Nothing => self.recover(&end),
            After::Restart => {
                if end.state.is_none() {
                    let text = format!("the VM worker left no state: {}", end.describe());
                    tracing::warn!("{text}, the next one starts afresh");
                    // That is not what was asked for.
                    self.answer(&Err(Refusal::Failed(format!(
                        "{text}; its guest boots anew"
                    ))));
                }
                self.launch(end.state);
            }
            After::Stop => {
                self.set_phase(Phase::Stopped);
                self.answer(&Ok(()));
            }
            After::End(ending) => {
                self.answer(&Err(wrong_state("started", Phase::Stopping)));
                self.ending = Some(ending);
            }
        }
    }

    /// Nobody asked the worker to end.
    fn recover(&mut self, end: &End) {
        let now = Instant::now();
        let verdict = self.policy.died(now);
        self.paravisor.state().restarts_in_window = self.policy.restarts_in_window(now);
        match verdict {
            Verdict::Restart { number } => {
                tracing::warn!("VM worker is started again, restart {number}");
                self.paravisor.state().automatic_restarts += 1;
                self.set_phase(Phase::Restarting);
                self.launch(None);
            }
            Verdict::GiveUp { reason } => {
                self.fail(format!("{}; not started again: {reason}", end.describe()));
            }
        }
    }

    fn fail(&mut self, failure: String) {
        tracing::error!("VM worker failed: {failure}");
        self.set_phase(Phase::Failed);
        self.answer(&Err(Refusal::Failed(failure.clone())));
        self.paravisor.state().failure = Some(failure.clone());
        if self.exit_after_boot && self.announce.is_some() {
            self.ending = Some(Ending::Failed(failure));
        }
    }

    /// Starts a worker.
    fn launch(&mut self, saved_state: Option<Bytes>) {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.saturating_add(1);
        if self.phase() != Phase::Restarting {
            self.set_phase(Phase::Starting);
        }
        let (requests, worker_requests) = mesh::channel();
        let (worker_events, mut events) = mesh::channel();
        events.set_message_limit(EVENT_MAX);
        let parameters = Parameters {
            topology: worker_topology(&self.paravisor.topology),
            settings: self.worker_settings(generation),
            saved_state,
            requests: worker_requests,
            events: worker_events,
        };
        if generation == 0 {
            self.paravisor.stamp("launches_worker");
        }
        let mut config = ProcessConfig::new(PERSONA).stderr_sink(limited_log());
        for (name, value) in &self.options.environment {
            config = config.env(name, value);
        }
        let child = match mesh::process::launch(config, parameters) {
            Ok(child) => child,
            Err(error) => {
                return self.fail(format!("it cannot be started: {}", chain(&error)));
            }
        };
        let watchdog = Arc::<WatchdogStats>::default();
        {
            let mut state = self.paravisor.state();
            state.failure = None;
            state.worker = Some(RunningWorker {
                pid: child.pid(),
                generation,
                requests: requests.clone(),
                watchdog: watchdog.clone(),
            });
        }
        let (commands, watch_commands) = mpsc::channel(QUEUE);
        self.commands = Some(commands);
        let instance = Instance {
            generation,
            child,
            events,
            requests,
            patience: self.patience(),
            watchdog,
        };
        tokio::spawn(instance.watch(watch_commands, self.reports.0.clone()));
    }

    fn worker_settings(&self, generation: u32) -> Settings {
        let config = &self.paravisor.config;
        // The filter may have been changed since the start.
        let filter = self.paravisor.filter.as_ref().map_or_else(
            || config.log_filter.value.to_string(),
            |handle| handle.get().to_string(),
        );
        Settings {
            name: config.name.value.clone(),
            log_filter: filter,
            generation,
            test_hooks: *config.test_hooks,
            leave_sidecar_on_exit: *config.sidecar_leave_on_exit,
            on_guest_crash: match *config.on_guest_crash {
                openhcl_config::OnGuestCrash::Halt => OnGuestCrash::Halt,
                openhcl_config::OnGuestCrash::Reset => OnGuestCrash::Reset,
                openhcl_config::OnGuestCrash::PowerOff => OnGuestCrash::PowerOff,
            },
        }
    }

    fn patience(&self) -> Patience {
        let worker = &self.paravisor.config.worker;
        Patience {
            start_deadline: *worker.start_deadline,
            watchdog: worker
                .watchdog
                .then(|| (*worker.watchdog_interval, *worker.watchdog_deadline)),
        }
    }

    /// The paravisor is up: everything was found consistent, and the worker is ready or
    /// has to wait.
    fn up(&mut self) {
        if let Some(announce) = self.announce.take() {
            announce();
            if self.exit_after_boot {
                self.end(Ending::Asked);
            }
        }
    }

    /// Begins the end of the paravisor.
    fn end(&mut self, ending: Ending) {
        if matches!(self.after, After::End(_)) {
            return;
        }
        self.paravisor.stamp("ends");
        if self.commands.is_some() {
            self.stop_worker(After::End(ending), Phase::Stopping);
        } else {
            self.ending = Some(ending);
        }
    }

    fn stop_worker(&mut self, after: After, phase: Phase) {
        self.after = after;
        self.set_phase(phase);
        let deadline: Duration = *self.paravisor.config.shutdown_deadline;
        self.command(match self.after {
            After::Restart => Command::HandOver { deadline },
            _ => Command::Stop { deadline },
        });
    }

    fn command(&self, command: Command) {
        // No queue: the worker has ended, which is about to be reported. A full one: it
        // was told the same several times already.
        if let Some(commands) = &self.commands
            && let Err(error) = commands.try_send(command)
        {
            tracing::debug!(%error, "the VM worker's watch takes no command");
        }
    }

    /// Answers all clients that wait.
    fn answer(&mut self, outcome: &Result<(), Refusal>) {
        for reply in self.waiting.drain(..) {
            reply.complete(outcome.clone());
        }
    }

    fn phase(&self) -> Phase {
        self.paravisor.state().phase
    }

    fn set_phase(&self, phase: Phase) {
        self.paravisor.state().phase = phase;
    }
}

/// Logs what a worker writes to standard error, as far as it is not a flood.
fn limited_log() -> impl FnMut(&str) + Send {
    let mut limit = LineLimit::new(WORKER_LINES, WORKER_LINE_INTERVAL);
    move |line| {
        if let Line::Passes { dropped } = limit.line(Instant::now()) {
            if dropped > 0 {
                tracing::warn!(target: PERSONA, "{dropped} lines were dropped here");
            }
            tracing::warn!(target: PERSONA, "{line}");
        }
    }
}

fn wrong_state(action: &str, phase: Phase) -> Refusal {
    Refusal::State(format!("the VM worker is {phase} and cannot be {action}"))
}

fn chain(error: &dyn std::error::Error) -> String {
    kernel_log::chain(error)
}

fn worker_topology(topology: &crate::topology::Topology) -> Topology {
    Topology {
        vps: topology.vps.iter().map(|vp| vp.apic_id).collect(),
        memory: topology
            .vtl0_ram()
            .map(|range| MemoryRange {
                start: range.start,
                size: range.size,
            })
            .collect(),
        sidecar: topology
            .sidecar
            .iter()
            .map(|node| SidecarNode {
                control_page: node.pages.start,
                base_vp: node.base_vp,
                cpu_count: node.cpu_count,
            })
            .collect(),
    }
}
