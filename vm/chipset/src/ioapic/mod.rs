//! I/O APIC: Intel 82093AA data sheet (290566), with the EOI register of later chipsets
//! (version 0x20, e.g. Intel 9 Series PCH data sheet 12.5).
//!
//! Input pins come from [`crate::line`], interrupt messages go to an [`ApicBus`]. In
//! between, for each pin:
//! - **edge**: a rising pin sends one message if the entry is not masked; an edge on a
//!   masked pin is lost (3.2.4, "ignored").
//! - **level**: an asserted pin sends a message if the entry is neither masked nor
//!   waiting (remote IRR). It then waits for the EOI of its vector, which comes from the
//!   local APIC or through the EOI register, and sends again if it is still asserted.
//!   Unmasking sends too.
//!
//! What differs from the chip: messages arrive at once, so the delivery status is always
//! idle, and a level message always sets remote IRR. The polarity bit is kept but has no
//! effect: a line knows "asserted", not volts; real firmware describes each pin's polarity
//! so that both agree. There is no APIC bus to arbitrate.

mod redirection;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use inspect::Inspect;
pub use redirection::DeliveryMode;
pub use redirection::RedirectionEntry;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Space;
use crate::bus::Width;
use crate::bus::Written;
use crate::device::Device;
use crate::device::Lifecycle;
use crate::device::Slot;
use crate::line::PinTarget;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::state::byte;

/// Input pins.
pub const PINS: u8 = 24;
/// Where a PC has its first I/O APIC.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;
/// Bytes of address space.
pub const SIZE: u64 = 0x1000;

const PIN_COUNT: usize = PINS as usize;
const VERSION: u32 = 0x20;

mod offset {
    pub(super) const SELECT: u64 = 0x00;
    pub(super) const WINDOW: u64 = 0x10;
    pub(super) const EOI: u64 = 0x40;
}

/// Registers behind the window.
mod index {
    pub(super) const ID: u8 = 0x00;
    pub(super) const VERSION: u8 = 0x01;
    pub(super) const ARBITRATION: u8 = 0x02;
    pub(super) const REDIRECTION: u8 = 0x10;
}

/// An interrupt on its way to local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterruptMessage {
    /// The vector.
    pub vector: u8,
    /// What it does there.
    pub mode: DeliveryMode,
    /// APIC id, or a set of them.
    pub destination: u8,
    /// `destination` is a logical id.
    pub logical: bool,
    /// The local APIC sends an EOI for it.
    pub level: bool,
}

impl InterruptMessage {
    /// The address that a PCI device writes to for this message (Intel SDM 3A 11.11.1).
    pub const fn msi_address(self) -> u32 {
        0xfee0_0000 | (self.destination as u32) << 12 | (self.logical as u32) << 2
    }

    /// The data that it writes (11.11.2).
    pub const fn msi_data(self) -> u32 {
        // Level messages are assertions.
        let level = if self.level { 0xc000 } else { 0 };
        self.vector as u32 | (self.mode.bits() as u32) << 8 | level
    }

    /// The message of a PCI device's write, if the address is one for interrupts.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        Some(Self {
            vector: data as u8,
            mode: DeliveryMode::from_bits((data >> 8) as u8 & 7),
            destination: (address >> 12) as u8,
            logical: address & 1 << 2 != 0,
            level: data & 1 << 15 != 0,
        })
    }
}

/// The way to the local APICs.
///
/// Called with the I/O APIC and usually a device locked: must not call back into a
/// device. A message that no processor takes is lost, as on a PC.
pub trait ApicBus: Send + Sync {
    /// Delivers `message`.
    fn send(&self, message: InterruptMessage);
}

/// What has passed through, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Inspect)]
pub struct IoapicCounters {
    /// Messages sent, by pin.
    #[inspect(counter)]
    pub sent: [u64; PIN_COUNT],
    /// Edges that met a masked pin.
    #[inspect(counter)]
    pub lost_edges: u64,
    /// Ends of interrupts that were heard.
    #[inspect(counter)]
    pub ends: u64,
}

/// The I/O APIC.
#[derive(Inspect)]
pub struct Ioapic {
    #[inspect(hex)]
    base: u64,
    #[inspect(skip)]
    bus: Arc<dyn ApicBus>,
    #[inspect(hex)]
    select: u8,
    id: u8,
    entries: [RedirectionEntry; PIN_COUNT],
    /// Levels of the pins, bit by bit.
    #[inspect(binary)]
    asserted: u32,
    counters: IoapicCounters,
}

impl Ioapic {
    /// An I/O APIC at `base`.
    pub fn new(base: u64, bus: Arc<dyn ApicBus>) -> Self {
        Self {
            base,
            bus,
            select: 0,
            id: 0,
            entries: [RedirectionEntry::AT_RESET; PIN_COUNT],
            asserted: 0,
            counters: IoapicCounters::default(),
        }
    }

