//! Encoding of messages, with descriptors and channel ends beside the bytes.
//!
//! While a message is encoded or decoded, a table of the thread holds its descriptors;
//! the serde implementations of [`Fd`](crate::Fd) and of channel ends leave an index in
//! the bytes. Outside of these functions such a type cannot be serialized.

use crate::connection::Client;
use crate::connection::Connections;
use crate::depth::Limited;
use crate::link::Link;
use crate::message::Message;
use crate::wire::DESCRIPTORS_MAX;
use crate::wire::HEADER_LEN;
use crate::wire::MESSAGE_MAX;
use crate::wire::WireError;
use serde::de::DeserializeSeed;
use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use thiserror::Error;

/// Space for a message to start with, in bytes: most are small.
const INITIAL_CAPACITY: usize = 256;

/// Why a message could not be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// Larger than any message may be.
    #[error("message of {length} bytes, expected at most {MESSAGE_MAX}")]
    TooLarge {
        /// Its encoded size in bytes.
        length: usize,
    },
    /// More descriptors than fit beside a packet.
    #[error("message with {count} descriptors, expected less than {DESCRIPTORS_MAX}")]
    TooManyDescriptors {
        /// How many it has.
        count: usize,
    },
    /// A receiver or call that was sent before.
    #[error("{what} was already sent or answered")]
    AlreadySent {
        /// What was sent.
        what: &'static str,
    },
    /// A call between processes needs a runtime that waits for the answer.
    #[error("no tokio runtime: {0}")]
    NoRuntime(#[from] tokio::runtime::TryCurrentError),
    /// The caller has too many calls open through this sender.
    #[error("{max} calls are open, no more are possible")]
    TooManyCalls {
        /// The limit.
        max: usize,
    },
    /// A descriptor or socket could not be made.
    #[error("descriptor for a message: {0}")]
    Io(#[from] io::Error),
    /// The type's own `Serialize` refused.
    #[error("message cannot be encoded: {0}")]
    Serialize(postcard::Error),
}

/// Why a message could not be decoded.
#[derive(Debug)]
pub(crate) enum DecodeError {
    Wire(WireError),
    /// One caller has too many calls open; it was told so and the channel lives on.
    Busy,
}

/// An encoded message.
pub(crate) struct Encoded {
    /// The message behind `prefix` bytes of space.
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// What must be undone if the message does not leave.
    pub(crate) guards: Guards,
}

/// Calls in a message that was not sent yet: dropped, they end.
#[derive(Default)]
pub(crate) struct Guards {
    calls: Vec<(Arc<Client>, u64)>,
    announced: Vec<Arc<Client>>,
}

struct Encoding {
    descriptors: Vec<OwnedFd>,
    guards: Guards,
    link: Option<Arc<Link>>,
    error: Option<EncodeError>,
}

struct Decoding {
    descriptors: Vec<Option<OwnedFd>>,
    connections: Connections,
    error: Option<DecodeError>,
}

thread_local! {
    static ENCODING: RefCell<Vec<Encoding>> = const { RefCell::new(Vec::new()) };
    static DECODING: RefCell<Vec<Decoding>> = const { RefCell::new(Vec::new()) };
}

impl Guards {
    /// The message was sent.
    pub(crate) fn sent(mut self) {
        self.calls.clear();
        for client in self.announced.drain(..) {
            client.announced();
        }
    }

    pub(crate) fn merge(&mut self, mut other: Guards) {
        self.calls.append(&mut other.calls);
        self.announced.append(&mut other.announced);
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        for (client, id) in self.calls.drain(..) {
            client.abandon(id);
        }
    }
}

/// Encodes `message` behind `prefix` bytes. `link` is the channel it will leave through,
/// whose connection its calls use.
pub(crate) fn encode<T: Message>(
    message: &T,
    link: Option<&Arc<Link>>,
    prefix: usize,
) -> Result<Encoded, EncodeError> {
    /// Takes the table away even if a `Serialize` panics.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            ENCODING.with_borrow_mut(|stack| stack.pop());
        }
    }
    ENCODING.with_borrow_mut(|stack| {
        stack.push(Encoding {
            descriptors: Vec::new(),
            guards: Guards::default(),
            link: link.cloned(),
            error: None,
        });
    });
    let scope = Scope;
    let mut bytes = Vec::with_capacity(INITIAL_CAPACITY);
    bytes.resize(prefix, 0);
    let result = postcard::to_extend(message, bytes);
    let table = ENCODING.with_borrow_mut(|stack| stack.pop());
    std::mem::forget(scope);
    let Some(table) = table else {
        return Err(EncodeError::Serialize(postcard::Error::WontImplement));
    };
    if let Some(error) = table.error {
        return Err(error);
    }
    let bytes = result.map_err(EncodeError::Serialize)?;
    // What stands before the message in its packet counts, except for the header.
    let length = bytes.len().saturating_sub(HEADER_LEN.min(prefix));
    if length > MESSAGE_MAX {
        return Err(EncodeError::TooLarge { length });
    }
    let count = table.descriptors.len();
    // One place stays free for the memfd of a large message.
    if count >= DESCRIPTORS_MAX {
        return Err(EncodeError::TooManyDescriptors { count });
    }
    Ok(Encoded {
        bytes,
        descriptors: table.descriptors,
        guards: table.guards,
    })
}

