//! Ports and connections as data: TLFS "Ports and Connections".

use hv_defs::hypercall::HvStatus;
use hv_defs::synic::{HV_EVENT_FLAGS_COUNT, PostMessage, SignalEvent};

/// The source of VTL2 that gets what VTL0 sends over redirected connections.
pub const REDIRECT_SINT: u8 = 7;
/// Bits of a connection id that count.
const CONNECTION_ID_BITS: u32 = 24;

/// Which VP a port leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetVp {
    /// This one.
    Index(u32),
    /// The one that sends.
    Sender,
    /// Any whose SynIC accepts it; the host chooses.
    Any,
}

/// What a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// Messages.
    Message,
    /// Events: flags from `base` on, `count` of them for each connection.
    Event {
        /// First flag.
        base: u16,
        /// Number of flags.
        count: u16,
    },
}

/// A port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its id, which messages carry as their sender.
    pub id: u32,
    /// VTL that it belongs to.
    pub vtl: u8,
    /// VP.
    pub vp: TargetVp,
    /// Source.
    pub sint: u8,
    /// What it takes.
    pub kind: PortKind,
}

/// Connections with consecutive ids of a VTL to a port. The second connection has the
/// port's id plus one as its sender, and the flags behind those of the first; so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// VTL that sends.
    pub sender_vtl: u8,
    /// First id.
    pub first: u32,
    /// Last id.
    pub last: u32,
    /// Where they lead.
    pub port: Port,
}

impl Connection {
    /// Messages that VTL0 posts to these connections go to VTL2, [`REDIRECT_SINT`], on the
    /// same VP; their sender is the connection's id.
    pub const fn redirect_messages(first: u32, last: u32) -> Self {
        Self::redirect(first, last, PortKind::Message)
    }

    /// Events that VTL0 signals on these connections go to VTL2 likewise: one flag for each
    /// connection, from `base` on.
    pub const fn redirect_events(first: u32, last: u32, base: u16) -> Self {
        Self::redirect(first, last, PortKind::Event { base, count: 1 })
    }

    const fn redirect(first: u32, last: u32, kind: PortKind) -> Self {
        Self {
            sender_vtl: 0,
            first,
            last,
            port: Port {
                id: first,
                vtl: 2,
                vp: TargetVp::Sender,
                sint: REDIRECT_SINT,
                kind,
            },
        }
    }
}

/// Where a message goes: the arguments of [`crate::Synic::post`] of that VP and VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageRoute<'a> {
    /// VTL.
    pub vtl: u8,
    /// VP.
    pub vp: TargetVp,
    /// Source.
    pub sint: u8,
    /// Type and sender.
    pub header: (u32, u64),
    /// Payload.
    pub payload: &'a [u8],
}

/// Where an event goes: the arguments of [`crate::Synic::signal`] of that VP and VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRoute {
    /// VTL.
    pub vtl: u8,
    /// VP.
    pub vp: TargetVp,
    /// Source.
    pub sint: u8,
    /// Flag.
    pub flag: u16,
}

/// All connections; of two that have an id the first counts. An id that is not among them
/// is `INVALID_CONNECTION_ID`: a host that intercepts unknown connections does that then.
#[derive(Debug, Clone, Copy)]
pub struct Connections<'a>(pub &'a [Connection]);

impl Connections<'_> {
    /// The port behind a connection, and how many connections of its range are before it.
    fn find(&self, sender_vtl: u8, id: u32) -> Result<(&Port, u32), HvStatus> {
        self.0
            .iter()
            .filter(|_| id >> CONNECTION_ID_BITS == 0)
            .find(|c| c.sender_vtl == sender_vtl && (c.first..=c.last).contains(&id))
            .map(|c| (&c.port, id - c.first))
            .ok_or(HvStatus::INVALID_CONNECTION_ID)
    }

    /// HvCallPostMessage by a VTL.
    ///
    /// # Errors
    /// `INVALID_CONNECTION_ID`; `INVALID_PORT_ID`: not a port for messages;
    /// `INVALID_PARAMETER`: the type is zero or has bit 31, more than 240 bytes, reserved.
    pub fn message<'m>(
        &self,
        sender_vtl: u8,
        input: &'m PostMessage,
    ) -> Result<MessageRoute<'m>, HvStatus> {
        let size = usize::try_from(input.payload_size).unwrap_or(usize::MAX);
        let payload = input.payload.get(..size);
        let payload = payload
            .filter(|_| input.rsvd == 0 && (1..1 << 31).contains(&input.message_type))
            .ok_or(HvStatus::INVALID_PARAMETER)?;
        let (port, index) = self.find(sender_vtl, input.connection_id)?;
        if port.kind != PortKind::Message {
            return Err(HvStatus::INVALID_PORT_ID);
        }
        Ok(MessageRoute {
            vtl: port.vtl,
            vp: port.vp,
            sint: port.sint,
            header: (input.message_type, u64::from(port.id) + u64::from(index)),
            payload,
        })
    }

    /// HvCallSignalEvent by a VTL.
    ///
    /// # Errors
    /// `INVALID_CONNECTION_ID`; `INVALID_PORT_ID`: not a port for events;
    /// `INVALID_PARAMETER`: a flag that the port does not have, reserved bits.
    pub fn event(&self, sender_vtl: u8, input: &SignalEvent) -> Result<EventRoute, HvStatus> {
        let (port, index) = self.find(sender_vtl, input.connection_id)?;
        let PortKind::Event { base, count } = port.kind else {
            return Err(HvStatus::INVALID_PORT_ID);
        };
        let flag =
            u64::from(base) + u64::from(index) * u64::from(count) + u64::from(input.flag_number);
        let flag = u16::try_from(flag)
            .ok()
            .filter(|flag| *flag < HV_EVENT_FLAGS_COUNT)
            .filter(|_| input.flag_number < count && input.rsvd == 0)
            .ok_or(HvStatus::INVALID_PARAMETER)?;
        Ok(EventRoute {
            vtl: port.vtl,
            vp: port.vp,
            sint: port.sint,
            flag,
        })
    }
}
