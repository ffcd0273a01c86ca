//! System calls that have no safe wrapper.
#![expect(unsafe_code, reason = "descriptors come as numbers")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the kernel tell the peer of a vsock connection the size of its buffer. It does so
/// when the size changes, so it is changed and changed back.
pub(crate) fn tell_buffer_size(socket: &OwnedFd) -> nix::Result<()> {
    /// What the kernel gives every vsock socket, and the most it allows.
    const SIZE: u64 = 256 << 10;
    /// `SO_VM_SOCKETS_BUFFER_SIZE` of `linux/vm_sockets.h`.
    const BUFFER_SIZE: libc::c_int = 0;
    for size in [SIZE - 1, SIZE] {
        // SAFETY: the option takes the address and length of a `u64`, which is only read.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                BUFFER_SIZE,
                (&raw const size).cast(),
                size_of::<u64>() as libc::socklen_t,
            )
        };
        Errno::result(result)?;
    }
    Ok(())
}

/// Whether the peer has ended a vsock connection, after it was shut down here.
///
/// A read only shows the end on this side then. With this flag the kernel refuses to read as
/// long as there is a connection at all.
pub(crate) fn is_reset(socket: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_DONTWAIT;
    socket::recv(socket.as_raw_fd(), &mut [0], flags) == Ok(0)
}

/// Accepts a connection: not blocking, closed on exec.
pub(crate) fn accept(listener: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets tokio's reactor watch a descriptor.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always names the descriptor that it owns, until it is dropped;
    // it is not replaced, for nothing here takes `&mut` to it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
