//! The worker's life: start, requests, end.

use crate::clock::Stamp;
use crate::guest::Guest;
use crate::guest::Start;
use crate::protocol::Event;
use crate::protocol::MemoryRange;
use crate::protocol::PERSONA;
use crate::protocol::Parameters;
use crate::protocol::Request;
use crate::protocol::Settings;
use crate::protocol::Topology;
use crate::saved_state::SavedState;
use crate::saved_state::SavedStateError;
use crate::saved_state::VERSION;
use crate::test_hooks::Failure;
use crate::vm::DIRECTORY;
use crate::vm::SavedVm;
use inspect::Inspect;
use inspect::Unit;
use kernel_log::FACILITY_WORKER;
use kernel_log::KernelLog;
use kernel_log::filter::Filter;
use kernel_log::filter::FilterError;
use kernel_log::subscriber;
use kernel_log::subscriber::FilterHandle;
use mesh::Bytes;
use mesh::process::InvitationError;
use std::cell::Cell;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use thiserror::Error;
use virt::Partition;
use virt_mshv_vtl::Config;
use virt_mshv_vtl::MshvPartition;
use virt_mshv_vtl::SidecarNode;
use vm_loader::GpaRange;

/// In front of every line of the worker's log.
const LOG_PREFIX: &str = "underhill_vm: ";

/// Where workers write down for those after them what memory the kernel knows.
const MEMORY_RECORD: &str = "/run/vtl0_memory";

