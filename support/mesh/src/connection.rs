//! The way back: answers to calls, and the news that a caller does not wait any more.
//!
//! All calls that one process makes through one channel share one socket pair. The first
//! call carries the callee's end; answers come back through it, told apart by the id of
//! the call. It works in both directions whoever holds the receiver by then, because the
//! callee's end travels with it.

mod client;
mod reply;

pub(crate) use client::Client;
pub(crate) use client::PendingCall;
pub(crate) use client::RegisterError;
pub(crate) use reply::ReplyLink;

use crate::wire::WireError;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Most processes that can call through one channel at the same time.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// Most open calls of one connection.
pub const CALLS_MAX: usize = 4096;

/// Size of the head of an answer: id, then [`Status`].
pub(crate) const REPLY_HEAD: usize = 9;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Done = 0,
    /// The callee gave the call up.
    Dropped = 1,
    /// The callee has too many open calls of this connection.
    Busy = 2,
    /// There is an answer, but it cannot be sent.
    Unsendable = 3,
}

/// The callers of a channel, by the number that each chose at random.
#[derive(Default)]
pub(crate) struct Connections {
    links: HashMap<u64, Arc<ReplyLink>>,
}

impl Connections {
    /// The way back to a caller; `socket` comes with the first call.
    pub(crate) fn link(
        &mut self,
        connection: u64,
        socket: Option<OwnedFd>,
    ) -> Result<Arc<ReplyLink>, WireError> {
        if let Some(link) = self.links.get(&connection) {
            return Ok(link.clone());
        }
        let socket = socket.ok_or(WireError::UnknownConnection { connection })?;
        self.links.retain(|_, link| !link.is_closed());
        if self.links.len() >= CONNECTIONS_MAX {
            return Err(WireError::TooManyConnections {
                max: CONNECTIONS_MAX,
            });
        }
        let link = Arc::new(ReplyLink::new(socket));
        self.links.insert(connection, link.clone());
        Ok(link)
    }

    /// Whether nobody has called through the channel.
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// What must travel with the receiver.
    pub(crate) fn into_links(self) -> impl Iterator<Item = (u64, Arc<ReplyLink>)> {
        self.links.into_iter().filter(|(_, link)| !link.is_closed())
    }
}
