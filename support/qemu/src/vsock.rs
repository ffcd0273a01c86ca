//! vsock: how programs on this host reach programs in the machine.
//!
//! QEMU has no vsock of its own. Either the kernel carries it (`vhost-vsock`, which needs
//! `/dev/vhost-vsock`), or the program `vhost-device-vsock` does, as a vhost-user device
//! with a Unix socket for the host's side ("hybrid vsock": connect, send `CONNECT port`).
//! A guest cannot tell them apart.
//!
//! # Defects of `vhost-device-vsock` 0.3.0, and what is done about each
//!
//! - It cannot say when it listens. [`VsockHelper::start`] connects to it and hands QEMU
//!   the connected socket, so that QEMU finds it ready or is not started at all.
//! - A connection that comes while the guest's driver sets up its queues ends its event
//!   loop, and with it all vsock of this machine; before that, each one is accepted,
//!   closed and answered with a line in the log. So nobody may connect before the guest
//!   has said that it listens: `cargo xtask run` and the tests wait for that line.
//! - It closes a connection whose first line has not come whole when it first looks. So
//!   clients send `CONNECT port` in one write.
//! - It drops packets that the guest's kernel sends in several pieces, as it does with
//!   writes above 32 KiB, and the connection then hangs. Guests write 16 KiB at most.
//! - A half-closed connection does not exist for it: the host's `shutdown(SHUT_WR)` closes
//!   both directions in the guest, the guest's is not passed on at all. Protocols must not
//!   use it.
//! - When the guest closes while the host's reader is so far behind that the socket is
//!   full, what is still in the helper's buffer arrives only within the 8 seconds for which
//!   the guest's kernel waits. [`TX_BUFFER_BYTES`] bounds what such a reader can lose.
//! - What it drops it mentions only at level *debug*: its log is kept at that level for
//!   the two modules that do, in bounded size.

use crate::CommandLine;
use crate::StartError;
use crate::leash::spawn_leashed;
use crate::private_dir::PrivateDirectory;
use crate::private_dir::SOCKET_PATH_MAX;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::VsockAddr;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// The guest's address where each machine has a vsock of its own.
pub(crate) const GUEST_CID: u32 = 3;

/// What the guest may have under way in one connection before the host has read it.
const TX_BUFFER_BYTES: u32 = 64 << 10;

/// File beside the consoles with what the helper said.
pub(crate) const LOG_FILE: &str = "vsock.log";

/// The log ends here; the helper can be made to say the same line without end.
const MAX_LOG_BYTES: usize = 256 << 10;

/// Levels at which the helper tells what it drops, and nothing for each packet.
const LOG_LEVELS: &str = "warn,vhost_device_vsock::vsock_conn=debug,\
     vhost_device_vsock::vhu_vsock_thread=debug";

/// When a helper that does not listen counts as broken. It takes some milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Pause between two attempts to connect.
const START_RETRY: Duration = Duration::from_millis(1);

/// The answer to `CONNECT port` is `OK` and a port.
const MAX_ANSWER: usize = 32;

/// Names of the sockets below the machine's private directory.
pub(crate) const VHOST_SOCKET: &str = "vhost.sock";
const HOST_SOCKET: &str = "vm.sock";

/// Where they are when the command line is for a person: below the current directory.
pub(crate) const PRINTED_SOCKETS: &str = "openhcl-vsock";

/// What carries a machine's vsock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vsock {
    /// The kernel. See [`Vsock::kernel_is_usable`].
    Kernel,
    /// The program `vhost-device-vsock` at this path, one process for each machine.
    Helper(PathBuf),
}

/// Where a running machine's vsock is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockAddress {
    /// A Unix socket: connect, send `CONNECT port\n`, read `OK …\n`.
    Hybrid(PathBuf),
    /// A context id: `AF_VSOCK` sockets reach it.
    Cid(u32),
}

/// QEMU's end of a machine's vsock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockEnd {
    /// Descriptor of an inherited socket that the helper is connected to.
    Socket(i32),
    /// The kernel's vsock, with this address for the guest.
    Cid(u32),
}

/// A running `vhost-device-vsock`. Dropping it ends the process and removes its sockets.
pub(crate) struct VsockHelper {
    child: Child,
    log: Option<JoinHandle<()>>,
    directory: PrivateDirectory,
}

impl Vsock {
    /// Whether this process can use the kernel's vsock: device and sockets are opened.
    pub fn kernel_is_usable() -> bool {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-vsock");
        device.is_ok() && vsock_socket().is_ok()
    }

