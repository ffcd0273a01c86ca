//! Streams of bytes on tokio's reactor: sockets of any family, pipes, terminals.
//!
//! tokio knows Unix sockets but not AF_VSOCK, and its types insist on the address family.
//! What is needed here is little and the same for all, so a stream is a bare descriptor.
//!
//! * Promises: nothing blocks; a vsock stream works through the vhost-user helper on plain
//!   QEMU, whose defects are described where they are dealt with.
//! * Refuses: framing, buffers, and any limit on how much or how long: that is the
//!   caller's.

mod changes;
mod sys;

use changes::Changes;

use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::OFlag;
use nix::fcntl::fcntl;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::Shutdown;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrLike;
use nix::sys::socket::UnixAddr;
use nix::sys::socket::VsockAddr;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::io::unix::AsyncFdReadyGuard;
use tokio::task::coop::consume_budget;

/// Most bytes of one write.
///
/// Linux puts a vsock packet of more than 32 KiB into several descriptors, and the
/// vhost-user helper on plain QEMU drops such a packet without a word: a write of 64 KiB
/// stalls the connection for ever. 16 KiB always is one descriptor.
pub const MAX_WRITE: usize = 16 << 10;

/// Connections that the kernel holds until they are accepted. With 8, a client that
/// connects often in a row is refused by the vhost-user helper.
const BACKLOG: i32 = 128;

/// Pause when the system has no descriptor or memory for another connection: no event
/// tells when it has.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// When the end of a vsock connection is said again, see [`Stream::finish`].
const SAY_AGAIN: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(9),
];

/// Reads of 4 KiB in which what has arrived is dropped: what a socket holds.
const DROPS_MAX: u32 = 64;

/// How long a vsock connection is quiet before the helper is told to look at its client.
///
/// When a client ends with bytes in its socket that it has not read, the vhost-user helper
/// gets an error instead of the end, and does not pass it on: the connection would be there
/// for ever. A packet about the buffer's size makes it look again, and then it sees the end.
const QUIET: Duration = Duration::from_secs(10);

/// A listening socket.
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    kind: Kind,
}

/// What a descriptor is, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vsock,
    /// A Unix socket, a pipe, a terminal.
    Other,
}

impl Listener {
    /// Listens on a vsock port of this machine; below 1024 that needs
    /// `CAP_NET_BIND_SERVICE`. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Those of socket, bind and listen.
    pub fn vsock(port: u32) -> io::Result<Self> {
        let address = VsockAddr::new(nix::libc::VMADDR_CID_ANY, port);
        Self::bind(Kind::Vsock, AddressFamily::Vsock, &address)
    }

    /// Listens on a Unix socket at `path`, which must not exist. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// Those of socket, bind and listen.
    pub fn unix(path: &Path) -> io::Result<Self> {
        Self::bind(Kind::Other, AddressFamily::Unix, &UnixAddr::new(path)?)
    }

    fn bind(kind: Kind, family: AddressFamily, address: &dyn SockaddrLike) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(family, SockType::Stream, flags, None)?;
        socket::bind(fd.as_raw_fd(), address)?;
        socket::listen(&fd, Backlog::new(BACKLOG)?)?;
        let fd = sys::watched(fd, Interest::READABLE)?;
        Ok(Self { fd, kind })
    }

    /// The next connection. Only errors of the listener itself are returned.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            let mut guard = self.fd.readable().await?;
            match sys::accept(&self.fd).and_then(|fd| Stream::new(fd).map_err(errno)) {
                Ok(stream) => {
                    return Ok(Stream {
                        kind: self.kind,
                        ..stream
                    });
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    tracing::warn!(%error, "a connection must wait");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error @ (Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK)) => {
                    return Err(error.into());
                }
                // The connection has ended before it was accepted.
                Err(error) => tracing::debug!(%error, "a connection could not be accepted"),
            }
        }
    }
}

/// The error number in an error of the reactor.
fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

/// A stream of bytes that does not block.
pub struct Stream {
    fd: AsyncFd<OwnedFd>,
    kind: Kind,
}

