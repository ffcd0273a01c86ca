//! Changes of a socket that has hung up.

use crate::sys;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells of each change of a socket. To tokio a socket that has hung up is ready for ever, so
/// an epoll instance of our own stands in between, which tells each change once.
pub(crate) struct Changes {
    epoll: Epoll,
    /// The same.
    watched: AsyncFd<OwnedFd>,
}

impl Changes {
    pub(crate) fn of(socket: impl AsFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(socket, EpollEvent::new(flags, 0))?;
        let watched = sys::watched(epoll.0.try_clone()?, Interest::READABLE)?;
        Ok(Self { epoll, watched })
    }

    /// Waits for one since the last call, or since the beginning.
    pub(crate) async fn next(&self) -> io::Result<()> {
        loop {
            let mut guard = self.watched.readable().await?;
            let mut events = [EpollEvent::empty()];
            if self.epoll.wait(&mut events, EpollTimeout::ZERO)? > 0 {
                return Ok(());
            }
            guard.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::Shutdown;
    use nix::sys::socket::shutdown;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::pin::pin;
    use std::task::Context;
    use std::task::Poll;
    use std::task::Waker;

    #[tokio::test]
    async fn a_socket_that_has_hung_up_still_tells_changes_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let changes = Changes::of(&ours).unwrap();
        shutdown(ours.as_raw_fd(), Shutdown::Both).unwrap();
        changes.next().await.unwrap();
        for _ in 0..100 {
            let waits = pin!(changes.next()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(waits, Poll::Pending));
            tokio::task::yield_now().await;
        }
        drop(theirs);
        changes.next().await.unwrap();
    }
}
