//! What the control process knows, for all of its parts, and how it is inspected.

use crate::build_info::BuildInfo;
use crate::instance::End;
use crate::instance::WatchdogStats;
use crate::kmsg;
use crate::memory;
use crate::memory::MemInfo;
use crate::processes;
use crate::shim_log::ShimLog;
use crate::timeline;
use crate::timeline::Clock;
use crate::timeline::Pair;
use crate::timeline::Timeline;
use crate::topology::Topology;
use diag_server::ServerStats;
use inspect::Error;
use inspect::Inspect;
use inspect::Node;
use inspect::Request;
use inspect::Unit;
use kernel_log::filter::Filter;
use kernel_log::subscriber::FilterHandle;
use openhcl_config::Config;
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Instant;
use underhill_core::clock::Ticks;
use underhill_core::protocol::GuestEvent;

/// Ends of workers that are remembered.
const ENDS_MAX: usize = 8;

/// Where the worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Held back until a client starts it.
    WaitingForStart,
    /// Started, not yet ready.
    Starting,
    /// Ready.
    Started,
    /// Being replaced by a new one.
    Restarting,
    /// Asked to end.
    Stopping,
    /// Ended because it was asked to.
    Stopped,
    /// Dead, and not started again.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WaitingForStart => "waiting_for_start",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// The worker that runs now.
#[derive(Debug, Clone)]
pub struct RunningWorker {
    /// Its process.
    pub pid: u32,
    /// How many there were before.
    pub generation: u32,
    /// Where it takes requests.
    pub requests: mesh::Sender<underhill_core::Request>,
    /// How it answers the watchdog.
    pub(crate) watchdog: Arc<WatchdogStats>,
}

/// A worker that is no more.
#[derive(Debug, Clone, Inspect)]
pub struct EndedWorker {
    /// Its process.
    pub pid: u32,
    /// Which worker it was.
    pub generation: u32,
    /// How the kernel saw its end.
    pub cause: String,
    /// Why, if that is known.
    pub reason: Option<String>,
    /// Nobody had asked for it.
    pub unexpected: bool,
    /// The end of its standard error.
    pub last_lines: Vec<String>,
    /// When.
    #[inspect(skip)]
    pub at: Ticks,
}

/// What changes.
#[derive(Debug)]
pub struct State {
    /// Where the worker is in its life.
    pub phase: Phase,
    /// The worker, if there is one.
    pub worker: Option<RunningWorker>,
    /// Why no worker is started, in phase [`Phase::Failed`].
    pub failure: Option<String>,
    /// What has become of the guest at last, whichever worker ran it.
    pub guest: Option<GuestEvent>,
    /// The last ends, the newest last.
    pub ends: VecDeque<EndedWorker>,
    /// All ends that nobody had asked for.
    pub crashes: u64,
    /// Workers that were started because one had died.
    pub automatic_restarts: u64,
    /// Of those, how many count for the budget.
    pub restarts_in_window: usize,
    /// Moments of the boot.
    pub timeline: Timeline,
    /// The kernel's log was looked through for milestones.
    pub kernel_log_read: bool,
}

impl State {
    /// Remembers the end of a worker.
    pub(crate) fn ended(&mut self, worker: &RunningWorker, end: &End, unexpected: bool) {
        if self.ends.len() == ENDS_MAX {
            self.ends.pop_front();
        }
        self.crashes += u64::from(unexpected);
        self.ends.push_back(EndedWorker {
            pid: worker.pid,
            generation: worker.generation,
            cause: end.cause.clone(),
            reason: end.reason.clone(),
            unexpected,
            last_lines: end.last_lines.clone(),
            at: Ticks::now(),
        });
    }
}

/// What is known of the clocks.
#[derive(Debug, Clone, Copy)]
pub struct ClockPairs {
    /// The shim's.
    pub shim: Option<Pair>,
    /// Counter and `CLOCK_BOOTTIME` when this process started.
    pub started: Pair,
    /// Counter when this process wrote its first line to the kernel's log.
    pub first_line: Ticks,
}