/// Why a worker cannot start.
#[derive(Debug, Error)]
enum StartError {
    #[error("VM worker has no parameters")]
    Invitation(#[from] InvitationError),
    #[error("VM worker has a machine without a VP")]
    NoVp,
    #[error("VM worker has memory of {:#x} bytes at {:#x}, which no machine has", range.size, range.start)]
    Memory { range: MemoryRange },
    #[error("VM worker has a wrong filter")]
    Filter(#[from] FilterError),
    #[error("VM worker cannot go on from the one before it")]
    SavedState(#[from] SavedStateError),
}

/// Runs the worker until it is stopped or the paravisor process has gone.
pub fn main() -> ExitCode {
    let started = Stamp::now("started");
    // The kernel calls it after the file that it was started from, which is `exe`.
    if let Err(error) = nix::sys::prctl::set_name(c"underhill_vm") {
        eprintln!("the process keeps its name: {error}");
    }
    match run(started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The paravisor process reads this and repeats it with the cause of the end.
            eprintln!("{}", kernel_log::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(started: Stamp) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let parameters =
            mesh::process::invitation::<Parameters>().map_err(StartError::Invitation)?;
        let events = parameters.events.clone();
        let (mut worker, mut requests) = match Worker::new(parameters) {
            Ok(worker) => worker,
            Err(error) => {
                let reason = kernel_log::chain(&error);
                // Without the report the end of the process says it.
                let _ = events.send(Event::Failed { reason }).await;
                return Err(error.into());
            }
        };
        let mut stamps = vec![started];
        worker.start_guest(&mut stamps).await;
        stamps.push(Stamp::now("ready"));
        events.send(Event::Ready { stamps }).await?;
        if let Some(event) = worker.guest.first_event() {
            events.send(Event::Guest(event)).await?;
        }
        tracing::debug!(target: PERSONA, vps = worker.topology.vps.len(), "ready");
        worker.serve(&mut requests, &events).await
    })
}

/// What happens after a request.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    End,
}

struct Worker {
    topology: Topology,
    settings: Settings,
    before: SavedState,
    started: Instant,
    requests: u64,
    filter: Option<FilterHandle>,
    guest: Guest,
    /// Set by an inspection: what is to go wrong.
    failure: Cell<Option<Failure>>,
    /// A test hook has it that the guest cannot be saved.
    unsaved: bool,
}

impl Worker {
    fn new(parameters: Parameters) -> Result<(Self, mesh::Receiver<Request>), StartError> {
        let Parameters {
            topology,
            settings,
            saved_state,
            requests,
            events: _,
        } = parameters;
        let filter: Filter = settings.log_filter.parse()?;
        let log = KernelLog::open(FACILITY_WORKER, LOG_PREFIX);
        let filter = subscriber::install(log, filter).ok();
        if topology.vps.is_empty() {
            return Err(StartError::NoVp);
        }
        let before = match saved_state {
            Some(bytes) => {
                let state = SavedState::decode(&bytes)?;
                tracing::info!(
                    target: PERSONA,
                    handovers = state.handovers,
                    "going on from the worker before"
                );
                state
            }
            None => SavedState::default(),
        };
        let worker = Self {
            topology,
            settings,
            before,
            started: Instant::now(),
            requests: 0,
            filter,
            guest: Guest::None,
            failure: Cell::new(None),
            unsaved: false,
        };
        Ok((worker, requests))
    }

    /// Starts the guest that the image carries.
    async fn start_guest(&mut self, stamps: &mut Vec<Stamp>) {
        let start = Start {
            directory: Path::new(DIRECTORY),
            partition: &|| open_partition(&self.topology),
            on_crash: self.settings.on_guest_crash,
            leave_on_exit: self.settings.leave_sidecar_on_exit,
            saved: self.before.guest.take(),
        };
        self.guest = Guest::start(start, stamps).await;
    }

    /// Answers requests and looks after the guest, until the end.
    async fn serve(
        &mut self,
        requests: &mut mesh::Receiver<Request>,
        events: &mesh::Sender<Event>,
    ) -> Result<(), Box<dyn Error>> {
        loop {
            tokio::select! {
                request = requests.recv() => {
                    let Ok(request) = request else { break };
                    if self.answer(request).await == Next::End {
                        return Ok(());
                    }
                }
                happening = self.guest.happened() => {
                    for event in self.guest.handle(happening).await {
                        events.send(Event::Guest(event)).await?;
                    }
                }
            }
            match self.failure.take() {
                Some(Failure::Unsaved) => self.unsaved = true,
                // The answer to the request that asked for it has left: with nothing queued
                // before it, mesh sends it in `complete`.
                Some(Failure::Fatal(failure)) => failure.happen(),
                None => {}
            }
        }
        tracing::warn!(target: PERSONA, "the paravisor process has gone, the VM worker ends");
        Ok(())
    }

    async fn answer(&mut self, request: Request) -> Next {
        self.requests = self.requests.saturating_add(1);
        match request {
            Request::Ping(rpc) => rpc.complete(()),
            Request::Inspect(rpc) => {
                let node = rpc.input().evaluate(self).now();
                rpc.complete(node);
            }
            Request::Save(rpc) => {
                let guest = self.guest.save().await;
                rpc.complete(guest.map(|guest| self.state(guest)));
                self.guest.go_on();
            }
            Request::Stop(rpc) => {
                self.end_guest().await;
                rpc.complete(());
                return Next::End;
            }
            Request::HandOver(rpc) => match self.hand_over().await {
                Ok(guest) => {
                    let state = self.state(guest);
                    self.end_guest().await;
                    rpc.complete(Ok(state));
                    return Next::End;
                }
                Err(reason) => {
                    tracing::error!(target: PERSONA, "no other worker takes over: {reason}");
                    rpc.complete(Err(reason));
                }
            },
            Request::Pause(rpc) => rpc.complete(self.guest.pause().await),
            Request::Resume(rpc) => rpc.complete(self.guest.resume()),
            Request::Online(rpc) => {
                // It takes long, and others want answers meanwhile.
                let online = self.guest.online(*rpc.input());
                tokio::spawn(async move { rpc.complete(online.await) });
            }
            Request::SetLogFilter(text) => match (text.parse(), &self.filter) {
                (Ok(filter), Some(handle)) => handle.set(filter),
                (Ok(_), None) => {}
                (Err(error), _) => {
                    tracing::warn!(target: PERSONA, %error, "the log's filter stays")
                }
            },
        }
        Next::Continue
    }

    async fn hand_over(&mut self) -> Result<Option<SavedVm>, String> {
        if self.unsaved {
            return Err(format!("test hook: {}", Failure::Unsaved));
        }
        self.guest.hand_over().await
    }

    async fn end_guest(&mut self) {
        std::mem::replace(&mut self.guest, Guest::None).end().await;
    }

    fn state(&self, guest: Option<SavedVm>) -> Bytes {
        let state = SavedState {
            version: VERSION,
            handovers: self.before.handovers.saturating_add(1),
            uptime_ns: nanoseconds(self.total_uptime()),
            requests: self.before.requests.saturating_add(self.requests),
            guest,
        };
        Bytes(state.encode())
    }

    fn total_uptime(&self) -> Duration {
        Duration::from_nanos(self.before.uptime_ns).saturating_add(self.started.elapsed())
    }
}

/// The partition that this process runs.
fn open_partition(topology: &Topology) -> Result<Arc<dyn Partition>, Box<dyn Error + Send + Sync>> {
    let ram = topology.memory.iter().map(|range| {
        GpaRange::new(range.start, range.size).ok_or(StartError::Memory { range: *range })
    });
    let sidecar = topology.sidecar.iter().map(|node| SidecarNode {
        control_page: node.control_page,
        base_vp: node.base_vp,
        cpu_count: node.cpu_count,
    });
    let config = Config {
        vp_count: u32::try_from(topology.vps.len())?,
        ram: ram.collect::<Result<_, _>>()?,
        memory_record: MEMORY_RECORD.into(),
        sidecar: sidecar.collect(),
    };
    Ok(MshvPartition::new(config)?)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Inspect for Worker {
    fn inspect(&self, request: inspect::Request<'_>) {
        let mut response = request.respond();
        response
            .field("pid", &std::process::id())
            .field("settings", &self.settings)
            .field("topology", &self.topology)
            .field("uptime", &self.started.elapsed())
            .child("handed_over", |request| {
                request
                    .respond()
                    .field("handovers", &self.before.handovers)
                    .unit("uptime", Unit::Nanoseconds, &self.before.uptime_ns)
                    .counter("requests", &self.before.requests);
            })
            .field("total_uptime", &self.total_uptime())
            .counter("requests", &self.requests)
            .field("mesh", &crate::MeshTraffic)
            .merge(&self.guest);
        if let Some(filter) = &self.filter {
            response.display("log_filter", &filter.get());
        }
        response
            .child("threads", |request| {
                request.respond().merge(&inspect::iter(threads()));
            })
            .child("memory", |request| {
                let mut response = request.respond();
                for (name, bytes) in memory() {
                    response.unit(name, Unit::Bytes, &bytes);
                }
            });
        if self.settings.test_hooks {
            response.child("fail", |request| {
                request.update("no", |text| {
                    let failure: Failure = text.parse()?;
                    self.failure.set(Some(failure));
                    Ok::<_, crate::test_hooks::UnknownFailure>(failure.to_string())
                });
            });
        }
    }
}

/// Id and name of each thread.
fn threads() -> Vec<(String, String)> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let id = task.file_name().to_string_lossy().into_owned();
            (id, name.trim_end().to_owned())
        })
        .collect()
}