/// Encodes `message` for a packet.
pub(crate) fn encode_for_packet<T: Message>(
    message: &T,
    link: Option<&Arc<Link>>,
) -> Result<Encoded, EncodeError> {
    encode(message, link, HEADER_LEN)
}

/// Decodes a message. `connections` are those of the channel it came through.
pub(crate) fn decode<T: Message>(
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
    connections: &mut Connections,
) -> Result<T, DecodeError> {
    /// Gives the connections back even if a `Deserialize` panics.
    struct Scope<'a>(&'a mut Connections, Option<Decoding>);
    impl Scope<'_> {
        fn end(&mut self) {
            if let Some(mut table) = DECODING.with_borrow_mut(|stack| stack.pop()) {
                *self.0 = std::mem::take(&mut table.connections);
                self.1 = Some(table);
            }
        }
    }
    impl Drop for Scope<'_> {
        fn drop(&mut self) {
            if self.1.is_none() {
                self.end();
            }
        }
    }
    let table = Decoding {
        descriptors: descriptors.into_iter().map(Some).collect(),
        connections: std::mem::take(connections),
        error: None,
    };
    DECODING.with_borrow_mut(|stack| stack.push(table));
    let mut scope = Scope(connections, None);
    let mut deserializer = postcard::Deserializer::from_bytes(bytes);
    let result = Limited::<PhantomData<T>>::message().deserialize(&mut deserializer);
    scope.end();
    let table = scope.1.take();
    let Some(table) = table else {
        return Err(body("nested decoding"));
    };
    if let Some(error) = table.error {
        return Err(error);
    }
    let message = result.map_err(|error| body(&error.to_string()))?;
    let rest = deserializer
        .finalize()
        .map_err(|error| body(&error.to_string()))?;
    if !rest.is_empty() {
        return Err(DecodeError::Wire(WireError::Trailing { count: rest.len() }));
    }
    let count = table.descriptors.iter().flatten().count();
    if count != 0 {
        return Err(DecodeError::Wire(WireError::ExtraDescriptors { count }));
    }
    Ok(message)
}

fn body(reason: &str) -> DecodeError {
    DecodeError::Wire(WireError::Body {
        reason: reason.into(),
    })
}

/// Puts a descriptor into the table of the message that is being encoded.
pub(crate) fn put<E: serde::ser::Error>(descriptor: io::Result<OwnedFd>) -> Result<u32, E> {
    match descriptor {
        Ok(descriptor) => encoding(|table| {
            table.descriptors.push(descriptor);
            Ok((table.descriptors.len() - 1) as u32)
        }),
        Err(error) => fail(error.into()),
    }
}

/// Makes `error` the result of the encoding.
pub(crate) fn fail<T, E: serde::ser::Error>(error: EncodeError) -> Result<T, E> {
    encoding(|table| {
        let text = E::custom(&error);
        table.error.get_or_insert(error);
        Err(text)
    })
}

/// Whether a message is being encoded here; an error says what that means.
pub(crate) fn check_encoding<E: serde::ser::Error>() -> Result<(), E> {
    encoding(|_| Ok(()))
}

