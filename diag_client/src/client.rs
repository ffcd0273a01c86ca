//! The calls.

use crate::DataStream;
use crate::Error;
use crate::VmAddress;
use crate::connection::Control;
use crate::connection::Method;
use crate::connection::open_data;
use crate::entries;
use diag_proto::diag;
use diag_proto::inspect as wire;
use diag_proto::openhcl;
use inspect::Node;
use inspect::Value;
use prost::Message;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// How long a call waits without [`Client::set_timeout`]. Under emulation on a busy machine
/// a second may pass before a process of the VM runs at all.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer the client waits than it tells the VM: so long may the answer travel
/// that says what came in time and what did not.
const TRAVEL: Duration = Duration::from_millis(500);

/// [`Client::connect_until`]: the time for one attempt, and the pause between two.
const ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// A client of one VM. Calls from several threads wait for each other; streams and
/// processes have connections of their own.
#[derive(Debug)]
pub struct Client {
    address: VmAddress,
    timeout: Duration,
    /// Opened by the first call, and again after one that broke it.
    control: Mutex<Option<Control>>,
}

impl Client {
    /// A client of a VM that is up. It is connected when this returns.
    ///
    /// # Errors
    ///
    /// There is no VM, or none that takes the connection.
    pub fn connect(address: VmAddress) -> Result<Self, Error> {
        Self::connect_within(address, DEFAULT_TIMEOUT)
    }

    /// Like [`Client::connect`], but with a timeout, for connecting and for each call.
    ///
    /// # Errors
    ///
    /// There is no VM, or none that takes the connection in time.
    pub fn connect_within(address: VmAddress, timeout: Duration) -> Result<Self, Error> {
        let control = Control::open(&address, timeout)?;
        Ok(Self::with(address, control, timeout))
    }