/// All that the control process knows.
pub struct Paravisor {
    /// The image was built for development.
    pub development_image: bool,
    /// How it is configured.
    pub config: Config,
    /// The machine.
    pub topology: Topology,
    /// What the shim logged.
    pub shim_log: Option<ShimLog>,
    /// The filter of the log.
    pub filter: Option<FilterHandle>,
    /// The diagnostics.
    pub diag: Arc<ServerStats>,
    /// Of the clocks.
    pub clocks: ClockPairs,
    /// When it started.
    pub started: Instant,
    /// What changes. Locked only for moments, never while something is waited for.
    pub state: Mutex<State>,
}

impl Paravisor {
    /// What changes.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves it half done.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a moment of this process to the timeline.
    pub fn stamp(&self, name: &str) {
        self.state().timeline.add("openvmm_hcl", name, Ticks::now());
    }

    fn clock(&self) -> Clock {
        let now = timeline::boot_time_now().unwrap_or(self.clocks.started);
        Clock::new(self.clocks.shim, self.clocks.started, now)
    }

    /// Takes the kernel's milestones out of its log, once.
    pub fn read_kernel_log(&self) {
        if std::mem::replace(&mut self.state().kernel_log_read, true) {
            return;
        }
        let clock = self.clock();
        let mut found: Vec<(usize, u64)> = Vec::new();
        let mut own_us = None;
        let read = kmsg::for_each(Path::new(kmsg::DEVICE), |record| {
            if own_us.is_none() && record.text == boot_events::PARAVISOR_STARTED {
                own_us = Some(record.time_us);
            }
            let milestone = kmsg::MILESTONES
                .iter()
                .position(|(_, _, text)| record.text.starts_with(text));
            if let Some(milestone) = milestone
                && !found.iter().any(|(known, _)| *known == milestone)
            {
                found.push((milestone, record.time_us));
            }
        });
        if let Err(error) = read {
            tracing::warn!(%error, "the kernel's log cannot be read for the timeline");
        }
        let Some(own_us) = own_us else { return };
        let tie = Pair {
            ticks: self.clocks.first_line,
            ns: own_us.saturating_mul(1000),
        };
        let mut state = self.state();
        // The log's zero. Before it the kernel prints without a time.
        let zero = clock.ticks_of(tie, 0);
        state.timeline.add("linux", "clock_starts", zero);
        for (milestone, time_us) in found {
            let (process, name, _) = kmsg::MILESTONES[milestone];
            let ticks = clock.ticks_of(tie, time_us.saturating_mul(1000));
            state.timeline.add(process, name, ticks);
        }
    }

    /// The worker's part of the tree, which it answers for itself.
    fn inspect_worker(&self, request: Request<'_>) {
        let (worker, phase) = {
            let state = self.state();
            (state.worker.clone(), state.phase)
        };
        let Some(worker) = worker else {
            let reason = format!("there is no VM worker: {phase}");
            return request.fail(Error::Unreachable(reason));
        };
        request.defer(|query| async move {
            let answer = worker
                .requests
                .call(underhill_core::Request::Inspect, query)
                .await;
            answer.unwrap_or_else(|error| {
                Node::Failed(Error::Unreachable(format!("VM worker: {error}")))
            })
        });
    }

    fn inspect_log(&self, request: Request<'_>) {
        let Some(handle) = &self.filter else {
            return request.ignore();
        };
        request.respond().child("filter", |request| {
            request.update(handle.get().to_string(), |text| {
                let filter: Filter = text.parse()?;
                handle.set(filter.clone());
                let worker = self.state().worker.clone();
                if let Some(worker) = worker {
                    let request = underhill_core::Request::SetLogFilter(text.to_owned());
                    if let Err(error) = worker.requests.try_send(request) {
                        tracing::warn!(%error, "the VM worker keeps its filter");
                    }
                }
                Ok::<_, kernel_log::filter::FilterError>(filter.to_string())
            });
        });
    }
}

