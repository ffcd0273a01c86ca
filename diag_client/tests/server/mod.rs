//! The real server in a thread, behind a hybrid vsock, with a small tree. Also used by the
//! tests of `ohcldiag`.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file uses another part of it"
)]

use diag_client::VmAddress;
use diag_server::Handler;
use diag_server::InspectCall;
use diag_server::Listener;
use diag_server::Listeners;
use diag_server::Options;
use diag_server::ServerStats;
use diag_server::Status;
use diag_server::UpdateCall;
use inspect::Inspect;
use inspect::Query;
use inspect::Request;
use inspect::Unit;
use std::future::pending;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Notify;

/// What the kernel's log says.
pub const KERNEL_LOG: &str =
    "6,1,1500000,-;openvmm_hcl: \\x1b ready\n\x003,2,2000001,-;oops\u{1b}[2J\n SUBSYSTEM=pci\n\0";

/// The paravisor, as far as tests look at it.
#[derive(Default)]
pub struct TestVm {
    setting: AtomicU32,
    asked: AtomicU64,
    /// What has been called.
    pub calls: Mutex<Vec<String>>,
    off: Arc<Notify>,
}

#[derive(Inspect)]
struct Milestone {
    name: &'static str,
    process: &'static str,
    ticks: u64,
    #[inspect(unit = "ns")]
    ns: u64,
}

const MILESTONES: [Milestone; 2] = [
    Milestone {
        name: "shim_entry",
        process: "openhcl_boot",
        ticks: 1000,
        ns: 1_000_000,
    },
    Milestone {
        name: "ready",
        process: "openvmm_hcl",
        ticks: 4000,
        ns: 4_000_000,
    },
];

impl Inspect for TestVm {
    fn inspect(&self, request: Request<'_>) {
        let mut response = request.respond();
        response
            .child("build_info", |request| {
                request
                    .respond()
                    .field("revision", "abc\u{1b}[31m")
                    .hex("base", &0x1000u64);
            })
            .child("memory", |request| {
                request.respond().unit("total", Unit::Bytes, &4096u64);
            })
            .child("boot", |request| {
                request
                    .respond()
                    .field("zero", "begin")
                    .field("milestones", &MILESTONES);
            })
            .child("proc", |request| {
                request.respond().child("42", |request| {
                    request.respond().field("name", "underhill_vm");
                });
            })
            .child("setting", |request| {
                request.update(self.setting.load(Ordering::Relaxed), |text| {
                    let value: u32 = text.parse()?;
                    self.setting.store(value, Ordering::Relaxed);
                    Ok::<_, std::num::ParseIntError>(value)
                });
            })
            .counter("asked", &self.asked.fetch_add(1, Ordering::Relaxed))
            .child("vm", |request| request.defer(|_| pending()));
    }
}

impl TestVm {
    fn note(&self, call: String) -> Result<(), Status> {
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    async fn answer(&self, query: Query, deadline: Option<std::time::Instant>) -> inspect::Node {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        query.answer_within(self, late).await
    }
}

impl Handler for TestVm {
    async fn inspect(&self, call: InspectCall) -> Result<diag_proto::inspect::Node, Status> {
        let depth = u32::try_from(call.depth).unwrap_or(u32::MAX);
        let query = Query::new(call.path).depth(depth);
        Ok(self.answer(query, call.deadline).await.into())
    }

    async fn update(&self, call: UpdateCall) -> Result<diag_proto::inspect::Value, Status> {
        let query = Query::new(call.path).with_update(call.value);
        match self.answer(query, call.deadline).await.into_updated() {
            Ok(value) => Ok(value.into()),
            Err(error) => Err(Status::failed_precondition(error)),
        }
    }

    async fn restart(&self) -> Result<(), Status> {
        self.note("restart".into())
    }

    async fn crash(&self, pid: i32) -> Result<(), Status> {
        self.note(format!("crash {pid}"))
    }

    async fn online_cpu(&self, cpu: u32) -> Result<Option<String>, Status> {
        self.note(format!("online {cpu}"))?;
        match cpu {
            0 => Ok(None),
            1 => Ok(Some("exit for port 0x3f8".to_owned())),
            _ => Err(Status::failed_precondition(format_args!(
                "VP {cpu} does not exist: there are 2"
            ))),
        }
    }

    async fn power_off(&self) -> Result<(), Status> {
        self.off.notify_one();
        self.note("power off".into())
    }
}

/// A server that ends with its value.
pub struct Server {
    pub vm: Arc<TestVm>,
    /// Its vsock.
    pub path: PathBuf,
    pub directory: TempDir,
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("kmsg"), KERNEL_LOG).unwrap();
        let vm = Arc::<TestVm>::default();
        let (ready, is_ready) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let options = Options {
            kernel_log: at("kmsg"),
            ..Options::default()
        };
        let (control, data) = (at("1"), at("2"));
        let served = vm.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listeners = Listeners {
                    control: Listener::unix(&control).unwrap(),
                    data: Listener::unix(&data).unwrap(),
                };
                ready.send(()).unwrap();
                let off = served.off.clone();
                let shutdown = async move { off.notified().await };
                let stats = Arc::<ServerStats>::default();
                diag_server::serve(listeners, served, options, stats, shutdown)
                    .await
                    .unwrap();
            });
            _ = end.send(());
        });
        is_ready.recv().unwrap();
        let path = at("vm.sock");
        forward(UnixListener::bind(&path).unwrap(), directory.path());
        Self {
            vm,
            path,
            directory,
            ended,
            thread: Some(thread),
        }
    }

    pub fn address(&self) -> VmAddress {
        VmAddress::HybridVsock(self.path.clone())
    }

    pub fn calls(&self) -> Vec<String> {
        self.vm.calls.lock().unwrap().clone()
    }

    /// Waits until the server has ended by itself.
    pub fn wait_for_end(&self) {
        self.ended.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.vm.off.notify_one();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking());
        }
    }
}

/// What a vsock helper does: the first line names the port, here a socket in `directory`.
fn forward(listener: UnixListener, directory: &Path) {
    let directory = directory.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let directory = directory.clone();
            thread::spawn(move || connect(client?, &directory));
        }
    });
}

fn connect(client: UnixStream, directory: &Path) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line)?;
    let port = line.trim().strip_prefix("CONNECT ").unwrap();
    // Nobody listens there: the connection is closed.
    let server = UnixStream::connect(directory.join(port))?;
    (&client).write_all(b"OK 1073741824\n")?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let inward = thread::spawn(move || pump(&from, &to));
    pump(&server, &client);
    _ = inward.join();
    Ok(())
}

/// Carries bytes until one side ends, and passes that on.
fn pump(mut from: &UnixStream, mut to: &UnixStream) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(count) if count > 0 && to.write_all(&buffer[..count]).is_ok() => {}
            _ => break,
        }
    }
    _ = to.shutdown(Shutdown::Write);
    _ = from.shutdown(Shutdown::Read);
}
