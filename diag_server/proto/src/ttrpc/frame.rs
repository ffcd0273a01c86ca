//! Frames: a header of ten bytes, then a message.
//!
//! Source: `PROTOCOL.md` of containerd's ttrpc.

use super::Response;
use super::Status;
use prost::Message as _;
use std::fmt;
use std::io;
use std::io::Read;

/// Bytes of a frame's header: length (big-endian `u32`), stream id (big-endian `u32`),
/// kind (`u8`), flags (`u8`).
pub const HEADER_SIZE: usize = 10;
/// The length field counts the message only and has 24 usable bits.
pub const MAX_MESSAGE: usize = (1 << 24) - 1;
/// Longest message that every peer takes: what containerd's implementations allow.
pub const COMMON_MAX_MESSAGE: usize = 4 << 20;

/// Flag: the sender will send no more frames of this stream.
pub const FLAG_REMOTE_CLOSED: u8 = 1;
/// Flag: the sender will send more frames of this stream.
pub const FLAG_REMOTE_OPEN: u8 = 2;
/// Flag: there is no message, not even an empty one.
pub const FLAG_NO_DATA: u8 = 4;

/// Memory that a message gets before any of it has arrived.
const FIRST_ALLOCATION: usize = 16 << 10;

/// What a frame is. Unknown values survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind(pub u8);

impl Kind {
    /// A request, from client to server.
    pub const REQUEST: Self = Self(1);
    /// A response, from server to client.
    pub const RESPONSE: Self = Self(2);
    /// Data of a stream, either way.
    pub const DATA: Self = Self(3);
}

/// Header of a frame. Any ten bytes are one: what its values mean is for the receiver to
/// judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of the message.
    pub length: u32,
    /// Which request this belongs to. Clients use odd ones, each greater than the last.
    pub stream_id: u32,
    /// What the frame is.
    pub kind: Kind,
    /// `FLAG_*`.
    pub flags: u8,
}

impl Header {
    /// Reads a header.
    pub fn from_bytes(bytes: [u8; HEADER_SIZE]) -> Self {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream_id: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: Kind(kind),
            flags,
        }
    }

    /// Writes a header.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream_id.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind.0, self.flags]
    }
}

/// A frame with all of its message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its message, of `header.length` bytes.
    pub message: Vec<u8>,
}

/// A message that is too long to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLong {
    /// Its bytes.
    pub length: usize,
    /// The most bytes it may have.
    pub limit: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, limit } = self;
        write!(f, "a message of {length} bytes, expected at most {limit}")
    }
}

impl std::error::Error for TooLong {}

/// What [`Decoder::advance`] has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A header whose message will be kept: the receiver can wait until it has memory for
    /// it.
    Begin(Header),
    /// A frame is complete.
    Frame(Frame),
    /// A header whose message is over the limit. Its bytes will be passed over.
    TooLong(Header),
}

enum State {
    Header {
        bytes: [u8; HEADER_SIZE],
        filled: usize,
    },
    Message {
        header: Header,
        message: Vec<u8>,
    },
    Skip {
        left: u32,
    },
}

const START: State = State::Header {
    bytes: [0; HEADER_SIZE],
    filled: 0,
};

/// Cuts a stream of bytes into frames. Holds memory only for bytes that have arrived.
pub struct Decoder {
    limit: usize,
    state: State,
}