    /// What a person runs before the command line for [`Wiring::Terminal`](crate::Wiring),
    /// where that is necessary.
    pub fn printed_command(&self) -> Option<String> {
        let line = self.helper_command(Path::new(PRINTED_SOCKETS))?;
        let text = line.shell_text();
        Some(format!("mkdir -p -m 700 {PRINTED_SOCKETS} && {text}"))
    }

    /// The helper's command for sockets in `directory`, where one is needed.
    fn helper_command(&self, directory: &Path) -> Option<CommandLine> {
        let Self::Helper(program) = self else {
            return None;
        };
        let mut line = CommandLine::new(program);
        let path = |name| directory.join(name).display().to_string();
        line.option(
            "--vm",
            format!(
                "guest-cid={GUEST_CID},socket={},uds-path={},tx-buffer-size={TX_BUFFER_BYTES}",
                path(VHOST_SOCKET),
                path(HOST_SOCKET)
            ),
        );
        Some(line)
    }
}

impl VsockAddress {
    /// Connects to a port that a program in the machine listens on.
    pub fn connect(&self, port: u32) -> io::Result<File> {
        match self {
            Self::Hybrid(path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
                // Byte by byte: what follows the line belongs to the caller.
                let mut answer = Vec::new();
                while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
                    let mut byte = [0];
                    if io::Read::read(&mut stream, &mut byte)? == 0 {
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                    answer.push(byte[0]);
                }
                match answer.starts_with(b"OK ") {
                    true => Ok(File::from(OwnedFd::from(stream))),
                    false => Err(io::Error::other(format!(
                        "the answer to CONNECT is {:?}, expected OK",
                        String::from_utf8_lossy(&answer)
                    ))),
                }
            }
            Self::Cid(cid) => {
                let socket = vsock_socket()?;
                socket::connect(
                    std::os::fd::AsRawFd::as_raw_fd(&socket),
                    &VsockAddr::new(*cid, port),
                )?;
                Ok(File::from(socket))
            }
        }
    }
}

/// Ends a connection in both directions, for all descriptors of it.
pub(crate) fn shut_down(stream: &File) {
    // One that has ended needs no end.
    let _ = socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(stream),
        socket::Shutdown::Both,
    );
}

