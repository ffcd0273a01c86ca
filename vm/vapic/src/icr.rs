//! Interrupt commands and messages: sections 11.6 and 11.12.9.

use crate::shared::Address;
use x86_defs::apic::{DeliveryMode, DestinationShorthand, InterruptCommand};

/// Whom a message is for (11.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Every APIC.
    All,
    /// Every APIC but the sender's.
    Others,
    /// The APIC with this id.
    Physical(u32),
    /// The APICs of this set: in x2APIC mode a cluster and 16 bits, in xAPIC mode 8 bits
    /// that the destination format explains.
    Logical(u32),
}

impl Destination {
    /// A destination of 8 bits (xAPIC, I/O APIC, MSI); all ones is everybody.
    pub fn from_byte(byte: u8, logical: bool) -> Self {
        match (byte, logical) {
            (0xff, _) => Self::All,
            (_, true) => Self::Logical(byte.into()),
            (_, false) => Self::Physical(byte.into()),
        }
    }

    /// A destination of 32 bits (x2APIC); all ones is everybody.
    pub fn from_word(word: u32, logical: bool) -> Self {
        match (word, logical) {
            (u32::MAX, _) => Self::All,
            (_, true) => Self::Logical(word),
            (_, false) => Self::Physical(word),
        }
    }

    /// Whether an APIC is meant. An APIC that is off hears nothing (11.4.3).
    pub fn includes(self, apic: Address, is_sender: bool) -> bool {
        apic.enabled()
            && match self {
                Self::All => true,
                Self::Others => !is_sender,
                Self::Physical(id) => apic.id() == id,
                Self::Logical(set) if apic.x2apic() => {
                    // 11.12.10.2: the logical id follows from the id.
                    apic.id() >> 4 == set >> 16 && set & 1 << (apic.id() & 15) != 0
                }
                Self::Logical(set) => {
                    u8::try_from(set).is_ok_and(|set| includes_logical(apic, set))
                }
            }
    }
}

/// Logical destinations in xAPIC mode (11.6.2.2).
fn includes_logical(apic: Address, set: u8) -> bool {
    match apic.format() {
        0xf => set & apic.logical() != 0,
        0 => set >> 4 == apic.logical() >> 4 && set & apic.logical() & 0xf != 0,
        // Not defined.
        _ => false,
    }
}

/// A message on its way to APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Vector; for a start-up the page.
    pub vector: u8,
    /// What it does.
    pub mode: DeliveryMode,
    /// Whom it is for.
    pub destination: Destination,
    /// Its end will be told to the I/O APIC.
    pub level: bool,
}

impl Message {
    /// What a command sends; None if nothing leaves the sender.
    pub fn of_command(icr: InterruptCommand, x2apic: bool) -> Option<Self> {
        match command(icr, x2apic) {
            Command::Send(message) => Some(message),
            _ => None,
        }
    }
}

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Nothing that is sent.
    Nothing,
    /// A vector below 16 (11.5.3).
    IllegalVector,
    /// A fixed interrupt to the sender.
    Myself(u8),
    /// A message.
    Send(Message),
}

/// What a write of the command does; table 11-4 says which combinations are valid.
pub(crate) fn command(icr: InterruptCommand, x2apic: bool) -> Command {
    let mode = DeliveryMode(icr.mode());
    let fixed = mode == DeliveryMode::FIXED || mode == DeliveryMode::LOWEST_PRIORITY;
    match mode {
        DeliveryMode::FIXED
        | DeliveryMode::LOWEST_PRIORITY
        | DeliveryMode::NMI
        | DeliveryMode::STARTUP => {}
        // The de-assertion, which only set arbitration ids, does nothing (11.6.1).
        DeliveryMode::INIT if icr.assert() || !icr.level() => {}
        // SMIs are not supported; the others are not defined.
        _ => return Command::Nothing,
    }
    if fixed && icr.vector() < x86_defs::apic::FIRST_VECTOR {
        return Command::IllegalVector;
    }
    let destination = match DestinationShorthand(icr.shorthand()) {
        DestinationShorthand::MYSELF if mode == DeliveryMode::FIXED => {
            return Command::Myself(icr.vector());
        }
        DestinationShorthand::ALL if mode == DeliveryMode::FIXED => Destination::All,
        DestinationShorthand::MYSELF | DestinationShorthand::ALL => return Command::Nothing,
        DestinationShorthand::OTHERS => Destination::Others,
        _ if x2apic => Destination::from_word(icr.destination(), icr.logical()),
        _ => Destination::from_byte((icr.destination() >> 24) as u8, icr.logical()),
    };
    Command::Send(Message {
        vector: icr.vector(),
        mode,
        destination,
        // Interrupts between processors are edges, whatever the command says (11.6.1).
        level: false,
    })
}