impl Inspect for Paravisor {
    fn inspect(&self, request: Request<'_>) {
        let mut response = request.respond();
        response
            .sensitivity(inspect::Sensitivity::Safe)
            .child("build_info", |request| {
                BuildInfo::collect(self.development_image).inspect(request);
            })
            .child("control_state", |request| {
                request.value(self.state().phase.to_string());
            })
            .sensitivity(inspect::Sensitivity::Unspecified)
            .child("control", |request| self.state().inspect(request, self))
            .child("config", |request| inspect_config(&self.config, request))
            .field("topology", &self.topology)
            .child("memory", |request| inspect_memory(&self.topology, request))
            .child("shim_log", |request| {
                inspect_shim_log(self.shim_log.as_ref(), request);
            })
            .child("boot", |request| {
                self.read_kernel_log();
                let clock = self.clock();
                self.state().timeline.inspect(&clock, request);
            })
            .child("proc", inspect_processes)
            .child("mesh", |request| self.state().inspect_mesh(request))
            .field("diag", self.diag.as_ref())
            .child("log", |request| self.inspect_log(request))
            .child("vm", |request| self.inspect_worker(request));
    }
}

impl State {
    fn inspect(&self, request: Request<'_>, paravisor: &Paravisor) {
        let mut response = request.respond();
        response
            .display("state", &self.phase)
            .field("pid", &std::process::id())
            .field("uptime", &paravisor.started.elapsed())
            .field("failure", &self.failure)
            .child("guest", |request| {
                inspect_guest(self.guest.as_ref(), request)
            })
            .child("worker", |request| match &self.worker {
                Some(worker) => {
                    request
                        .respond()
                        .field("pid", &worker.pid)
                        .field("generation", &worker.generation)
                        .field("watchdog", worker.watchdog.as_ref());
                }
                None => request.ignore(),
            })
            .counter("crashes", &self.crashes)
            .counter("automatic_restarts", &self.automatic_restarts)
            .field("restarts_in_window", &self.restarts_in_window)
            .child("ends", |request| {
                let clock = paravisor.clock();
                let mut response = request.respond();
                for (index, ended) in self.ends.iter().enumerate() {
                    response.child(&index.to_string(), |request| {
                        request.respond().merge(ended).unit(
                            "at",
                            Unit::Nanoseconds,
                            &clock.ns(ended.at),
                        );
                    });
                }
            });
    }

    /// What left this process through mesh, and every channel that does.
    fn inspect_mesh(&self, request: Request<'_>) {
        let mut response = request.respond();
        response.merge(&underhill_core::MeshTraffic);
        response.child("channels", |request| {
            let mut response = request.respond();
            if let Some(worker) = &self.worker {
                for (name, direction) in [("requests", "to"), ("events", "from")] {
                    let label = format!("underhill_vm.{}.{name}", worker.generation);
                    response.child(&label, |request| {
                        request
                            .respond()
                            .field("direction", direction)
                            .field("peer", "underhill_vm")
                            .field("pid", &worker.pid);
                    });
                }
            }
        });
    }
}

fn inspect_guest(event: Option<&GuestEvent>, request: Request<'_>) {
    let (event, report) = match event {
        None => return request.ignore(),
        Some(GuestEvent::Reset { .. }) => ("reset", None),
        Some(GuestEvent::PoweredOff) => ("powered_off", None),
        Some(GuestEvent::Crashed { report, .. }) => ("crashed", Some(report)),
        Some(GuestEvent::Stopped { report }) => ("stopped", Some(report)),
    };
    let lines = report.iter().flat_map(|report| report.lines()).enumerate();
    let lines =
        lines.map(|(index, line)| (format!("{index:02}"), inspect::printable(line).into_owned()));
    request
        .respond()
        .field("last_event", event)
        .child("report", |request| {
            request.respond().merge(&inspect::iter(lines));
        });
}

