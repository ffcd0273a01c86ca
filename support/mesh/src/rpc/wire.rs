//! Calls in messages.

use super::CallState;
use super::Port;
use super::RemotePort;
use super::Reply;
use super::Rpc;
use super::status_packet;
use crate::cancel::CancelContext;
use crate::cancel::CancelReason;
use crate::cancel::lock;
use crate::codec;
use crate::codec::DecodeError;
use crate::codec::EncodeError;
use crate::connection::CALLS_MAX;
use crate::connection::Client;
use crate::connection::RegisterError;
use crate::connection::ReplyLink;
use crate::connection::Status;
use crate::message::Message;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

/// Where the answer goes.
#[derive(Serialize, Deserialize)]
enum Address {
    /// Through a connection of the channel that the message came through.
    Connection {
        connection: u64,
        /// The callee's end, in the first messages.
        link: Option<u32>,
        id: u64,
    },
    /// Through a connection that others know; the call is passed on.
    PassedOn { link: u32, id: u64 },
}

/// Until when the caller waits.
#[derive(Serialize, Deserialize)]
enum Wanted {
    Always,
    /// Nanoseconds of the kernel's monotonic clock, which all processes share.
    Until(u64),
    /// Not any more.
    Cancelled,
}

#[derive(Serialize)]
struct Out<'a, I> {
    address: Address,
    wanted: Wanted,
    input: &'a I,
}

#[derive(Deserialize)]
struct In<I> {
    address: Address,
    wanted: Wanted,
    input: I,
}

impl<I: Message, O: Message> Serialize for Rpc<I, O> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (address, wanted) = self.reply.send()?;
        let out = Out {
            address,
            wanted,
            input: &self.input,
        };
        out.serialize(serializer)
    }
}

impl<'de, I: Message, O: Message> Deserialize<'de> for Rpc<I, O> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        codec::check_decoding()?;
        let In {
            address,
            wanted,
            input,
        } = In::deserialize(deserializer)?;
        let reply = Reply::receive(address, &wanted)?;
        Ok(Self { input, reply })
    }
}

impl<O: Message> Serialize for Reply<O> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.send::<S::Error>()?.serialize(serializer)
    }
}

impl<'de, O: Message> Deserialize<'de> for Reply<O> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        codec::check_decoding()?;
        let (address, wanted) = <(Address, Wanted)>::deserialize(deserializer)?;
        Self::receive(address, &wanted)
    }
}

impl<O: Message> Reply<O> {
    fn send<E: serde::ser::Error>(&self) -> Result<(Address, Wanted), E> {
        codec::check_encoding()?;
        let wanted = Wanted::of(&self.context);
        let address = match self.take() {
            None => return codec::fail(EncodeError::AlreadySent { what: "call" }),
            Some(Port::Local(state)) => match originate(&state) {
                Ok(address) => address?,
                Err(error) => return codec::fail(error),
            },
            Some(Port::Remote(RemotePort { link, id })) => {
                link.forget(id);
                Address::PassedOn {
                    link: codec::put(link.share())?,
                    id,
                }
            }
        };
        Ok((address, wanted))
    }

    fn receive<E: serde::de::Error>(address: Address, wanted: &Wanted) -> Result<Self, E> {
        let context = wanted.context();
        let port = match address {
            Address::Connection {
                connection,
                link,
                id,
            } => {
                let socket: Option<OwnedFd> = link.map(codec::take_port).transpose()?;
                codec::with_connections(|connections| {
                    let link = connections
                        .link(connection, socket)
                        .map_err(DecodeError::Wire)?;
                    if link.register(id, context.clone()) {
                        return Ok(RemotePort { link, id });
                    }
                    if let Some(packet) = status_packet(id, Status::Busy) {
                        link.answer_unnoted(packet);
                    }
                    Err(DecodeError::Busy)
                })?
            }
            Address::PassedOn { link, id } => RemotePort {
                link: Arc::new(ReplyLink::new(codec::take_port(link)?)),
                id,
            },
        };
        Ok(Self {
            port: Mutex::new(Some(Port::Remote(port))),
            context,
        })
    }
}

/// Notes a call of this process with the connection that it will be answered through.
/// The outer error is ours, the inner one that of the encoder.
fn originate<O: Message, E: serde::ser::Error>(
    state: &Arc<CallState<O>>,
) -> Result<Result<Address, E>, EncodeError> {
    let link = match codec::link::<E>() {
        Ok(link) => link,
        Err(error) => return Ok(Err(error)),
    };
    // A message that leaves through no channel of its own, an answer, gets a connection
    // for each of its calls.
    let new_client = || match &link {
        Some(link) => link.client(),
        None => Client::new(),
    };
    let mut client = new_client()?;
    let id = loop {
        match client.register(Box::new(state.clone())) {
            Ok(id) => break id,
            Err(RegisterError::Gone) => client = new_client()?,
            Err(RegisterError::Full) => {
                return Err(EncodeError::TooManyCalls { max: CALLS_MAX });
            }
        }
    };
    if link.is_none() {
        client.close();
    }
    let peer = if codec::is_announced(&client) {
        Ok(None)
    } else {
        client.peer()
    };
    lock(&state.0).remote = Some((Arc::downgrade(&client), id));
    Ok(address(&client, id, peer))
}

fn address<E: serde::ser::Error>(
    client: &Arc<Client>,
    id: u64,
    peer: std::io::Result<Option<OwnedFd>>,
) -> Result<Address, E> {
    codec::note_call(client, id)?;
    let link = match peer.transpose() {
        None => None,
        Some(peer) => {
            codec::note_announced(client)?;
            Some(codec::put(peer)?)
        }
    };
    Ok(Address::Connection {
        connection: client.connection(),
        link,
        id,
    })
}

impl Wanted {
    fn of(context: &CancelContext) -> Self {
        if context.reason() == Some(CancelReason::Cancelled) {
            return Self::Cancelled;
        }
        match context.deadline() {
            None => Self::Always,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let end = monotonic_ns().saturating_add(left.as_nanos() as u64);
                Self::Until(end)
            }
        }
    }

    fn context(&self) -> CancelContext {
        let context = CancelContext::new();
        match self {
            Self::Always => context,
            Self::Cancelled => {
                context.cancel();
                context
            }
            Self::Until(end) => {
                let left = end.saturating_sub(monotonic_ns());
                context.with_timeout(Duration::from_nanos(left))
            }
        }
    }
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