impl Decoder {
    /// A decoder at the start of a stream, which keeps messages of up to `limit` bytes
    /// ([`MAX_MESSAGE`] at most).
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(MAX_MESSAGE),
            state: START,
        }
    }

    /// Whether the stream may end here: between two frames.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { filled: 0, .. })
    }

    /// Takes bytes from the front of `input`, up to the next event. `None`: all of it is
    /// taken, and more is needed.
    pub fn advance(&mut self, input: &mut &[u8]) -> Option<Step> {
        loop {
            match &mut self.state {
                State::Header { bytes, filled } => {
                    let taken = take(input, HEADER_SIZE - *filled);
                    bytes[*filled..*filled + taken.len()].copy_from_slice(taken);
                    *filled += taken.len();
                    if *filled < HEADER_SIZE {
                        return None;
                    }
                    let header = Header::from_bytes(*bytes);
                    return Some(self.begin(header));
                }
                State::Message { header, message } => {
                    let length = header.length as usize;
                    let taken = take(input, length - message.len());
                    if taken.len() > message.capacity() - message.len() {
                        // Doubles as `Vec` would, but never beyond what is needed.
                        let want = (2 * message.capacity()).max(message.len() + taken.len());
                        message.reserve_exact(want.min(length) - message.len());
                    }
                    message.extend_from_slice(taken);
                    if message.len() < length {
                        return None;
                    }
                    let header = *header;
                    let message = std::mem::take(message);
                    self.state = START;
                    return Some(Step::Frame(Frame { header, message }));
                }
                State::Skip { left } => {
                    let taken = take(input, usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken.len() as u32;
                    if *left > 0 {
                        return None;
                    }
                    self.state = START;
                }
            }
        }
    }

    fn begin(&mut self, header: Header) -> Step {
        let length = header.length as usize;
        if length > self.limit {
            self.state = State::Skip {
                left: header.length,
            };
            return Step::TooLong(header);
        }
        let message = Vec::with_capacity(length.min(FIRST_ALLOCATION));
        self.state = State::Message { header, message };
        Step::Begin(header)
    }
}

/// Reads the next frame, blocking; for clients. `None`: the stream has ended between two
/// frames.
///
/// # Errors
///
/// Those of `source`; `UnexpectedEof` if the stream ends within a frame; `InvalidData` with
/// [`TooLong`] if the message has more than `limit` bytes, which are not read then.
pub fn read_frame(source: &mut impl Read, limit: usize) -> io::Result<Option<Frame>> {
    let mut bytes = [0; HEADER_SIZE];
    let first = loop {
        match source.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    source.read_exact(&mut bytes[first..])?;
    let header = Header::from_bytes(bytes);
    let length = header.length as usize;
    if length > limit {
        let error = TooLong { length, limit };
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    let mut message = Vec::new();
    let read = source.take(length as u64).read_to_end(&mut message)?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { header, message }))
}

/// The bytes of a frame with a request.
///
/// # Errors
///
/// The request is longer than [`MAX_MESSAGE`].
pub fn encode_request(stream_id: u32, request: &super::Request) -> Result<Vec<u8>, TooLong> {
    let mut bytes = start(stream_id, Kind::REQUEST, request.encoded_len(), MAX_MESSAGE)?;
    request.encode_raw(&mut bytes);
    Ok(bytes)
}

/// The bytes of a frame with a successful response.
///
/// Its payload is written even if it is empty: there are clients that take a response
/// without status and without payload for none at all.
///
/// # Errors
///
/// The response is longer than `limit` bytes.
pub fn encode_success(stream_id: u32, payload: &[u8], limit: usize) -> Result<Vec<u8>, TooLong> {
    const PAYLOAD_KEY: u8 = (2 << 3) | 2;
    let length = 1 + prost::length_delimiter_len(payload.len()) + payload.len();
    let mut bytes = start(stream_id, Kind::RESPONSE, length, limit)?;
    bytes.push(PAYLOAD_KEY);
    prost::encoding::encode_varint(payload.len() as u64, &mut bytes);
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// The bytes of a frame with a failure.
///
/// # Errors
///
/// The response is longer than [`MAX_MESSAGE`].
pub fn encode_failure(stream_id: u32, status: Status) -> Result<Vec<u8>, TooLong> {
    let response = Response {
        status: Some(status),
        payload: Vec::new(),
    };
    let mut bytes = start(
        stream_id,
        Kind::RESPONSE,
        response.encoded_len(),
        MAX_MESSAGE,
    )?;
    response.encode_raw(&mut bytes);
    Ok(bytes)
}

/// The header of a frame, with room for its message.
fn start(stream_id: u32, kind: Kind, length: usize, limit: usize) -> Result<Vec<u8>, TooLong> {
    let limit = limit.min(MAX_MESSAGE);
    if length > limit {
        return Err(TooLong { length, limit });
    }
    let header = Header {
        length: length as u32,
        stream_id,
        kind,
        flags: 0,
    };
    let mut bytes = Vec::with_capacity(HEADER_SIZE + length);
    bytes.extend_from_slice(&header.to_bytes());
    Ok(bytes)
}

/// Up to `most` bytes from the front of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

#[cfg(test)]
mod tests;
