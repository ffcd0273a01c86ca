//! VMBus: the control messages between a guest and the end that offers channels.
//!
//! What both sides read and write, as Linux has it (`include/linux/hyperv.h`). They travel
//! as SynIC messages of type [`SYNIC_MESSAGE_TYPE`]: from the guest by HvCallPostMessage to
//! a connection, to the guest into the slot of a source. Each begins with a [`Header`].
//!
//! Only what it takes to connect and to part is here: nobody offers channels yet.

#![no_std]
#![forbid(unsafe_code)]

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Type of the SynIC messages that carry these.
pub const SYNIC_MESSAGE_TYPE: u32 = 1;
/// The source that a guest gets messages from if it does not name one.
pub const DEFAULT_SINT: u8 = 2;
/// Connection for messages to the host before version 5.0.
pub const CONNECTION_ID: u32 = 1;
/// Connection for messages to the host from version 5.0 on.
pub const CONNECTION_ID_4: u32 = 4;

/// What a message is.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum MessageType {
    /// The guest wants to hear of all channels.
    REQUEST_OFFERS = 3,
    /// It has heard of all that there are.
    ALL_OFFERS_DELIVERED = 4,
    /// [`InitiateContact`].
    INITIATE_CONTACT = 14,
    /// [`VersionResponse`].
    VERSION_RESPONSE = 15,
    /// The guest goes.
    UNLOAD = 16,
    /// Nothing will come any more.
    UNLOAD_RESPONSE = 17,
}

/// A version: major number in the upper half.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum Version {
    /// 4.0.
    WIN10 = 0x0004_0000,
    /// 4.1.
    WIN10_V4_1 = 0x0004_0001,
    /// 5.0: the guest names source and VTL.
    WIN10_V5 = 0x0005_0000,
    /// 5.1.
    WIN10_V5_1 = 0x0005_0001,
    /// 5.2.
    WIN10_V5_2 = 0x0005_0002,
    /// 5.3.
    WIN10_V5_3 = 0x0005_0003,
    /// 6.0.
    WIN10_V6_0 = 0x0006_0000,
}

/// What a message begins with.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// What it is.
    pub message_type: MessageType,
    /// Not read.
    pub padding: u32,
}

impl Header {
    /// The header of a message of this type.
    pub const fn new(message_type: MessageType) -> Self {
        Self {
            message_type,
            padding: 0,
        }
    }
}

/// The guest offers a version.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InitiateContact {
    /// Header.
    pub header: Header,
    /// Version.
    pub version: Version,
    /// VP that gets the messages.
    pub target_vp: u32,
    /// From 5.0 on: the source that gets them. Before, the low byte of a page's address.
    pub sint: u8,
    /// From 5.0 on: the VTL.
    pub vtl: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Features that the guest would like.
    pub features: u32,
    /// Page of monitors of the host.
    pub monitor_page1: u64,
    /// Page of monitors of the guest.
    pub monitor_page2: u64,
}

/// The answer.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VersionResponse {
    /// Header.
    pub header: Header,
    /// 1: this version it is.
    pub supported: u8,
    /// 0: there is a connection now.
    pub state: u8,
    /// Zero.
    pub padding: u16,
    /// From 5.0 on: where further messages go.
    pub connection_id: u32,
}

const _: () = assert!(size_of::<Header>() == 8);
const _: () = assert!(size_of::<InitiateContact>() == 40);
const _: () = assert!(size_of::<VersionResponse>() == 16);
