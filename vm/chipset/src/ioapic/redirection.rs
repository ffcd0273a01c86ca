//! Redirection table entries: data sheet 3.2.4.

use bitfield_struct::bitfield;
use inspect::Inspect;

use super::InterruptMessage;

/// What a message does at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryMode {
    /// An interrupt to all destinations.
    Fixed,
    /// An interrupt to one of them.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset of the processors.
    Init,
    /// An interrupt whose vector an 8259 would supply.
    ExtInt,
    /// Not defined; the value of the three bits.
    Reserved(u8),
}

impl DeliveryMode {
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            7 => Self::ExtInt,
            other => Self::Reserved(other),
        }
    }

    pub(super) const fn bits(self) -> u8 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::ExtInt => 7,
            Self::Reserved(bits) => bits & 7,
        }
    }
}

/// An entry of the redirection table.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Inspect)]
#[inspect(debug)]
pub struct RedirectionEntry {
    /// The vector.
    pub vector: u8,
    /// Bits of the [`DeliveryMode`].
    #[bits(3)]
    pub mode_bits: u8,
    /// The destination is a logical id.
    pub logical: bool,
    /// A message is on its way; never, here.
    pub pending: bool,
    /// The pin is active when low; no effect.
    pub active_low: bool,
    /// A level interrupt waits for its EOI.
    pub remote_irr: bool,
    /// Level triggered.
    pub level: bool,
    /// The pin does nothing.
    pub masked: bool,
    #[bits(39)]
    reserved: u64,
    /// APIC id, or a set of them.
    pub destination: u8,
}

impl RedirectionEntry {
    /// Masked, all else zero.
    pub const AT_RESET: Self = Self::new().with_masked(true);

    /// What the message does.
    pub const fn mode(self) -> DeliveryMode {
        DeliveryMode::from_bits(self.mode_bits())
    }

    /// The pin's level counts, and an EOI. Only for the modes that a local APIC answers
    /// by an EOI; the others are edges, however they are programmed.
    pub(super) const fn waits_for_level(self) -> bool {
        let ends = matches!(
            self.mode(),
            DeliveryMode::Fixed | DeliveryMode::LowestPriority
        );
        self.level() && ends
    }

    /// The entry after a write of one half.
    pub(super) const fn written(self, high: bool, value: u32) -> Self {
        let bits = if high {
            self.into_bits() & 0xffff_ffff | (value as u64) << 32
        } else {
            self.into_bits() & !0xffff_ffff | value as u64
        };
        // Two bits are read-only. An entry that is not for a level waits for no EOI:
        // Linux clears a stuck remote IRR by making the pin edge triggered for a moment.
        let new = Self::from_bits(bits).with_reserved(0).with_pending(false);
        new.with_remote_irr(self.remote_irr() && new.waits_for_level())
    }

    /// An entry of a saved state.
    pub(super) const fn restored(bits: u64) -> Self {
        let entry = Self::from_bits(bits).with_reserved(0).with_pending(false);
        entry.with_remote_irr(entry.remote_irr() && entry.waits_for_level())
    }

    pub(super) const fn half(self, high: bool) -> u32 {
        let shift = if high { 32 } else { 0 };
        (self.into_bits() >> shift) as u32
    }

    pub(super) const fn message(self) -> InterruptMessage {
        InterruptMessage {
            vector: self.vector(),
            mode: self.mode(),
            destination: self.destination(),
            logical: self.logical(),
            level: self.waits_for_level(),
        }
    }
}