    /// A client of a VM that may not be up yet: tries again until `deadline`.
    ///
    /// A hybrid vsock has no event for "the guest listens now": a connection before that is
    /// closed by the helper. So this is a loop with a pause, the only one in this crate.
    ///
    /// # Errors
    ///
    /// That of the last attempt.
    pub fn connect_until(address: VmAddress, deadline: Instant) -> Result<Self, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match Control::open(&address, left.clamp(PAUSE, ATTEMPT)) {
                Ok(control) => return Ok(Self::with(address, control, DEFAULT_TIMEOUT)),
                Err(error) => error,
            };
            let may_come = matches!(
                error,
                Error::NoVm { .. } | Error::NotListening { .. } | Error::TimedOut { .. }
            ) || matches!(&error, Error::Connect { source, .. }
                if source.kind() == std::io::ErrorKind::TimedOut);
            if !may_come || Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
    }

    fn with(address: VmAddress, control: Control, timeout: Duration) -> Self {
        Self {
            address,
            timeout,
            control: Mutex::new(Some(control)),
        }
    }

    /// Where the VM is.
    pub fn address(&self) -> &VmAddress {
        &self.address
    }

    /// How long each call from now on waits for its answer.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// How long calls wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the paravisor answers, and how long that took.
    ///
    /// # Errors
    ///
    /// See [`Error`]; this holds for all calls.
    pub fn ping(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.empty_call(diag::OPENHCL_DIAG, "Ping", &diag::Empty {})?;
        Ok(start.elapsed())
    }

    /// What is at a path of the tree of live state, `depth` levels below it included. The
    /// VM gets [`Client::timeout`] to collect it; parts that are late are marked so.
    ///
    /// # Errors
    ///
    /// [`Error::Node`] if there is nothing at the path; failures below it are part of the
    /// result.
    pub fn inspect(&self, path: &str, depth: u32) -> Result<Node, Error> {
        let request = wire::InspectRequest {
            path: path.to_owned(),
            depth,
        };
        let method = Method {
            service: wire::INSPECT_SERVICE,
            name: "Inspect",
        };
        let answer = self.call(method, &request, |payload| {
            entries::check(payload)?;
            let response: wire::InspectResponse = decode(payload)?;
            response.result.ok_or_else(|| "without a node".to_owned())
        })?;
        match Node::from(answer) {
            Node::Failed(source) => Err(self.node_error(path, source)),
            node => Ok(node),
        }
    }

    /// Changes a value of the tree, and returns what it is then.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] with the VM's reason.
    pub fn update(&self, path: &str, value: &str) -> Result<Value, Error> {
        let request = wire::UpdateRequest {
            path: path.to_owned(),
            value: value.to_owned(),
        };
        let method = Method {
            service: wire::INSPECT_SERVICE,
            name: "Update",
        };
        let answer = self.call(method, &request, |payload| {
            let response: wire::UpdateResponse = decode(payload)?;
            response
                .new_value
                .ok_or_else(|| "without a value".to_owned())
        })?;
        Value::try_from(answer).map_err(|source| self.node_error(path, source))
    }

    /// The log of VTL2's kernel, as [`DataStream::records`] that
    /// [`KmsgRecord`](crate::KmsgRecord) reads. With `follow` it goes on with new ones;
    /// otherwise it ends with the last.
    ///
    /// # Errors
    ///
    /// As for all calls.
    pub fn kmsg(&self, follow: bool) -> Result<DataStream, Error> {
        let (conn, socket) = self.open_data()?;
        let request = diag::KmsgRequest { follow, conn };
        self.empty_call(diag::UNDERHILL_DIAG, "Kmsg", &request)?;
        Ok(DataStream::new(socket))
    }

    /// The bytes of a file in VTL2. With `follow` it goes on as the file grows.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the file cannot be opened.
    pub fn read_file(&self, path: &str, follow: bool) -> Result<DataStream, Error> {
        let (conn, socket) = self.open_data()?;
        let request = diag::FileRequest {
            follow,
            conn,
            file_path: path.to_owned(),
        };
        self.empty_call(diag::UNDERHILL_DIAG, "ReadFile", &request)?;
        Ok(DataStream::new(socket))
    }

    /// Starts a VM whose start was held back.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if it was not.
    pub fn start(&self, env: &[(String, Option<String>)], args: &[String]) -> Result<(), Error> {
        let request = diag::StartRequest {
            env: env_pairs(env),
            args: args.to_vec(),
        };
        self.empty_call(diag::UNDERHILL_DIAG, "Start", &request)
    }

    /// Restarts the worker. The answer comes when the new one runs.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if it cannot be.
    pub fn restart(&self) -> Result<(), Error> {
        self.empty_call(diag::UNDERHILL_DIAG, "Restart", &diag::Empty {})
    }

    /// Stops the VM's processors and devices.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if they cannot be.
    pub fn pause(&self) -> Result<(), Error> {
        self.empty_call(diag::UNDERHILL_DIAG, "Pause", &diag::Empty {})
    }

    /// Lets them go on.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if they cannot.
    pub fn resume(&self) -> Result<(), Error> {
        self.empty_call(diag::UNDERHILL_DIAG, "Resume", &diag::Empty {})
    }

    /// Makes a process of the paravisor crash, for a test of what happens then.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the process is none of the paravisor's. If it is the one that
    /// answers, [`Error::Closed`] is to be expected.
    pub fn crash(&self, pid: i32) -> Result<(), Error> {
        self.empty_call(diag::UNDERHILL_DIAG, "Crash", &diag::CrashRequest { pid })
    }

    /// The state that a servicing would save.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if it cannot be saved.
    pub fn dump_saved_state(&self) -> Result<Vec<u8>, Error> {
        let method = Method {
            service: diag::UNDERHILL_DIAG,
            name: "DumpSavedState",
        };
        self.call(method, &diag::Empty {}, |payload| {
            decode(payload).map(|response: diag::DumpSavedStateResponse| response.data)
        })
    }

    /// Stops worker and paravisor and powers the machine off. The answer comes before the
    /// end.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] from a paravisor without this method.
    pub fn power_off(&self) -> Result<(), Error> {
        self.empty_call(
            openhcl::OPENHCL_CONTROL,
            openhcl::POWER_OFF,
            &diag::Empty {},
        )?;
        // The server stays until its clients have gone, so that they get their answers.
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Has Linux boot a CPU of VTL2 that is in the sidecar. The answer comes when it is there,
    /// and says why it has left the sidecar, now or before; none: it was not there.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if there is no such CPU, or it cannot be booted.
    pub fn online_cpu(&self, cpu: u32) -> Result<Option<String>, Error> {
        let method = Method {
            service: openhcl::OPENHCL_CONTROL,
            name: openhcl::ONLINE_CPU,
        };
        let request = openhcl::OnlineCpuRequest { cpu };
        self.call(method, &request, |payload| {
            decode(payload).map(|response: openhcl::OnlineCpuResponse| response.reason)
        })
    }

    pub(crate) fn open_data(&self) -> Result<(u64, std::os::unix::net::UnixStream), Error> {
        open_data(&self.address, self.timeout)
    }

    /// A call over a connection that later calls use too.
    fn call<T>(
        &self,
        method: Method,
        request: &impl Message,
        decode: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, Error> {
        let mut shared = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let mut control = match shared.take().filter(Control::is_usable) {
            Some(control) => control,
            None => Control::open(&self.address, self.timeout)?,
        };
        let result = control.call(method, request, Some(self.timeout), TRAVEL, decode);
        if matches!(result, Ok(_) | Err(Error::Status { .. })) {
            *shared = Some(control);
        }
        result
    }

    fn empty_call(
        &self,
        service: &'static str,
        name: &'static str,
        request: &impl Message,
    ) -> Result<(), Error> {
        let method = Method { service, name };
        self.call(method, request, |payload| {
            decode(payload).map(|diag::Empty {}| ())
        })
    }

    fn node_error(&self, path: &str, source: inspect::Error) -> Error {
        let path = match path.trim_matches('/') {
            "" => "/",
            path => path,
        };
        Error::Node {
            path: path.to_owned(),
            source,
        }
    }
}

pub(crate) fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, String> {
    M::decode(payload).map_err(|error| error.to_string())
}

pub(crate) fn env_pairs(env: &[(String, Option<String>)]) -> Vec<diag::EnvPair> {
    env.iter()
        .map(|(name, value)| diag::EnvPair {
            name: name.clone(),
            value: value.clone(),
        })
        .collect()
}
