//! The [`Bus`]: which device answers which port or address.
//!
//! Rules of an access, for both spaces:
//! - It goes to a device in one piece if it lies in one region, is aligned to its width
//!   and not wider than the region takes. Otherwise it is cut in halves, low half first,
//!   until the pieces fit, each of which finds its own device. This is what the bus of a
//!   PC does with a 16-bit access to an 8-bit card.
//! - A piece that is narrower than the region takes, or that no region covers, is
//!   *unclaimed*: it reads as all ones, a write is lost, and it is counted.
//!
//! Devices are attached before the machine runs; an access takes no lock but the
//! device's own.

use std::fmt;
use std::sync::Arc;

use inspect::Inspect;
use inspect::Request;
use thiserror::Error;

use crate::device::AnySlot;
use crate::device::Device;
use crate::device::Slot;
use crate::time::VmTime;
use crate::unclaimed::Counts;
use crate::unclaimed::UnclaimedObserver;

/// First port number that does not exist.
pub const PORT_LIMIT: u64 = 0x1_0000;

/// The two address spaces of a PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Guest physical addresses.
    Memory,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Memory => "address",
        })
    }
}

/// Width of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes; memory only.
    Qword,
}

impl Width {
    /// The width of `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// All ones.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    const fn half(self) -> Option<Self> {
        Self::from_bytes(self.bytes() / 2)
    }
}

/// Addresses of a device, and the accesses that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which addresses these are.
    pub space: Space,
    /// First address.
    pub start: u64,
    /// Number of bytes.
    pub length: u64,
    /// The narrowest access.
    pub narrowest: Width,
    /// The widest access.
    pub widest: Width,
}

impl Region {
    /// Ports of 8 bits, as ISA cards have them.
    pub const fn byte_ports(start: u16, length: u16) -> Self {
        Self {
            space: Space::Port,
            start: start as u64,
            length: length as u64,
            narrowest: Width::Byte,
            widest: Width::Byte,
        }
    }

    /// First address behind the region, if there is one.
    const fn end(&self) -> Option<u64> {
        self.start.checked_add(self.length)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.start.saturating_add(self.length.saturating_sub(1));
        write!(f, "{} {:#x} to {last:#x}", self.space, self.start)
    }
}

/// What a device is told of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Position of the region in [`Device::regions`].
    pub region: usize,
    /// Distance in bytes from the region's start; a multiple of the width, if the
    /// region's start is.
    pub offset: u64,
    /// The width, between the region's limits.
    pub width: Width,
}

/// What became of a write.
#[must_use = "a stalled write must be made again"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Done, or ignored by the device.
    Done,
    /// The device cannot take it now, and has not changed.
    ///
    /// The VP must not go past its instruction: it makes the same write again when
    /// [`crate::device::Wake::unstalled`] says so. This is how a slow backend slows down a guest that does not look
    /// at the device's status first. Of an access that was cut into pieces, the pieces
    /// below the stalled one are made again too.
    Stalled,
}

/// Why a device cannot be attached. Nothing of it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AttachError {
    /// Another device answers there.
    #[error("{device} wants {region}, where {owner} has {taken}; expected no overlap")]
    Conflict {
        /// Who wants it.
        device: String,
        /// What it wants.
        region: Region,
        /// Who has it.
        owner: String,
        /// What that has.
        taken: Region,
    },
    /// A region that cannot be.
    #[error("{device} wants {region} in widths {narrowest} to {widest}, expected {expected}",
        narrowest = region.narrowest.bytes(), widest = region.widest.bytes())]
    Invalid {
        /// Who wants it.
        device: String,
        /// What it wants.
        region: Region,
        /// What is possible.
        expected: &'static str,
    },
    /// Names identify devices in saved states.
    #[error("there is a device {name} already, expected another name")]
    DuplicateName {
        /// The name.
        name: String,
    },
}

struct Claim {
    region: Region,
    index: usize,
    slot: AnySlot,
}

impl Claim {
    fn contains(&self, address: u64) -> bool {
        address >= self.region.start && address - self.region.start < self.region.length
    }
}

/// The bus. See the module for its rules.
pub struct Bus {
    ports: Vec<Claim>,
    memory: Vec<Claim>,
    slots: Vec<AnySlot>,
    unclaimed: Counts,
    observer: Arc<dyn UnclaimedObserver>,
}

impl Bus {
    /// A bus without devices.
    pub fn new(observer: Arc<dyn UnclaimedObserver>) -> Self {
        Self {
            ports: Vec::new(),
            memory: Vec::new(),
            slots: Vec::new(),
            unclaimed: Counts::default(),
            observer,
        }
    }

    /// Gives a device its addresses.
    ///
    /// # Errors
    /// A region is not one, or another device has a part of it.
    pub fn attach(&mut self, slot: Arc<Slot<dyn Device>>) -> Result<(), AttachError> {
        let slot = AnySlot(slot);
        if self.slots.iter().any(|other| other.name() == slot.name()) {
            return Err(AttachError::DuplicateName {
                name: slot.name().to_owned(),
            });
        }
        let regions = slot.with(|device| device.regions());
        for (index, region) in regions.iter().enumerate() {
            self.check(slot.name(), region, &regions[..index])?;
        }
        for (index, region) in regions.into_iter().enumerate() {
            let claims = match region.space {
                Space::Port => &mut self.ports,
                Space::Memory => &mut self.memory,
            };
            let position = claims.partition_point(|claim| claim.region.start < region.start);
            let slot = slot.clone();
            claims.insert(
                position,
                Claim {
                    region,
                    index,
                    slot,
                },
            );
        }
        self.slots.push(slot);
        Ok(())
    }

    /// Reads a port.
    pub fn read_port(&self, port: u16, width: Width) -> u64 {
        self.read(Space::Port, port.into(), width)
    }

