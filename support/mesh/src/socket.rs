//! Packets on `SOCK_SEQPACKET` sockets.
//!
//! Nothing here waits: a call that would have to is `WouldBlock`, whatever the mode of
//! the descriptor is, because its other holders may have changed it.

use crate::stats::COUNTERS;
use crate::wire::DESCRIPTORS_MAX;
use crate::wire::HEADER_LEN;
use crate::wire::Header;
use crate::wire::INLINE_MAX;
use crate::wire::Kind;
use crate::wire::PACKET_MAX;
use crate::wire::WireError;
use rustix::fs::MemfdFlags;
use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use thiserror::Error;

/// What makes a memfd safe to read: nobody can change or cut it any more.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE)
    .union(SealFlags::SEAL);

thread_local! {
    /// One for all channels of the thread: only pages that were needed once are memory.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why nothing was received.
#[derive(Debug, Error)]
pub(crate) enum ReceiveError {
    /// All holders of the other end are gone.
    #[error("the peer is gone")]
    Closed,
    /// What came breaks the rules.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The socket or a memfd failed, or there is nothing yet.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A message on its way out.
pub(crate) struct Packet {
    /// Header and the part of the message that fits.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    message_length: usize,
}

/// A message that arrived.
pub(crate) struct Received<'a> {
    pub(crate) kind: Kind,
    pub(crate) body: Cow<'a, [u8]>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Packet {
    /// Makes a packet of `bytes`, a message behind [`HEADER_LEN`] bytes of space. Its size
    /// and the number of descriptors were checked.
    pub(crate) fn new(
        kind: Kind,
        mut bytes: Vec<u8>,
        mut descriptors: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let length = bytes.len() - HEADER_LEN;
        let large = length > INLINE_MAX;
        if large {
            descriptors.push(sealed_memory(&bytes[PACKET_MAX..])?);
            bytes.truncate(PACKET_MAX);
        }
        let header = Header {
            kind,
            large,
            descriptors: descriptors.len(),
            length,
        };
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        Ok(Self {
            bytes,
            descriptors,
            message_length: length,
        })
    }

    /// Bytes of the message.
    pub(crate) fn message_length(&self) -> usize {
        self.message_length
    }
}

/// A pair of connected sockets.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?)
}

/// Whether `fd` can be an end of a channel.
pub(crate) fn is_port(fd: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
        && rustix::net::sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
}

/// Sends `packet` or nothing.
pub(crate) fn send(fd: BorrowedFd<'_>, packet: &Packet) -> io::Result<()> {
    let borrowed: Vec<_> = packet.descriptors.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let parts = [IoSlice::new(&packet.bytes)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| rustix::net::sendmsg(fd, &parts, &mut control, flags))?;
    if sent != packet.bytes.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero));
    }
    COUNTERS.packets_sent.add(1);
    COUNTERS.bytes_sent.add(packet.message_length as u64);
    if packet.message_length > INLINE_MAX {
        COUNTERS.large_messages.add(1);
    }
    Ok(())
}

/// Takes the next packet, of a message of at most `max` bytes, and passes it to `then`.
/// Its bytes are not copied unless the message is large.
pub(crate) fn receive<R>(
    fd: BorrowedFd<'_>,
    max: usize,
    then: impl FnOnce(Received<'_>) -> R,
) -> Result<R, ReceiveError> {
    // Taken out, not borrowed: what `then` decodes and drops may be a receiver, which
    // receives a last time.
    let mut buffer = BUFFER.take();
    if buffer.is_empty() {
        // One byte more tells a packet that is too long from one that just fits.
        buffer = vec![0; PACKET_MAX + 1];
    }
    let result = receive_into(fd, max, &mut buffer, then);
    BUFFER.set(buffer);
    result
}

fn receive_into<R>(
    fd: BorrowedFd<'_>,
    max: usize,
    buffer: &mut [u8],
    then: impl FnOnce(Received<'_>) -> R,
) -> Result<R, ReceiveError> {
    let (length, mut descriptors) = receive_raw(fd, buffer)?;
    COUNTERS.packets_received.add(1);
    COUNTERS.bytes_received.add(length as u64);
    let checked = Header::parse(&buffer[..length], descriptors.len()).and_then(|(header, body)| {
        let length = header.length;
        if length > max {
            return Err(WireError::TooLarge { length, max });
        }
        Ok((header, body))
    });
    let (header, body) = checked.inspect_err(|_| COUNTERS.refused.add(1))?;
    let body = if header.large {
        COUNTERS.large_messages.add(1);
        let memory = descriptors.pop().ok_or(WireError::Descriptors {
            expected: 1,
            received: 0,
        })?;
        Cow::Owned(join(body, &memory, header.length)?)
    } else {
        Cow::Borrowed(body)
    };
    Ok(then(Received {
        kind: header.kind,
        body,
        descriptors,
    }))
}

fn receive_raw(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let result = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(fd, &mut [IoSliceMut::new(buffer)], &mut control, flags)
    });
    let message = match result {
        Ok(message) => message,
        // The other end was closed with packets of ours unread.
        Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let mut descriptors = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    if message.bytes == 0 && descriptors.is_empty() {
        // An empty packet looks the same; nobody who keeps to the rules sends one.
        return Err(ReceiveError::Closed);
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // This process has no free descriptors left; the number tells it apart.
        return Err(WireError::MissingDescriptor {
            index: descriptors.len(),
        }
        .into());
    }
    if message.flags.contains(ReturnFlags::TRUNC) || message.bytes > PACKET_MAX {
        return Err(WireError::LongPacket.into());
    }
    Ok((message.bytes, descriptors))
}

fn sealed_memory(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("mesh", flags)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&memory, rest))?;
        rest = &rest[written..];
    }
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// The whole message, of which `memory` holds what is behind `body`.
fn join(body: &[u8], memory: &OwnedFd, length: usize) -> Result<Vec<u8>, ReceiveError> {
    let not_sealed = |reason| WireError::NotSealed { reason };
    let seals = rustix::fs::fcntl_get_seals(memory).map_err(|_| not_sealed("not a memfd"))?;
    if !seals.contains(SEALS) {
        return Err(not_sealed("a seal is missing").into());
    }
    let size = rustix::fs::fstat(memory).map_err(io::Error::from)?.st_size as u64;
    let expected = (length - body.len()) as u64;
    if size != expected {
        return Err(WireError::MemorySize { size, expected }.into());
    }
    let mut message = Vec::new();
    message
        .try_reserve_exact(length)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    message.extend_from_slice(body);
    while message.len() < length {
        let offset = (message.len() - body.len()) as u64;
        let spare = rustix::buffer::spare_capacity(&mut message);
        let read = rustix::io::pread(memory, spare, offset).map_err(io::Error::from)?;
        if read == 0 {
            return Err(WireError::MemorySize { size, expected }.into());
        }
    }
    message.truncate(length);
    Ok(message)
}