/// Memory of this process, as the kernel counts it.
fn memory() -> Vec<(&'static str, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        let number: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        number.checked_mul(1024)
    };
    [
        ("resident", "VmRSS:"),
        ("resident_most", "VmHWM:"),
        ("anonymous", "RssAnon:"),
        ("locked", "VmLck:"),
        ("virtual", "VmSize:"),
    ]
    .into_iter()
    .filter_map(|(name, key)| Some((name, kib(key)?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OnGuestCrash;
    use crate::test_hooks::Fatal;
    use inspect::Query;

    fn parameters(saved_state: Option<Vec<u8>>, test_hooks: bool) -> Parameters {
        let (_, requests) = mesh::channel();
        let (events, _) = mesh::channel();
        Parameters {
            topology: Topology {
                vps: vec![1, 2],
                memory: Vec::new(),
                sidecar: Vec::new(),
            },
            settings: Settings {
                name: "test".to_owned(),
                log_filter: "info".to_owned(),
                generation: 0,
                test_hooks,
                on_guest_crash: OnGuestCrash::Halt,
                leave_sidecar_on_exit: true,
            },
            saved_state: saved_state.map(Bytes),
            requests,
            events,
        }
    }

    fn worker(saved_state: Option<Vec<u8>>, test_hooks: bool) -> Worker {
        Worker::new(parameters(saved_state, test_hooks)).unwrap().0
    }

    #[test]
    fn state_is_handed_over_and_adds_up() {
        let mut first = worker(None, false);
        first.requests = 5;
        let state = first.state(None);
        let mut second = worker(Some(state.to_vec()), false);
        second.requests = 2;
        let state = SavedState::decode(&second.state(None)).unwrap();
        assert_eq!((state.handovers, state.requests), (2, 7));
        assert!(second.total_uptime() >= Duration::from_nanos(second.before.uptime_ns));
    }

    #[test]
    fn a_worker_refuses_what_it_cannot_work_with() {
        let mut no_vp = parameters(None, false);
        no_vp.topology.vps.clear();
        assert!(matches!(Worker::new(no_vp), Err(StartError::NoVp)));
        let damaged = parameters(Some(vec![0xff; 9]), false);
        assert!(matches!(
            Worker::new(damaged),
            Err(StartError::SavedState(_))
        ));
        let mut filter = parameters(None, false);
        filter.settings.log_filter = "loud".to_owned();
        assert!(matches!(Worker::new(filter), Err(StartError::Filter(_))));
    }

    #[test]
    fn a_worker_fails_on_request_only_with_test_hooks() {
        let query = Query::new("fail").with_update("hang");
        let plain = worker(None, false);
        assert!(query.evaluate(&plain).now().into_updated().is_err());
        assert_eq!(plain.failure.get(), None);

        let hooked = worker(None, true);
        assert!(query.evaluate(&hooked).now().into_updated().is_ok());
        assert_eq!(hooked.failure.get(), Some(Failure::Fatal(Fatal::Hang)));
        let wrong = Query::new("fail").with_update("explode");
        assert!(wrong.evaluate(&hooked).now().into_updated().is_err());
    }

    #[tokio::test]
    async fn a_worker_that_cannot_hand_over_says_so_and_goes_on() {
        let mut worker = worker(None, true);
        let (sender, mut requests) = mesh::channel();
        for unsaved in [true, false] {
            worker.unsaved = unsaved;
            let ask = sender.call(Request::HandOver, ());
            let answer = async {
                let request = requests.recv().await.unwrap();
                worker.answer(request).await
            };
            let (state, next) = tokio::join!(ask, answer);
            match unsaved {
                true => {
                    let reason = state.unwrap().unwrap_err();
                    assert!(reason.contains("test hook"), "{reason}");
                    assert_eq!(next, Next::Continue);
                }
                false => {
                    let state = SavedState::decode(&state.unwrap().unwrap()).unwrap();
                    assert_eq!((state.handovers, next), (1, Next::End));
                }
            }
        }
    }

    #[test]
    fn the_tree_has_threads_memory_and_topology() {
        let node = Query::new("").evaluate(&worker(None, false)).now();
        assert_eq!(node.get("topology/vps").unwrap().as_u64(), Some(2));
        assert!(node.get("memory/resident").unwrap().as_u64() > Some(0));
        assert!(!node.get("threads").unwrap().entries().is_empty());
    }
}