    /// Writes a port.
    pub fn write_port(&self, port: u16, width: Width, value: u64) -> Written {
        self.write(Space::Port, port.into(), width, value)
    }

    /// Reads a guest physical address that is not RAM.
    pub fn read_memory(&self, address: u64, width: Width) -> u64 {
        self.read(Space::Memory, address, width)
    }

    /// Writes a guest physical address that is not RAM.
    pub fn write_memory(&self, address: u64, width: Width, value: u64) -> Written {
        self.write(Space::Memory, address, width, value)
    }

    /// Reads `address` of `space`.
    pub fn read(&self, space: Space, address: u64, width: Width) -> u64 {
        match self.route(space, address, width) {
            Route::Device(claim, access) => {
                claim.slot.with(|device| device.read(access)) & width.mask()
            }
            Route::Split(half) => {
                let low = self.read(space, address, half);
                // Behind the last address there is nothing.
                let high = match address.checked_add(half.bytes()) {
                    Some(next) => self.read(space, next, half),
                    None => half.mask(),
                };
                low | high << (8 * half.bytes())
            }
            Route::Nobody => {
                self.report(space, address, width, None);
                width.mask()
            }
        }
    }

    /// Writes `address` of `space`.
    pub fn write(&self, space: Space, address: u64, width: Width, value: u64) -> Written {
        let value = value & width.mask();
        match self.route(space, address, width) {
            Route::Device(claim, access) => claim.slot.with(|device| device.write(access, value)),
            Route::Split(half) => {
                if self.write(space, address, half, value) == Written::Stalled {
                    return Written::Stalled;
                }
                match address.checked_add(half.bytes()) {
                    Some(next) => self.write(space, next, half, value >> (8 * half.bytes())),
                    None => Written::Done,
                }
            }
            Route::Nobody => {
                self.report(space, address, width, Some(value));
                Written::Done
            }
        }
    }

    /// Addresses without a device that were used, each with its count, and the count of
    /// those beyond the first [`crate::unclaimed::MAX_ADDRESSES`].
    pub fn unclaimed(&self) -> (Vec<(Space, u64, u64)>, u64) {
        self.unclaimed.snapshot()
    }

    /// Polls what is due at `now`, and says when to come again.
    pub(crate) fn poll(&self, now: VmTime) -> Option<VmTime> {
        for slot in &self.slots {
            slot.poll_due(now);
        }
        // A second look, for one device's work may concern another.
        self.slots.iter().filter_map(|slot| slot.deadline()).min()
    }

    /// The devices in the order in which they were attached.
    pub(crate) fn slots(&self) -> &[AnySlot] {
        &self.slots
    }

    fn claims(&self, space: Space) -> &[Claim] {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        }
    }

    fn route(&self, space: Space, address: u64, width: Width) -> Route<'_> {
        let claims = self.claims(space);
        let behind = claims.partition_point(|claim| claim.region.start <= address);
        let found = behind.checked_sub(1).map(|index| &claims[index]);
        if let Some(claim) = found.filter(|claim| claim.contains(address)) {
            let offset = address - claim.region.start;
            let fits = claim.region.length - offset >= width.bytes();
            if fits && width <= claim.region.widest && address.is_multiple_of(width.bytes()) {
                if width < claim.region.narrowest {
                    return Route::Nobody;
                }
                let region = claim.index;
                return Route::Device(
                    claim,
                    Access {
                        region,
                        offset,
                        width,
                    },
                );
            }
            return width.half().map_or(Route::Nobody, Route::Split);
        }
        // Nobody at the first byte: whole, unless a later byte has an owner.
        let last = address.saturating_add(width.bytes() - 1);
        match claims.get(behind) {
            Some(next) if next.region.start <= last => {
                width.half().map_or(Route::Nobody, Route::Split)
            }
            _ => Route::Nobody,
        }
    }

    fn report(&self, space: Space, address: u64, width: Width, written: Option<u64>) {
        if let Some(report) = self.unclaimed.count(space, address, width, written) {
            self.observer.unclaimed(&report);
        }
    }

    fn check(&self, device: &str, region: &Region, own: &[Region]) -> Result<(), AttachError> {
        let invalid = |expected| AttachError::Invalid {
            device: device.to_owned(),
            region: *region,
            expected,
        };
        if region.length == 0 || region.narrowest > region.widest {
            return Err(invalid("at least one byte, narrowest at most the widest"));
        }
        let Some(end) = region.end() else {
            return Err(invalid("an end below 2^64"));
        };
        if region.space == Space::Port && (end > PORT_LIMIT || region.widest > Width::Dword) {
            return Err(invalid("ports below 0x10000, at most 4 bytes wide"));
        }
        let others = self.claims(region.space).iter();
        let others = others.map(|claim| (claim.slot.name(), &claim.region));
        let own = own.iter().map(|region| (device, region));
        for (owner, taken) in others.chain(own) {
            let overlap = taken.space == region.space
                && taken.start < end
                && region.start < taken.end().unwrap_or(u64::MAX);
            if overlap {
                return Err(AttachError::Conflict {
                    device: device.to_owned(),
                    region: *region,
                    owner: owner.to_owned(),
                    taken: *taken,
                });
            }
        }
        Ok(())
    }
}

/// The devices by name, and the unclaimed accesses.
impl Inspect for Bus {
    fn inspect(&self, request: Request<'_>) {
        let mut response = request.respond();
        for slot in &self.slots {
            response.field(slot.name(), &**slot);
        }
        response.field("unclaimed", &self.unclaimed);
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

enum Route<'a> {
    Device(&'a Claim, Access),
    Split(Width),
    Nobody,
}

#[cfg(test)]
mod tests;
