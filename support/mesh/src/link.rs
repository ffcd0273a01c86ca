//! The sending side of a channel whose receiver is reached through a socket.

use crate::cancel::lock;
use crate::codec::EncodeError;
use crate::codec::Encoded;
use crate::connection::Client;
use crate::socket;
use crate::socket::Packet;
use crate::watch;
use crate::wire::Kind;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One process's senders of one channel.
pub(crate) struct Link {
    socket: OwnedFd,
    client: Mutex<Option<Arc<Client>>>,
}

/// A packet, and what must be undone if it never leaves.
pub(crate) struct Outgoing {
    packet: Packet,
    guards: crate::codec::Guards,
}

impl Outgoing {
    pub(crate) fn new(encoded: Encoded) -> io::Result<Self> {
        Ok(Self {
            packet: Packet::new(Kind::Message, encoded.bytes, encoded.descriptors)?,
            guards: encoded.guards,
        })
    }
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            socket,
            client: Mutex::new(None),
        })
    }

    /// The socket for one more holder.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// The connection that this link's calls are answered through.
    pub(crate) fn client(&self) -> Result<Arc<Client>, EncodeError> {
        let mut client = lock(&self.client);
        if let Some(client) = client.as_ref().filter(|client| !client.is_gone()) {
            return Ok(client.clone());
        }
        let new = Client::new()?;
        *client = Some(new.clone());
        Ok(new)
    }

    /// Sends now, or gives the packet back.
    pub(crate) fn try_send(&self, outgoing: Outgoing) -> Result<(), (io::Error, Outgoing)> {
        match socket::send(self.socket.as_fd(), &outgoing.packet) {
            Ok(()) => {
                outgoing.guards.sent();
                Ok(())
            }
            Err(error) => Err((error, outgoing)),
        }
    }

    /// Sends, and waits while the receiver's queue is full.
    pub(crate) async fn send(&self, mut outgoing: Outgoing) -> io::Result<()> {
        loop {
            match self.try_send(outgoing) {
                Ok(()) => return Ok(()),
                Err((error, back)) if error.kind() == io::ErrorKind::WouldBlock => {
                    outgoing = back;
                    self.register(Interest::WRITABLE)?
                        .writable()
                        .await?
                        .retain_ready();
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Waits until no receiver is left.
    pub(crate) async fn closed(&self) -> io::Result<()> {
        let socket = self.register(Interest::READABLE)?;
        loop {
            let mut guard = socket.readable().await?;
            if guard.ready().is_read_closed() {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// A registration of its own: waiting is rare, and others may wait too.
    fn register(&self, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
        watch::register(self.share()?, interest)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(client) = lock(&self.client).take() {
            client.close();
        }
    }
}
