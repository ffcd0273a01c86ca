//! PCI configuration by mechanism 1: PCI Local Bus Specification 3.0, chapter 3.2.2.3.2,
//! and the reset control register that chipsets have at port 0xcf9 in between.
//!
//! Without functions every configuration register reads as all ones, which is "no device".
//! Functions are attached before the machine runs.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bitfield_struct::bitfield;
use inspect::Inspect;
use thiserror::Error;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Space;
use crate::bus::Width;
use crate::bus::Written;
use crate::device::Device;
use crate::device::Lifecycle;
use crate::power::PowerEvent;
use crate::power::PowerEvents;
use crate::power::ResetSource;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::state::byte;

/// First of the eight ports.
pub const ADDRESS_PORT: u16 = 0xcf8;
/// First port of the data window.
pub const DATA_PORT: u16 = 0xcfc;
/// The FADT's RESET_REG.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;
/// The FADT's RESET_VALUE: hard reset, now.
pub const RESET_VALUE: u8 = 0x06;

const RESET_OFFSET: u64 = 1;

/// CONFIG_ADDRESS.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
struct ConfigAddress {
    #[bits(2)]
    zero: u8,
    #[bits(6)]
    register: u8,
    #[bits(3)]
    function: u8,
    #[bits(5)]
    device: u8,
    bus: u8,
    #[bits(7)]
    reserved: u8,
    enabled: bool,
}

impl ConfigAddress {
    fn function_address(self) -> PciAddress {
        PciAddress {
            bus: self.bus(),
            device: self.device(),
            function: self.function(),
        }
    }
}

/// Reset control: as of the Intel ICH, 13.7.5 of its data sheet.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
struct ResetControl {
    zero: bool,
    hard: bool,
    reset: bool,
    full: bool,
    #[bits(4)]
    reserved: u8,
}

impl ResetControl {
    const fn existing(self) -> Self {
        self.with_zero(false).with_reserved(0)
    }
}

/// Where a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus, self.device, self.function
        )
    }
}

/// Bytes of a register that an access touches, bit 0 for the lowest. Of a contiguous run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteEnables(u8);

impl ByteEnables {
    /// All four.
    pub const ALL: Self = Self(0xf);

    /// `count` bytes from byte `first`.
    const fn run(first: u64, count: u64) -> Self {
        Self((((1_u64 << count) - 1) << first) as u8 & 0xf)
    }

    /// A bit for each byte.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Ones in the bytes that count.
    pub const fn mask(self) -> u32 {
        let mut mask = 0;
        let mut i = 0;
        while i < 4 {
            if self.0 & 1 << i != 0 {
                mask |= 0xff << (8 * i);
            }
            i += 1;
        }
        mask
    }

    /// `old` with the bytes that count from `new`.
    pub const fn merge(self, old: u32, new: u32) -> u32 {
        old & !self.mask() | new & self.mask()
    }
}

/// The configuration space of a PCI function. Called with the host bridge locked.
pub trait PciFunction: Lifecycle + Inspect + Send {
    /// Reads the register at `offset`, a multiple of 4 below 256. Side effects are for
    /// `enables` only.
    fn read_config(&mut self, offset: u8, enables: ByteEnables) -> u32;

    /// Writes the bytes `enables` of the register at `offset`.
    fn write_config(&mut self, offset: u8, enables: ByteEnables, value: u32);
}

/// Why a function cannot be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PciAttachError {
    /// Another is there.
    #[error("PCI function {0} exists already, expected a free address")]
    Taken(PciAddress),
    /// Not an address.
    #[error("PCI function {0} cannot be, expected a device below 32 and a function below 8")]
    Invalid(PciAddress),
}

/// The configuration ports.
#[derive(Inspect)]
pub struct PciConfig {
    #[inspect(skip)]
    power: Arc<dyn PowerEvents>,
    #[inspect(debug)]
    address: ConfigAddress,
    #[inspect(debug)]
    reset_control: ResetControl,
    functions: BTreeMap<PciAddress, Box<dyn PciFunction>>,
}

impl PciConfig {
    /// Ports with nothing behind them.
    pub fn new(power: Arc<dyn PowerEvents>) -> Self {
        Self {
            power,
            address: ConfigAddress::new(),
            reset_control: ResetControl::new(),
            functions: BTreeMap::new(),
        }
    }

    /// Attaches a function, before the machine runs.
    ///
    /// # Errors
    /// The address is taken, or is none.
    pub fn attach(
        &mut self,
        address: PciAddress,
        function: Box<dyn PciFunction>,
    ) -> Result<(), PciAttachError> {
        if address.device >= 32 || address.function >= 8 {
            return Err(PciAttachError::Invalid(address));
        }
        if self.functions.contains_key(&address) {
            return Err(PciAttachError::Taken(address));
        }
        self.functions.insert(address, function);
        Ok(())
    }

    /// The function that CONFIG_ADDRESS selects, and the offset of the register.
    fn selected(&mut self) -> Option<(&mut Box<dyn PciFunction>, u8)> {
        let address = self.address;
        if !address.enabled() {
            return None;
        }
        let function = self.functions.get_mut(&address.function_address())?;
        Some((function, address.register() << 2))
    }

