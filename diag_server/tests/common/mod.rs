//! A server on Unix sockets in a thread of its own, and a blocking client that can also
//! misbehave.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file uses another part of it"
)]

use diag_proto::diag;
use diag_proto::inspect;
use diag_proto::ttrpc::Code;
use diag_proto::ttrpc::Request;
use diag_proto::ttrpc::Response;
use diag_proto::ttrpc::frame::Frame;
use diag_proto::ttrpc::frame::Header;
use diag_proto::ttrpc::frame::Kind;
use diag_proto::ttrpc::frame::MAX_MESSAGE;
use diag_proto::ttrpc::frame::encode_request;
use diag_proto::ttrpc::frame::read_frame;
use diag_server::Handler;
use diag_server::InspectCall;
use diag_server::Limits;
use diag_server::Listener;
use diag_server::Listeners;
use diag_server::Options;
use diag_server::ServerStats;
use diag_server::Status;
use diag_server::UpdateCall;
use prost::Message;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Notify;

/// After this, a test that waits says so. Nothing is meant to take so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the paravisor would do, as far as tests look at it.
#[derive(Default)]
pub struct TestHandler {
    /// What has been called.
    pub calls: Mutex<Vec<String>>,
    /// `restart` waits for it.
    pub release: Notify,
    /// `power_off` resolves it.
    pub off: Arc<Notify>,
}

impl TestHandler {
    fn note(&self, call: impl ToString) {
        self.calls
            .lock()
            .expect("not poisoned")
            .push(call.to_string());
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("not poisoned").clone()
    }
}

/// Counts for as long as a call goes on.
struct Dropped<'a>(&'a TestHandler, &'static str);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}

pub fn text_node(text: impl Into<String>) -> inspect::Node {
    inspect::Node {
        kind: Some(inspect::NodeKind::Value(text_value(text))),
    }
}

pub fn text_value(text: impl Into<String>) -> inspect::Value {
    inspect::Value {
        kind: Some(inspect::ValueKindMessage {
            kind: Some(inspect::ValueKind::String(text.into())),
        }),
        flags: None,
    }
}

fn entry(name: &str, level: inspect::Sensitivity) -> inspect::Entry {
    inspect::Entry {
        name: name.into(),
        node: Some(text_node(name)),
        sensitivity: Some(inspect::SensitivityLevel { level: Some(level) }),
    }
}

impl Handler for TestHandler {
    async fn inspect(&self, call: InspectCall) -> Result<inspect::Node, Status> {
        self.note(format!("inspect {} {}", call.path, call.depth));
        match call.path.as_str() {
            "hang" => std::future::pending().await,
            "partial" => {
                let deadline = call.deadline.expect("this path needs one");
                tokio::time::sleep_until(deadline.into()).await;
                Ok(text_node("partial"))
            }
            "large" => Ok(text_node("x".repeat(1 << 20))),
            "too large" => Ok(text_node("x".repeat(5 << 20))),
            "levels" => Ok(inspect::Node {
                kind: Some(inspect::NodeKind::Dir(inspect::Dir {
                    entries: vec![
                        entry("safe", inspect::Sensitivity::Safe(())),
                        entry("unspecified", inspect::Sensitivity::Unspecified(())),
                        entry("sensitive", inspect::Sensitivity::Sensitive(())),
                    ],
                })),
            }),
            path => Ok(text_node(format!("{path} {:?}", call.visibility))),
        }
    }

    async fn update(&self, call: UpdateCall) -> Result<inspect::Value, Status> {
        self.note(format!("update {}={}", call.path, call.value));
        Ok(text_value(call.value))
    }

    async fn start(&self, request: diag::StartRequest) -> Result<(), Status> {
        self.note(format!("start {:?} {:?}", request.args, request.env));
        Ok(())
    }

    async fn restart(&self) -> Result<(), Status> {
        self.note("restart begins");
        let _dropped = Dropped(self, "restart ends");
        self.release.notified().await;
        Ok(())
    }

    async fn pause(&self) -> Result<(), Status> {
        Err(Status::failed_precondition("there is no VM"))
    }

    async fn crash(&self, pid: i32) -> Result<(), Status> {
        self.note(format!("crash {pid}"));
        Ok(())
    }

    async fn dump_saved_state(&self) -> Result<Vec<u8>, Status> {
        Ok(vec![1, 2, 3])
    }

    async fn online_cpu(&self, cpu: u32) -> Result<Option<String>, Status> {
        self.note(format!("online {cpu}"));
        Ok((cpu != 0).then(|| "request".to_owned()))
    }

    async fn power_off(&self) -> Result<(), Status> {
        self.off.notify_one();
        Ok(())
    }
}

/// A server that ends with its value.
pub struct Server {
    pub directory: TempDir,
    pub handler: Arc<TestHandler>,
    pub stats: Arc<ServerStats>,
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with_limits(change: impl FnOnce(&mut Limits)) -> Self {
        let mut options = Options::default();
        change(&mut options.limits);
        Self::with(options)
    }

