//! Channel ends in messages.

use super::CAPACITY_MAX;
use super::Encoded;
use super::Incoming;
use super::Place;
use super::Receiver;
use super::Sender;
use super::wake_all;
use crate::codec;
use crate::codec::EncodeError;
use crate::codec::Guards;
use crate::connection::CONNECTIONS_MAX;
use crate::link::Link;
use crate::message::Bytes;
use crate::message::Message;
use crate::socket;
use crate::wire::WireError;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::SeqAccess;
use serde::de::Visitor;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A receiver on its way. Numbers are places in the table of descriptors.
#[derive(Serialize, Deserialize)]
struct ReceiverWire {
    socket: u32,
    /// Callers, by the number of their connection.
    connections: Bounded<(u64, u32), CONNECTIONS_MAX>,
    backlog: Bounded<BacklogWire, CAPACITY_MAX>,
}

/// A list whose length is refused before it takes memory: a short encoding of an entry is
/// a fraction of the entry.
#[derive(Serialize)]
#[serde(transparent)]
struct Bounded<T, const MAX: usize>(Vec<T>);

/// A message that was not given out yet.
#[derive(Serialize, Deserialize)]
struct BacklogWire {
    message: Bytes,
    first_descriptor: u32,
    descriptors: u32,
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == MAX {
                        return codec::refuse(WireError::LongList { max: MAX });
                    }
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        let entries = deserializer.deserialize_seq(Entries::<T, MAX>(PhantomData))?;
        Ok(Self(entries))
    }
}

impl<T: Message> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::check_encoding()?;
        let socket = match self.share_link() {
            Ok(Some(link)) => link.share(),
            // The receiver is gone: a socket without peer says so at the other end.
            Ok(None) => socket::pair().map(|(socket, _)| socket),
            Err(error) => Err(error),
        };
        let index: u32 = codec::put(socket)?;
        index.serialize(serializer)
    }
}

impl<'de, T: Message> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        codec::check_decoding()?;
        let socket = codec::take_port(u32::deserialize(deserializer)?)?;
        Ok(Self::remote(Link::new(socket)))
    }
}

impl<T: Message> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::check_encoding()?;
        match self.depart() {
            Ok(departure) => departure.pack()?.serialize(serializer),
            Err(error) => codec::fail(error),
        }
    }
}

impl<'de, T: Message> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        codec::check_decoding()?;
        let incoming = Incoming::unpack::<T, _>(ReceiverWire::deserialize(deserializer)?)?;
        Ok(Self::arrived(incoming))
    }
}

/// What leaves with a receiver.
struct Departure<T> {
    incoming: Incoming,
    /// Messages of this process's senders.
    queue: VecDeque<T>,
    /// The link that calls in `queue` will be made through.
    link: Option<Arc<Link>>,
}

impl<T: Message> Receiver<T> {
    /// Takes all out. From here on senders of this process write into the socket, behind
    /// what leaves with the receiver.
    fn depart(&self) -> Result<Departure<T>, EncodeError> {
        let mut state = self.shared.lock();
        if state.place != Place::Here {
            return Err(EncodeError::AlreadySent { what: "receiver" });
        }
        let link = match (&state.incoming, &state.link) {
            // It arrived in a message itself; all senders are elsewhere.
            (Some(_), None) => None,
            _ => Some(state.connect()?),
        };
        let Some(incoming) = state.incoming.take() else {
            return Err(EncodeError::AlreadySent { what: "receiver" });
        };
        state.place = Place::Moved;
        state.first = 0;
        let queue = std::mem::take(&mut state.queue);
        if state.senders == 0 {
            state.link = None;
        }
        let wakers = std::mem::take(&mut state.sender_wakers);
        drop(state);
        wake_all(wakers);
        Ok(Departure {
            incoming,
            queue,
            link,
        })
    }
}

impl<T: Message> Departure<T> {
    /// Puts all into the message that is being encoded.
    fn pack<E: serde::ser::Error>(self) -> Result<ReceiverWire, E> {
        let Incoming {
            socket,
            backlog,
            connections,
            message_max: _,
            refuse_all: _,
        } = self.incoming;
        let socket = codec::put(Ok(socket.into_fd()))?;
        let connections = connections
            .into_links()
            .map(|(connection, link)| {
                link.detach();
                Ok((connection, codec::put(link.share())?))
            })
            .collect::<Result<Vec<_>, E>>()?;
        let mut packed = Vec::new();
        for Encoded { bytes, descriptors } in backlog {
            packed.push(BacklogWire::pack(bytes, descriptors, Guards::default())?);
        }
        for message in self.queue {
            let encoded = match codec::encode(&message, self.link.as_ref(), 0) {
                Ok(encoded) => encoded,
                Err(error) => return codec::fail(error),
            };
            packed.push(BacklogWire::pack(
                encoded.bytes,
                encoded.descriptors,
                encoded.guards,
            )?);
        }
        Ok(ReceiverWire {
            socket,
            connections: Bounded(connections),
            backlog: Bounded(packed),
        })
    }
}

impl BacklogWire {
    fn pack<E: serde::ser::Error>(
        bytes: Vec<u8>,
        descriptors: Vec<std::os::fd::OwnedFd>,
        guards: Guards,
    ) -> Result<Self, E> {
        let count = descriptors.len() as u32;
        Ok(Self {
            message: Bytes(bytes),
            first_descriptor: codec::put_nested(descriptors, guards)?,
            descriptors: count,
        })
    }
}

impl Incoming {
    fn unpack<T: Message, E: serde::de::Error>(wire: ReceiverWire) -> Result<Self, E> {
        let mut incoming = Self::new::<T>(codec::take_port(wire.socket)?);
        for (connection, link) in wire.connections.0 {
            let link = codec::take_port::<E>(link)?;
            if let Err(error) = incoming.connections.link(connection, Some(link)) {
                return codec::refuse(error);
            }
        }
        for message in wire.backlog.0 {
            let first = message.first_descriptor;
            // An index beyond the table is an error at the first one, so a large number
            // costs nothing.
            let descriptors = (first..first.saturating_add(message.descriptors))
                .map(codec::take)
                .collect::<Result<_, E>>()?;
            incoming.backlog.push_back(Encoded {
                bytes: message.message.0,
                descriptors,
            });
        }
        Ok(incoming)
    }
}
