//! The packet: what two processes agree on, and the checks of a peer that does not keep
//! to it.
//!
//! A packet is a header of [`HEADER_LEN`] bytes and a body, little-endian, with file
//! descriptors beside it:
//!
//! | offset | field | value |
//! | --- | --- | --- |
//! | 0 | magic `u16` | [`MAGIC`] |
//! | 2 | version `u16` | [`VERSION`] |
//! | 4 | kind `u8` | [`Kind`] |
//! | 5 | flags `u8` | bit 0: the message's end is in a sealed memfd, the last descriptor |
//! | 6 | descriptors `u16` | how many come with the packet |
//! | 8 | length `u32` | bytes of the whole message |
//!
//! Of a message that is too large for one packet the first [`INLINE_MAX`] bytes are in
//! the body and the rest is in the memfd. Large messages so fill the socket's queue as
//! fast as small ones do, and the number of memfds that a peer leaves unread is small.

use thiserror::Error;

/// First two bytes of each packet: "HM".
pub const MAGIC: u16 = 0x4d48;
/// Version of the packet's format. Both ends are the same program, so no other is spoken.
pub const VERSION: u16 = 1;
/// Size of the header in bytes.
pub const HEADER_LEN: usize = 12;
/// Most bytes of a message in the packet itself.
pub const INLINE_MAX: usize = 32 * 1024;
/// Most bytes of a packet.
pub const PACKET_MAX: usize = HEADER_LEN + INLINE_MAX;
/// Most bytes of a message.
pub const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// Most descriptors beside a packet, the memfd included: the kernel's `SCM_MAX_FD`.
pub const DESCRIPTORS_MAX: usize = 253;

const FLAG_LARGE: u8 = 1;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message, from a sender to the receiver.
    Message = 1,
    /// The answer to a call, from the receiver's side to the caller.
    Reply = 2,
    /// The caller does not wait any more, from the caller to the receiver's side.
    Cancel = 3,
}

/// A header that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the packet is for.
    pub kind: Kind,
    /// Whether the message's end is in a memfd.
    pub large: bool,
    /// Number of descriptors, the memfd included.
    pub descriptors: usize,
    /// Bytes of the whole message.
    pub length: usize,
}

/// How a peer broke the rules. It ends the channel, and only that channel.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// Shorter than a header.
    #[error("packet of {length} bytes, expected at least {HEADER_LEN}")]
    Short {
        /// Bytes received.
        length: usize,
    },
    /// Longer than any packet.
    #[error("packet is larger than {PACKET_MAX} bytes")]
    LongPacket,
    /// The first bytes are something else.
    #[error("magic {magic:#06x}, expected {MAGIC:#06x}")]
    Magic {
        /// The value.
        magic: u16,
    },
    /// Another version.
    #[error("version {version}, expected {VERSION}")]
    Version {
        /// The value.
        version: u16,
    },
    /// A kind that does not exist, or not in this direction.
    #[error("kind {kind} is not expected here")]
    Kind {
        /// The value.
        kind: u8,
    },
    /// A flag that does not exist.
    #[error("flags {flags:#04x}, expected 0 or {FLAG_LARGE}")]
    Flags {
        /// The value.
        flags: u8,
    },
    /// Body and length disagree.
    #[error("message of {length} bytes with {body} bytes in the packet")]
    Length {
        /// What the header says.
        length: usize,
        /// What came.
        body: usize,
    },
    /// More than anyone may send.
    #[error("message of {length} bytes, expected at most {max}")]
    TooLarge {
        /// What the header says.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Descriptors and their number disagree.
    #[error("{received} descriptors, expected {expected}")]
    Descriptors {
        /// What the header says.
        expected: usize,
        /// What came.
        received: usize,
    },
    /// A descriptor of the message that did not come, or that was named twice.
    #[error("descriptor {index} is missing")]
    MissingDescriptor {
        /// Its place.
        index: usize,
    },
    /// Descriptors that the message does not name.
    #[error("{count} descriptors that no field names")]
    ExtraDescriptors {
        /// How many.
        count: usize,
    },
    /// The memfd of a large message could be changed or cut while it is read.
    #[error("memory of a large message is not sealed: {reason}")]
    NotSealed {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The memfd of a large message has the wrong size.
    #[error("memory of a large message has {size} bytes, expected {expected}")]
    MemorySize {
        /// Its size.
        size: u64,
        /// What length and packet leave for it.
        expected: u64,
    },
    /// The descriptor of a channel end is something else.
    #[error("descriptor {index} is not a socket of a channel")]
    NotASocket {
        /// Its place.
        index: usize,
    },
    /// The body is not an encoding of the message's type.
    #[error("message cannot be decoded: {reason}")]
    Body {
        /// The decoder's words.
        reason: String,
    },
    /// Bytes behind the message.
    #[error("{count} bytes behind the message")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// Too deep a nesting.
    #[error("message is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// A receiver that brings along too much.
    #[error("receiver with more than {max} entries in a list")]
    LongList {
        /// The limit.
        max: usize,
    },
    /// A call whose connection nobody announced.
    #[error("call through connection {connection:#x}, which was never announced")]
    UnknownConnection {
        /// The connection.
        connection: u64,
    },
    /// More connections for calls than a channel serves.
    #[error("more than {max} connections for calls on one channel")]
    TooManyConnections {
        /// The limit.
        max: usize,
    },
}

/// Most levels of nesting in a message: containers, options and enums in each other.
pub const DEPTH_MAX: usize = 256;

impl Header {
    /// Checks a packet and gives its header and body. `received` is the number of
    /// descriptors that came with it.
    ///
    /// # Errors
    /// The first rule that the packet breaks.
    pub fn parse(packet: &[u8], received: usize) -> Result<(Self, &[u8]), WireError> {
        let (header, body) = packet
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(WireError::Short {
                length: packet.len(),
            })?;
        let [m0, m1, v0, v1, kind, flags, d0, d1, length @ ..] = *header;
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != MAGIC {
            return Err(WireError::Magic { magic });
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(WireError::Version { version });
        }
        let kind = match kind {
            1 => Kind::Message,
            2 => Kind::Reply,
            3 => Kind::Cancel,
            kind => return Err(WireError::Kind { kind }),
        };
        let large = match flags {
            0 => false,
            FLAG_LARGE => true,
            flags => return Err(WireError::Flags { flags }),
        };
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE_MAX {
            let max = MESSAGE_MAX;
            return Err(WireError::TooLarge { length, max });
        }
        let fits = if large {
            body.len() == INLINE_MAX && length > INLINE_MAX
        } else {
            body.len() == length && length <= INLINE_MAX
        };
        if !fits {
            return Err(WireError::Length {
                length,
                body: body.len(),
            });
        }
        let descriptors = usize::from(u16::from_le_bytes([d0, d1]));
        if descriptors != received || (large && descriptors == 0) {
            return Err(WireError::Descriptors {
                expected: descriptors.max(usize::from(large)),
                received,
            });
        }
        let header = Self {
            kind,
            large,
            descriptors,
            length,
        };
        Ok((header, body))
    }

    /// The bytes of the header. The caller has checked `length` and `descriptors`
    /// against [`MESSAGE_MAX`] and [`DESCRIPTORS_MAX`].
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2..4].copy_from_slice(&VERSION.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = if self.large { FLAG_LARGE } else { 0 };
        bytes[6..8].copy_from_slice(&(self.descriptors as u16).to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes
    }
}