    pub fn with(options: Options) -> Self {
        let directory = TempDir::new().expect("a directory");
        let handler = Arc::<TestHandler>::default();
        let stats = Arc::<ServerStats>::default();
        let (ready, is_ready) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let paths = ["control", "data"].map(|name| directory.path().join(name));
        let (the_handler, the_stats) = (handler.clone(), stats.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let [control, data] = paths.map(|path| Listener::unix(&path).expect("a socket"));
                ready.send(()).expect("the test waits");
                let off = the_handler.off.clone();
                let shutdown = async move { off.notified().await };
                let listeners = Listeners { control, data };
                diag_server::serve(listeners, the_handler, options, the_stats, shutdown)
                    .await
                    .expect("the server ends well");
            });
            let _ = end.send(());
        });
        is_ready.recv_timeout(PATIENCE).expect("the server is up");
        Self {
            directory,
            handler,
            stats,
            ended,
            thread: Some(thread),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn control_path(&self) -> PathBuf {
        self.path("control")
    }

    /// A control connection.
    pub fn connect(&self) -> Client {
        Client::new(connect(self.control_path()))
    }

    /// A data connection and its id.
    pub fn data(&self) -> (u64, UnixStream) {
        let mut stream = connect(self.path("data"));
        let mut id = [0; 8];
        stream.read_exact(&mut id).expect("an id");
        (u64::from_le_bytes(id), stream)
    }

    /// A data connection whose id is not read, if there is one.
    pub fn data_unread(&self) -> UnixStream {
        connect(self.path("data"))
    }

    /// Waits until the server has ended.
    pub fn wait_for_end(&self) {
        self.ended.recv_timeout(PATIENCE).expect("the server ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handler.off.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server panicked");
        }
    }
}

fn connect(path: PathBuf) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Waits until `condition` holds: for what the server does with no event to outside.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: never");
        std::thread::yield_now();
    }
}

/// Result of a request.
pub type Outcome = Result<Vec<u8>, (Code, String)>;

/// A client of a control connection.
pub struct Client {
    pub stream: UnixStream,
    next_id: u32,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, next_id: 1 }
    }

    /// Sends a request and returns its stream id.
    pub fn send(&mut self, service: &str, method: &str, payload: &impl Message) -> u32 {
        self.send_with(service, method, payload.encode_to_vec(), 0)
    }

    pub fn send_with(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        timeout_nano: i64,
    ) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload,
            timeout_nano,
            metadata: vec![],
        };
        let frame = encode_request(id, &request).expect("short");
        self.stream.write_all(&frame).expect("the server reads");
        id
    }

    /// Sends a frame as it is.
    pub fn send_frame(&mut self, stream_id: u32, kind: Kind, flags: u8, message: &[u8]) {
        let header = Header {
            length: message.len() as u32,
            stream_id,
            kind,
            flags,
        };
        let frame = [header.to_bytes().as_slice(), message].concat();
        self.stream.write_all(&frame).expect("the server reads");
    }

    /// The next response and its stream id; `None` at the end of the connection.
    pub fn response(&mut self) -> Option<(u32, Outcome)> {
        let frame = read_frame(&mut self.stream, MAX_MESSAGE).expect("a frame in time")?;
        let Frame { header, message } = frame;
        assert_eq!((header.kind, header.flags), (Kind::RESPONSE, 0));
        let response = Response::decode(message.as_slice()).expect("a response");
        let outcome = match response.status {
            None => Ok(response.payload),
            Some(status) => {
                let code = Code::try_from(status.code).expect("a known code");
                Err((code, status.message))
            }
        };
        Some((header.stream_id, outcome))
    }

    pub fn call_raw(&mut self, service: &str, method: &str, payload: Vec<u8>) -> Outcome {
        let id = self.send_with(service, method, payload, 0);
        let (answered, outcome) = self.response().expect("an answer");
        assert_eq!(answered, id);
        outcome
    }

    pub fn call<T: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        payload: &impl Message,
    ) -> Result<T, (Code, String)> {
        let payload = self.call_raw(service, method, payload.encode_to_vec())?;
        Ok(T::decode(payload.as_slice()).expect("the method's answer"))
    }

    pub fn ping(&mut self) {
        let answer = self.call_raw(diag::OPENHCL_DIAG, "Ping", vec![]);
        assert_eq!(answer, Ok(vec![]));
    }

    pub fn diag<T: Message + Default>(
        &mut self,
        method: &str,
        payload: &impl Message,
    ) -> Result<T, (Code, String)> {
        self.call(diag::UNDERHILL_DIAG, method, payload)
    }

    pub fn exec(&mut self, request: &diag::ExecRequest) -> Result<i32, (Code, String)> {
        self.diag::<diag::ExecResponse>("Exec", request)
            .map(|response| response.pid)
    }

    pub fn wait(&mut self, pid: i32) -> Result<i32, (Code, String)> {
        self.diag::<diag::WaitResponse>("Wait", &diag::WaitRequest { pid })
            .map(|response| response.exit_code)
    }

    pub fn inspect(&mut self, path: &str) -> Result<inspect::Node, (Code, String)> {
        let request = inspect::InspectRequest {
            path: path.into(),
            depth: u32::MAX,
        };
        self.call::<inspect::InspectResponse>(inspect::INSPECT_SERVICE, "Inspect", &request)
            .map(|response| response.result.expect("a node"))
    }
}

/// All that comes until the server ends the stream.
pub fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an end in time");
    bytes
}

pub fn read_text(stream: &mut UnixStream) -> String {
    String::from_utf8(read_all(stream)).expect("text")
}

/// `sh -c script`, with no streams.
pub fn shell(script: &str) -> diag::ExecRequest {
    diag::ExecRequest {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        ..Default::default()
    }
}
