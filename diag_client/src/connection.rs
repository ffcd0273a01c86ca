//! Sockets to a VM, and one request at a time over one of them.

use crate::Error;
use crate::VmAddress;
use diag_proto::PORT_CONTROL;
use diag_proto::PORT_DATA;
use diag_proto::ttrpc;
use diag_proto::ttrpc::frame;
use diag_proto::ttrpc::frame::Kind;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::VsockAddr;
use nix::sys::socket::connect;
use nix::sys::socket::socket;
use prost::Message;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

/// Longest answer to the first line of a hybrid vsock; a real one has 14 bytes.
const MAX_HANDSHAKE: usize = 64;

/// A moment, and how far away it was at the start: the latter is for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) timeout: Duration,
    at: Option<Instant>,
}

impl Deadline {
    /// So far from now; a time that no clock can reach is no deadline.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self {
            timeout,
            at: Instant::now().checked_add(timeout),
        }
    }

    /// What is left, as a socket's timeout. `None`: no limit.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(at) = self.at else {
            return Ok(None);
        };
        match at.saturating_duration_since(Instant::now()) {
            // A socket takes a timeout of 0 for none at all.
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// A socket whose reads and writes end at a deadline.
struct Timed<'a> {
    socket: &'a UnixStream,
    deadline: &'a Deadline,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.deadline.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.deadline.left()?)?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream socket to a port of a VM.
///
/// The type is `UnixStream` for a vsock too: what the standard library does to it (read,
/// write, timeouts, shutdown) is the same for every stream socket.
fn open(address: &VmAddress, port: u32, deadline: &Deadline) -> Result<UnixStream, Error> {
    let result = match address {
        VmAddress::HybridVsock(path) => UnixStream::connect(path),
        VmAddress::Vsock(cid) => connect_vsock(*cid, port),
    };
    let socket = result.map_err(|source| no_connection(address, port, source))?;
    if let VmAddress::HybridVsock(_) = address {
        handshake(&socket, address, port, deadline)?;
    }
    Ok(socket)
}

/// The kernel limits the time by itself, to two seconds.
fn connect_vsock(cid: u32, port: u32) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(cid, port))?;
    Ok(socket.into())
}

fn no_connection(address: &VmAddress, port: u32, source: io::Error) -> Error {
    use io::ErrorKind as Kind;
    let address = address.clone();
    match (&address, source.kind()) {
        // The VM is there and has nobody at the port.
        (VmAddress::Vsock(_), Kind::ConnectionReset | Kind::ConnectionRefused) => {
            Error::NotListening { address, port }
        }
        (VmAddress::Vsock(_), _) if source.raw_os_error() == Some(nix::libc::ENODEV) => {
            Error::NoVm { address, source }
        }
        // A file that is left of a VM that has ended refuses.
        (VmAddress::HybridVsock(_), Kind::NotFound | Kind::ConnectionRefused) => {
            Error::NoVm { address, source }
        }
        _ => Error::Connect { address, source },
    }
}

/// Names the port, and waits for the line that says that the VM has taken the connection.
fn handshake(
    socket: &UnixStream,
    address: &VmAddress,
    port: u32,
    deadline: &Deadline,
) -> Result<(), Error> {
    let what = || format!("{address}: connecting to vsock port {port}");
    let mut timed = Timed { socket, deadline };
    let not_listening = || Error::NotListening {
        address: address.clone(),
        port,
    };
    match timed.write_all(format!("CONNECT {port}\n").as_bytes()) {
        Err(error) if is_hang_up(&error) => return Err(not_listening()),
        result => result.map_err(|error| broken(what(), deadline, error))?,
    }
    // Byte by byte: what follows the line belongs to the protocol.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < MAX_HANDSHAKE {
        let mut byte = [0];
        match timed.read_exact(&mut byte) {
            Ok(()) => line.extend(byte),
            Err(error) if is_hang_up(&error) && line.is_empty() => return Err(not_listening()),
            Err(error) if is_hang_up(&error) => break,
            Err(error) => return Err(broken(what(), deadline, error)),
        }
    }
    if line.starts_with(b"OK ") && line.ends_with(b"\n") {
        return Ok(());
    }
    Err(Error::NotHybridVsock {
        address: address.clone(),
        answer: String::from_utf8_lossy(&line).into_owned(),
    })
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe
    )
}