    /// The level of a pin is now `asserted`; a pin that does not exist is nothing.
    pub fn set_pin(&mut self, pin: u8, asserted: bool) {
        if pin >= PINS || self.is_asserted(pin) == asserted {
            return;
        }
        self.asserted ^= 1 << pin;
        if !asserted {
            return;
        }
        let entry = self.entries[usize::from(pin)];
        if entry.waits_for_level() {
            self.send_level(pin);
        } else if entry.masked() {
            self.counters.lost_edges += 1;
        } else {
            self.send(pin);
        }
    }

    /// The local APIC of some processor has ended an interrupt with this vector.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        self.counters.ends += 1;
        for pin in 0..PINS {
            let entry = &mut self.entries[usize::from(pin)];
            if entry.remote_irr() && entry.vector() == vector {
                entry.set_remote_irr(false);
                self.send_level(pin);
            }
        }
    }

    /// The redirection table.
    pub fn entries(&self) -> &[RedirectionEntry; PIN_COUNT] {
        &self.entries
    }

    /// Level of a pin.
    pub fn is_asserted(&self, pin: u8) -> bool {
        pin < PINS && self.asserted & 1 << pin != 0
    }

    /// What has passed through.
    pub fn counters(&self) -> IoapicCounters {
        self.counters
    }

    /// Sends a level interrupt if there is one to send.
    fn send_level(&mut self, pin: u8) {
        let asserted = self.is_asserted(pin);
        let entry = &mut self.entries[usize::from(pin)];
        let due = asserted && entry.waits_for_level() && !entry.masked() && !entry.remote_irr();
        if due {
            entry.set_remote_irr(true);
            self.send(pin);
        }
    }

    fn send(&mut self, pin: u8) {
        let index = usize::from(pin);
        self.counters.sent[index] += 1;
        self.bus.send(self.entries[index].message());
    }

    fn read_window(&self) -> u32 {
        match self.select {
            index::ID | index::ARBITRATION => u32::from(self.id) << 24,
            index::VERSION => VERSION | u32::from(PINS - 1) << 16,
            select => match entry_of(select) {
                Some((pin, high)) => self.entries[usize::from(pin)].half(high),
                None => u32::MAX,
            },
        }
    }

    fn write_window(&mut self, value: u32) {
        if self.select == index::ID {
            self.id = (value >> 24) as u8 & 0xf;
        } else if let Some((pin, high)) = entry_of(self.select) {
            let entry = &mut self.entries[usize::from(pin)];
            *entry = entry.written(high, value);
            self.send_level(pin);
        }
    }
}

/// Pin of a register, and if it is the upper half of the entry.
fn entry_of(select: u8) -> Option<(u8, bool)> {
    let register = select.checked_sub(index::REDIRECTION)?;
    (register < 2 * PINS).then_some((register / 2, register % 2 == 1))
}

impl Lifecycle for Ioapic {
    fn reset(&mut self) {
        self.select = 0;
        self.id = 0;
        self.entries = [RedirectionEntry::AT_RESET; PIN_COUNT];
    }

    fn save(&self) -> SavedState {
        let state = State {
            select: self.select.into(),
            id: self.id.into(),
            entries: self.entries.iter().map(|e| e.into_bits()).collect(),
            asserted: self.asserted,
        };
        SavedState::new(STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let state: State = state.open(STATE_VERSION)?;
        let entries: [u64; PIN_COUNT] =
            state
                .entries
                .try_into()
                .map_err(|entries: Vec<u64>| RestoreError::Value {
                    field: "entries",
                    value: entries.len() as u64,
                    expected: "24 entries",
                })?;
        if state.asserted >> PINS != 0 {
            return Err(RestoreError::Value {
                field: "asserted",
                value: state.asserted.into(),
                expected: "24 bits",
            });
        }
        let (select, id) = (byte("select", state.select)?, byte("id", state.id)?);
        self.select = select;
        self.id = id & 0xf;
        self.entries = entries.map(RedirectionEntry::restored);
        self.asserted = state.asserted;
        Ok(())
    }
}

impl Device for Ioapic {
    fn regions(&self) -> Vec<Region> {
        vec![Region {
            space: Space::Memory,
            start: self.base,
            length: SIZE,
            narrowest: Width::Dword,
            widest: Width::Dword,
        }]
    }

    fn read(&mut self, access: Access) -> u64 {
        let value = match access.offset {
            offset::SELECT => self.select.into(),
            offset::WINDOW => self.read_window(),
            _ => u32::MAX,
        };
        value.into()
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        match access.offset {
            offset::SELECT => self.select = value as u8,
            offset::WINDOW => self.write_window(value as u32),
            offset::EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
        Written::Done
    }
}

impl PinTarget for Slot<Ioapic> {
    fn set_pin(&self, pin: u8, asserted: bool) {
        self.with(|ioapic| ioapic.set_pin(pin, asserted));
    }
}

impl fmt::Debug for Ioapic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioapic")
            .field("base", &self.base)
            .field("asserted", &self.asserted)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

const STATE_VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint32, tag = "1")]
    select: u32,
    #[prost(uint32, tag = "2")]
    id: u32,
    #[prost(fixed64, repeated, tag = "3")]
    entries: Vec<u64>,
    #[prost(uint32, tag = "4")]
    asserted: u32,
}