    fn read_data(&mut self, first: u64, width: Width) -> u64 {
        let enables = ByteEnables::run(first, width.bytes());
        match self.selected() {
            Some((function, offset)) => {
                u64::from(function.read_config(offset, enables)) >> (8 * first)
            }
            None => u64::MAX,
        }
    }

    fn write_data(&mut self, first: u64, width: Width, value: u64) {
        let enables = ByteEnables::run(first, width.bytes());
        if let Some((function, offset)) = self.selected() {
            function.write_config(offset, enables, (value << (8 * first)) as u32);
        }
    }

    fn write_reset_control(&mut self, value: u8) {
        let before = self.reset_control;
        self.reset_control = ResetControl::from_bits(value).existing();
        if self.reset_control.reset() && !before.reset() {
            self.power
                .power_event(PowerEvent::Reset(ResetSource::ResetControl));
        }
    }
}

impl Lifecycle for PciConfig {
    fn start(&mut self) {
        self.functions.values_mut().for_each(|f| f.start());
    }

    fn pause(&mut self) {
        self.functions.values_mut().rev().for_each(|f| f.pause());
    }

    fn resume(&mut self) {
        self.functions.values_mut().for_each(|f| f.resume());
    }

    fn reset(&mut self) {
        self.address = ConfigAddress::new();
        self.reset_control = ResetControl::new();
        self.functions.values_mut().for_each(|f| f.reset());
    }

    fn save(&self) -> SavedState {
        let functions = self.functions.iter();
        let functions = functions.map(|(address, function)| FunctionState {
            bus: address.bus.into(),
            device: address.device.into(),
            function: address.function.into(),
            state: Some(function.save()),
        });
        let state = State {
            address: self.address.into_bits(),
            reset_control: self.reset_control.into_bits().into(),
            functions: functions.collect(),
        };
        SavedState::new(STATE_VERSION, &state)
    }

    /// When a function refuses its state those before it have changed already; the rules
    /// of [`Lifecycle`] allow no use of any of them then.
    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let state: State = state.open(STATE_VERSION)?;
        let reset_control = byte("reset_control", state.reset_control)?;
        let mut saved = BTreeMap::new();
        for function in state.functions {
            let address = PciAddress {
                bus: byte("bus", function.bus)?,
                device: byte("device", function.device)?,
                function: byte("function", function.function)?,
            };
            saved.insert(address, function.state.unwrap_or_default());
        }
        if !saved.keys().eq(self.functions.keys()) {
            let list = |addresses: Vec<&PciAddress>| format!("PCI functions {addresses:?}");
            return Err(RestoreError::Parts {
                found: list(saved.keys().collect()),
                expected: list(self.functions.keys().collect()),
            });
        }
        for (function, state) in self.functions.values_mut().zip(saved.values()) {
            function.restore(state)?;
        }
        self.address = ConfigAddress::from_bits(state.address)
            .with_zero(0)
            .with_reserved(0);
        self.reset_control = ResetControl::from_bits(reset_control).existing();
        Ok(())
    }
}

impl Device for PciConfig {
    fn regions(&self) -> Vec<Region> {
        let ports = |start: u16| Region {
            space: Space::Port,
            start: start.into(),
            length: 4,
            narrowest: Width::Byte,
            widest: Width::Dword,
        };
        vec![ports(ADDRESS_PORT), ports(DATA_PORT)]
    }

    fn read(&mut self, access: Access) -> u64 {
        match (access.region, access.offset, access.width) {
            (0, 0, Width::Dword) => self.address.into_bits().into(),
            (0, RESET_OFFSET, Width::Byte) => self.reset_control.into_bits().into(),
            // Anything else at the address is not for the host bridge.
            (0, ..) => u64::MAX,
            (_, first, width) => self.read_data(first & 3, width),
        }
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        match (access.region, access.offset, access.width) {
            (0, 0, Width::Dword) => {
                self.address = ConfigAddress::from_bits(value as u32)
                    .with_zero(0)
                    .with_reserved(0);
            }
            (0, RESET_OFFSET, Width::Byte) => self.write_reset_control(value as u8),
            (0, ..) => {}
            (_, first, width) => self.write_data(first & 3, width, value),
        }
        Written::Done
    }
}

impl fmt::Debug for PciConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciConfig")
            .field("address", &self.address)
            .field("functions", &self.functions.keys())
            .finish_non_exhaustive()
    }
}

const STATE_VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint32, tag = "1")]
    address: u32,
    #[prost(uint32, tag = "2")]
    reset_control: u32,
    #[prost(message, repeated, tag = "3")]
    functions: Vec<FunctionState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FunctionState {
    #[prost(uint32, tag = "1")]
    bus: u32,
    #[prost(uint32, tag = "2")]
    device: u32,
    #[prost(uint32, tag = "3")]
    function: u32,
    #[prost(message, optional, tag = "4")]
    state: Option<SavedState>,
}