fn vsock_socket() -> nix::Result<OwnedFd> {
    socket::socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

impl VsockEnd {
    /// An address of the kernel's vsock that no other machine has: one of 2^31, by chance.
    /// QEMU does not start if it is taken all the same.
    pub(crate) fn any_cid() -> io::Result<u32> {
        let mut bytes = [0; 4];
        io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
        // Below 3 and from 2^32 - 1 on they mean something else (vsock(7)).
        Ok((u32::from_le_bytes(bytes) >> 1).max(GUEST_CID))
    }
}

impl VsockHelper {
    /// Starts the program and connects to it; the socket is for QEMU. What it says goes to
    /// the file `log`.
    pub(crate) fn start(program: &Path, log: &Path) -> Result<(Self, UnixStream), StartError> {
        let io = |what: String| move |source| StartError::Io { what, source };
        let directory =
            PrivateDirectory::new().map_err(io("a directory for vsock's sockets".to_owned()))?;
        let line = Vsock::Helper(program.to_owned()).helper_command(directory.path());
        let line = line.unwrap_or_else(|| CommandLine::new(program));
        let keeping = || io(format!("keeping vsock's log in {}", log.display()));
        let file = File::create(log).map_err(keeping())?;
        let (said, theirs) = io::pipe().map_err(keeping())?;

        let mut command = line.to_command();
        command
            .env("RUST_LOG", LOG_LEVELS)
            .env_remove("RUST_LOG_STYLE")
            .stdin(Stdio::null())
            .stdout(theirs.try_clone().map_err(keeping())?)
            .stderr(theirs);
        let child = spawn_leashed(command, Vec::new())
            .map_err(io(format!("starting {}", program.display())))?;
        let mut helper = Self {
            child,
            log: None,
            directory,
        };
        let reader = std::thread::Builder::new()
            .name("vsock log".to_owned())
            .spawn(move || keep_log(BufReader::new(said), file));
        helper.log = Some(reader.map_err(keeping())?);
        let socket = helper.connect(program, log)?;
        Ok((helper, socket))
    }

    /// Where the host's programs connect.
    pub(crate) fn address(&self) -> VsockAddress {
        VsockAddress::Hybrid(self.directory.path().join(HOST_SOCKET))
    }

    /// Connects as soon as the helper listens. Nothing tells when that is: the socket's
    /// file is there a little earlier.
    fn connect(&mut self, program: &Path, log: &Path) -> Result<UnixStream, StartError> {
        let path = self.directory.path().join(VHOST_SOCKET);
        debug_assert!(path.as_os_str().len() <= SOCKET_PATH_MAX);
        let started = Instant::now();
        loop {
            let refused = match UnixStream::connect(&path) {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > START_DEADLINE {
                return Err(StartError::Helper {
                    program: program.to_owned(),
                    log: log.to_owned(),
                    reason: match ended {
                        Some(status) => format!("ended with {status}"),
                        None => format!("{refused} after {START_DEADLINE:?}"),
                    },
                });
            }
            std::thread::sleep(START_RETRY);
        }
    }
}

impl Drop for VsockHelper {
    fn drop(&mut self) {
        // It has nothing to put in order, and nobody is left to be told.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

/// Copies lines to `file` until the stream ends: a line that repeats is counted, and after
/// [`MAX_LOG_BYTES`] nothing is kept. The stream is read on, so that the helper never waits.
fn keep_log(mut said: impl BufRead, mut file: impl Write) {
    let mut kept = 0;
    let mut last = Vec::new();
    let mut repeated = 0u64;
    let mut keep = |line: &[u8]| {
        if kept >= MAX_LOG_BYTES {
            return;
        }
        // A full disk is no reason to stop the machine.
        let _ = file.write_all(line);
        kept += line.len();
        if kept >= MAX_LOG_BYTES {
            let _ = file.write_all(b"(the rest was not kept)\n");
        }
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without end is taken in pieces.
        let piece = io::Read::take(&mut said, 4096).read_until(b'\n', &mut line);
        if !matches!(piece, Ok(1..)) {
            break;
        }
        // The time in front differs.
        let text = line.splitn(2, |byte| *byte == b' ').last().unwrap_or(&line);
        if text == last {
            repeated += 1;
            continue;
        }
        if repeated != 0 {
            keep(format!("  ({repeated} more of the line above)\n").as_bytes());
            repeated = 0;
        }
        last = text.to_vec();
        keep(&line);
    }
    if repeated != 0 {
        keep(format!("  ({repeated} more of the line above)\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A program in the helper's place. `$2` is its configuration.
    fn fake(script: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("helper");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let log = directory.path().join(LOG_FILE);
        (directory, program, log)
    }

    #[test]
    fn a_helper_that_ends_is_an_error_with_its_log() {
        let (_directory, program, log) = fake("echo \"bad option $2\" >&2; exit 3");
        let error = VsockHelper::start(&program, &log).err().unwrap();
        let text = error.to_string();
        for part in [program.to_str().unwrap(), LOG_FILE, "exit status: 3"] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains("bad option guest-cid=3,socket="), "{log}");
    }

    #[test]
    fn a_helper_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG_FILE);
        let error = VsockHelper::start(Path::new("/nonexistent/helper"), &log);
        let text = error.err().unwrap().to_string();
        assert!(text.contains("/nonexistent/helper"), "{text}");
    }

    fn kept(said: &str) -> String {
        let mut file = Vec::new();
        keep_log(said.as_bytes(), &mut file);
        String::from_utf8(file).unwrap()
    }

    #[test]
    fn a_line_that_repeats_is_counted_whatever_the_time_in_front_of_it() {
        let log = kept("[1 WARN] again\n[2 WARN] again\n[3 WARN] again\n[4 WARN] other\n");
        assert_eq!(
            log,
            "[1 WARN] again\n  (2 more of the line above)\n[4 WARN] other\n"
        );
        assert!(kept("[1 x\n[2 x\n").ends_with("(1 more of the line above)\n"));
    }

    #[test]
    fn a_flood_of_different_lines_is_cut() {
        let flood: String = (0..50_000).map(|n| format!("[0 line {n}\n")).collect();
        let log = kept(&flood);
        assert!(log.len() < MAX_LOG_BYTES + 8192, "{} bytes", log.len());
        assert!(log.ends_with("(the rest was not kept)\n"));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let log = kept(&"x".repeat(2 * MAX_LOG_BYTES));
        assert!(log.len() < MAX_LOG_BYTES + 8192, "{} bytes", log.len());
    }

    #[test]
    fn addresses_of_the_kernel_are_those_of_guests() {
        for _ in 0..100 {
            let cid = VsockEnd::any_cid().unwrap();
            assert!((GUEST_CID..u32::MAX).contains(&cid));
        }
    }
}