/// The error for a socket that failed.
fn broken(what: String, deadline: &Deadline, source: io::Error) -> Error {
    match source.kind() {
        // The first is what a socket says whose timeout has passed.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TimedOut {
            what,
            timeout: deadline.timeout,
        },
        io::ErrorKind::InvalidData => Error::Protocol {
            what,
            reason: source.to_string(),
        },
        _ if is_hang_up(&source) => Error::Closed { what },
        _ => Error::Io { what, source },
    }
}

/// A data connection and the id by which requests name it.
pub(crate) fn open_data(
    address: &VmAddress,
    timeout: Duration,
) -> Result<(u64, UnixStream), Error> {
    let deadline = Deadline::after(timeout);
    let socket = open(address, PORT_DATA, &deadline)?;
    let mut id = [0; 8];
    let mut timed = Timed {
        socket: &socket,
        deadline: &deadline,
    };
    let what = || format!("{address}: id of a data connection");
    timed
        .read_exact(&mut id)
        .map_err(|error| broken(what(), &deadline, error))?;
    socket
        .set_read_timeout(None)
        .and_then(|()| socket.set_write_timeout(None))
        .map_err(|source| Error::Io {
            what: what(),
            source,
        })?;
    match u64::from_le_bytes(id) {
        0 => Err(Error::Protocol {
            what: what(),
            reason: "0, expected an id from 1".into(),
        }),
        id => Ok((id, socket)),
    }
}

/// A control connection.
#[derive(Debug)]
pub(crate) struct Control {
    socket: UnixStream,
    /// Odd, and greater than all before; `None` when the numbers are used up.
    next_stream: Option<u32>,
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub(crate) service: &'static str,
    pub(crate) name: &'static str,
}

impl Control {
    pub(crate) fn open(address: &VmAddress, timeout: Duration) -> Result<Self, Error> {
        let socket = open(address, PORT_CONTROL, &Deadline::after(timeout))?;
        Ok(Self {
            socket,
            next_stream: Some(1),
        })
    }

    /// Whether it can carry another request.
    pub(crate) fn is_usable(&self) -> bool {
        self.next_stream.is_some()
    }

    /// Sends a request and waits for its response, which `decode` reads; without a timeout
    /// for ever. The VM is told `timeout`, and the answer gets `travel` on top. After an
    /// error other than [`Error::Status`] the connection is of no use.
    pub(crate) fn call<T>(
        &mut self,
        method: Method,
        request: &impl Message,
        timeout: Option<Duration>,
        travel: Duration,
        decode: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, Error> {
        let deadline = Deadline::after(timeout.unwrap_or(Duration::MAX).saturating_add(travel));
        let message = ttrpc::Request {
            service: method.service.to_owned(),
            method: method.name.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: timeout
                .and_then(|timeout| i64::try_from(timeout.as_nanos()).ok())
                .unwrap_or(0),
            metadata: Vec::new(),
        };
        let bad = |reason: String| Error::Protocol {
            what: method.name.to_owned(),
            reason,
        };
        let stream = self
            .next_stream
            .ok_or_else(|| bad("no number is left for a request".into()))?;
        self.next_stream = stream.checked_add(2);
        let bytes =
            frame::encode_request(stream, &message).map_err(|error| bad(error.to_string()))?;
        let mut timed = Timed {
            socket: &self.socket,
            deadline: &deadline,
        };
        let failed = |error| broken(method.name.to_owned(), &deadline, error);
        timed.write_all(&bytes).map_err(failed)?;
        let response = receive(&mut timed, stream, method, &deadline)?;
        if let Some(status) = response.status
            && status.code != ttrpc::Code::Ok as i32
        {
            return Err(Error::Status {
                what: method.name.to_owned(),
                code: status.code,
                message: status.message,
            });
        }
        decode(&response.payload).map_err(bad)
    }
}

/// The response of a stream. Others are answers that came too late for who asked.
fn receive(
    timed: &mut Timed<'_>,
    stream: u32,
    method: Method,
    deadline: &Deadline,
) -> Result<ttrpc::Response, Error> {
    let what = || method.name.to_owned();
    loop {
        let frame = frame::read_frame(timed, frame::MAX_MESSAGE)
            .map_err(|error| broken(what(), deadline, error))?
            .ok_or_else(|| Error::Closed { what: what() })?;
        if frame.header.stream_id != stream || frame.header.kind != Kind::RESPONSE {
            continue;
        }
        return ttrpc::Response::decode(frame.message.as_slice()).map_err(|error| {
            Error::Protocol {
                what: what(),
                reason: error.to_string(),
            }
        });
    }
}