impl Stream {
    /// Takes a descriptor, which must not block.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let fd = sys::watched(fd, Interest::READABLE.add(Interest::WRITABLE))?;
        Ok(Self {
            fd,
            kind: Kind::Other,
        })
    }

    /// Takes one end of a pipe or terminal and makes it not block.
    pub fn unblocked(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = fd.into();
        set_blocking(&fd, false)?;
        Self::new(fd)
    }

    /// Reads what is there, or waits for something. 0: the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_ready(Interest::READABLE, || nix::unistd::read(&self.fd, buffer))
            .await
    }

    /// Reads what is there; `None`: there is nothing now. `Some(0)`: the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                result => return Ok(Some(result?)),
            }
        }
    }

    /// Writes a part of `bytes` and says how many, as soon as there is room. If the future
    /// is dropped, nothing was written.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(MAX_WRITE)];
        self.until_ready(Interest::WRITABLE, || nix::unistd::write(&self.fd, part))
            .await
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Does `operation` as soon as it would not block.
    ///
    /// The first attempt is made without asking the reactor, whose idea of what is ready
    /// [`hung_up`](Self::hung_up) spoils.
    async fn until_ready(
        &self,
        interest: Interest,
        mut operation: impl FnMut() -> nix::Result<usize>,
    ) -> io::Result<usize> {
        // Before the operation, because the future may be dropped here.
        consume_budget().await;
        loop {
            match operation() {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {}
                result => return Ok(result?),
            }
            let mut guard = self.ready(interest).await?;
            match operation() {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => guard.clear_ready(),
                result => return Ok(result?),
            }
        }
    }

    /// What the reactor says, and on vsock a look at the peer from time to time.
    async fn ready(&self, interest: Interest) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        if self.kind != Kind::Vsock {
            return self.fd.ready(interest).await;
        }
        loop {
            match tokio::time::timeout(QUIET, self.fd.ready(interest)).await {
                Ok(ready) => return ready,
                Err(_) => sys::tell_buffer_size(self.fd.get_ref())?,
            }
        }
    }

    /// Waits for more to read, when a read has just found nothing.
    pub async fn wait_for_more(&self) -> io::Result<()> {
        let mut guard = self.fd.ready(Interest::READABLE).await?;
        // It may be the readiness of before that read: then the caller reads once in vain.
        guard.clear_ready();
        Ok(())
    }

    /// Waits until the peer of a socket has closed it, or has said that it will send no
    /// more, whether or not all that it has sent has been read.
    ///
    /// The two are taken for the same, because on vsock they are: the helper, and so the
    /// host's clients, only know the whole of a connection.
    pub async fn hung_up(&self) {
        while let Ok(mut guard) = self.ready(Interest::READABLE).await {
            if guard.ready().is_read_closed() {
                return;
            }
            guard.clear_ready();
        }
    }

    /// Ends a socket when all is sent, and gives the peer `patience` to fetch it.
    ///
    /// The vhost-user helper on plain QEMU knows no end of one direction, only that of the
    /// connection; and it ignores that, too, while it still has data that its client has
    /// not fetched. So on vsock the whole is ended, again and again, until the peer has ended
    /// it, too. The helper does when its client has been given all.
    pub async fn finish(&self, patience: Duration) {
        let finish = async {
            match self.kind {
                Kind::Vsock => {
                    self.drop_input();
                    // Without it, only time tells.
                    let changes = Changes::of(&self.fd).ok();
                    for pause in SAY_AGAIN {
                        self.shutdown(Shutdown::Both);
                        let reset = self.reset(changes.as_ref());
                        if tokio::time::timeout(pause, reset).await.is_ok() {
                            break;
                        }
                    }
                }
                Kind::Other => {
                    self.shutdown(Shutdown::Write);
                    self.hung_up().await;
                }
            }
        };
        let _ = tokio::time::timeout(patience, finish).await;
    }

    /// Drops what has arrived: with input that nobody has read the kernel takes a connection
    /// for one that is still there.
    fn drop_input(&self) {
        let mut buffer = [0; 4096];
        // A peer that sends without end is no reason to stay here.
        for _ in 0..DROPS_MAX {
            if !matches!(self.read_now(&mut buffer), Ok(Some(1..))) {
                break;
            }
        }
    }

    /// Waits until the peer, too, has ended a connection that was shut down here.
    async fn reset(&self, changes: Option<&Changes>) {
        while !sys::is_reset(self.fd.get_ref()) {
            let changed = match changes {
                Some(changes) => changes.next().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends one or both directions of a socket.
    pub fn shutdown(&self, how: Shutdown) {
        // It fails if the peer has ended the connection, which is as good.
        let _ = socket::shutdown(self.fd.get_ref().as_raw_fd(), how);
    }

    /// The same stream for a child: it blocks. That holds for this end, too, which can no
    /// longer be read or written, only be waited for and shut down.
    pub fn blocking_clone(&self) -> io::Result<OwnedFd> {
        let clone = self.fd.get_ref().try_clone()?;
        set_blocking(&clone, true)?;
        Ok(clone)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

fn set_blocking(fd: impl AsFd, blocking: bool) -> nix::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, !blocking);
    fcntl(&fd, FcntlArg::F_SETFL(flags)).map(drop)
}