/// The channel that the message will leave through.
pub(crate) fn link<E: serde::ser::Error>() -> Result<Option<Arc<Link>>, E> {
    encoding(|table| Ok(table.link.clone()))
}

/// Notes a call of the message.
pub(crate) fn note_call<E: serde::ser::Error>(client: &Arc<Client>, id: u64) -> Result<(), E> {
    encoding(|table| {
        table.guards.calls.push((client.clone(), id));
        Ok(())
    })
}

/// Whether this message, or one that it contains, tells the peer of a connection. It is
/// read before what is encoded now.
pub(crate) fn is_announced(client: &Arc<Client>) -> bool {
    ENCODING.with_borrow(|stack| {
        let mut announced = stack.iter().flat_map(|table| &table.guards.announced);
        announced.any(|other| Arc::ptr_eq(other, client))
    })
}

/// Notes that the message tells the peer of a connection.
pub(crate) fn note_announced<E: serde::ser::Error>(client: &Arc<Client>) -> Result<(), E> {
    encoding(|table| {
        table.guards.announced.push(client.clone());
        Ok(())
    })
}

/// Adds a message that was encoded by itself; gives the index of its first descriptor.
pub(crate) fn put_nested<E: serde::ser::Error>(
    descriptors: Vec<OwnedFd>,
    guards: Guards,
) -> Result<u32, E> {
    encoding(|table| {
        let first = table.descriptors.len() as u32;
        table.descriptors.extend(descriptors);
        table.guards.merge(guards);
        Ok(first)
    })
}

fn encoding<T, E: serde::ser::Error>(
    f: impl FnOnce(&mut Encoding) -> Result<T, E>,
) -> Result<T, E> {
    ENCODING.with_borrow_mut(|stack| match stack.last_mut() {
        Some(table) => f(table),
        None => Err(E::custom(
            "descriptors and channel ends can only be in messages",
        )),
    })
}

/// Takes a descriptor out of the table of the message that is being decoded.
pub(crate) fn take<E: serde::de::Error>(index: u32) -> Result<OwnedFd, E> {
    decoding(|table| {
        let index = index as usize;
        match table.descriptors.get_mut(index).and_then(Option::take) {
            Some(descriptor) => Ok(descriptor),
            None => Err(table.refuse(WireError::MissingDescriptor { index })),
        }
    })
}

/// Takes a socket of a channel out of the table.
pub(crate) fn take_port<E: serde::de::Error>(index: u32) -> Result<OwnedFd, E> {
    let descriptor = take::<E>(index)?;
    if crate::socket::is_port(descriptor.as_fd()) {
        return Ok(descriptor);
    }
    decoding(|table| {
        Err(table.refuse(WireError::NotASocket {
            index: index as usize,
        }))
    })
}

/// Runs `f` with the connections of the channel that the message came through.
pub(crate) fn with_connections<T, E: serde::de::Error>(
    f: impl FnOnce(&mut Connections) -> Result<T, DecodeError>,
) -> Result<T, E> {
    decoding(|table| match f(&mut table.connections) {
        Ok(value) => Ok(value),
        Err(error) => {
            table.error.get_or_insert(error);
            Err(E::custom("call"))
        }
    })
}

/// Makes `error` the result of the decoding.
pub(crate) fn refuse<T, E: serde::de::Error>(error: WireError) -> Result<T, E> {
    decoding(|table| Err(table.refuse(error)))
}

/// An error unless a message is being decoded.
pub(crate) fn check_decoding<E: serde::de::Error>() -> Result<(), E> {
    decoding(|_| Ok(()))
}

fn decoding<T, E: serde::de::Error>(f: impl FnOnce(&mut Decoding) -> Result<T, E>) -> Result<T, E> {
    DECODING.with_borrow_mut(|stack| match stack.last_mut() {
        Some(table) => f(table),
        None => Err(E::custom(
            "descriptors and channel ends can only be in messages",
        )),
    })
}

impl Decoding {
    fn refuse<E: serde::de::Error>(&mut self, error: WireError) -> E {
        let text = E::custom(&error);
        self.error.get_or_insert(DecodeError::Wire(error));
        text
    }
}