fn inspect_config(config: &Config, request: Request<'_>) {
    let mut response = request.respond();
    config.for_each(|path, value, origin| {
        response.child(path, |request| {
            request
                .respond()
                .display("value", value)
                .display("origin", &origin);
        });
    });
}

impl Inspect for Topology {
    fn inspect(&self, request: Request<'_>) {
        let mut response = request.respond();
        response
            .sensitivity(inspect::Sensitivity::Safe)
            .field("isolation", &self.isolation)
            .sensitivity(inspect::Sensitivity::Unspecified)
            .field("allocation_mode", &self.allocation_mode)
            .child("vps", |request| {
                let mut response = request.respond();
                for (index, vp) in self.vps.iter().enumerate() {
                    response.child(&index.to_string(), |request| {
                        request
                            .respond()
                            .field("apic_id", &vp.apic_id)
                            .field("vnode", &vp.vnode);
                    });
                }
            })
            .child("sidecar", |request| {
                let mut response = request.respond();
                for (index, node) in self.sidecar.iter().enumerate() {
                    response.child(&index.to_string(), |request| {
                        request
                            .respond()
                            .hex("pages", &node.pages.start)
                            .field("base_vp", &node.base_vp)
                            .field("cpus", &node.cpu_count);
                    });
                }
            });
    }
}

fn inspect_memory(topology: &Topology, request: Request<'_>) {
    let mut response = request.respond();
    response
        .unit("vtl0_ram", Unit::Bytes, &topology.vtl0_bytes())
        .unit("vtl2_ram", Unit::Bytes, &topology.vtl2_bytes())
        .child("kernel", |request| {
            let info = std::fs::read_to_string(memory::MEMINFO)
                .map_err(|error| error.to_string())
                .and_then(|text| MemInfo::parse(&text).map_err(|error| error.to_string()));
            match info {
                Ok(info) => {
                    request
                        .respond()
                        .unit("total", Unit::Bytes, &info.total_bytes)
                        .unit("free", Unit::Bytes, &info.free_bytes);
                }
                Err(error) => request.fail(Error::Unreachable(error)),
            }
        })
        .child("by_type", |request| {
            let mut kinds: Vec<_> = topology.memory.iter().map(|memory| memory.kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            let mut response = request.respond();
            for kind in kinds {
                let size: u64 = topology
                    .memory
                    .iter()
                    .filter(|memory| memory.kind == kind)
                    .map(|memory| memory.range.size)
                    .sum();
                let name = format!("{kind:?}").to_lowercase();
                response.unit(&name, Unit::Bytes, &size);
            }
        })
        .child("ranges", |request| {
            let mut response = request.respond();
            for memory in &topology.memory {
                let name = format!("{:#x}", memory.range.start);
                response.child(&name, |request| {
                    request
                        .respond()
                        .hex("start", &memory.range.start)
                        .unit("size", Unit::Bytes, &memory.range.size)
                        .field("type", format!("{:?}", memory.kind).to_lowercase().as_str());
                });
            }
        });
}

fn inspect_shim_log(log: Option<&ShimLog>, request: Request<'_>) {
    let Some(log) = log else {
        return request.ignore();
    };
    request
        .respond()
        .field("dropped", &log.dropped)
        .child("lines", |request| {
            let mut response = request.respond();
            for (index, line) in log.text.lines().enumerate() {
                response.field(&format!("{index:03}"), line);
            }
        });
}

fn inspect_processes(request: Request<'_>) {
    match processes::read_all(Path::new(processes::DIRECTORY)) {
        Ok(processes) => {
            let mut response = request.respond();
            for process in &processes {
                response.field(&process.pid.to_string(), process);
            }
        }
        Err(error) => request.fail(Error::Unreachable(error.to_string())),
    }
}
