//! The memory of a guest, addressed by guest physical address (GPA).
//!
//! The guest is hostile and runs while we look: what is read can change the moment after,
//! and the same bytes read twice can differ. So nothing here ever hands out a reference or
//! a pointer into the memory. Callers get copies, and decide on copies.
//!
//! What it promises:
//! - An access touches the RAM that the [`GuestMemory`] was made of, and nothing else: each
//!   range of RAM is a mapping of its own, and an access that leaves RAM is an error before
//!   the first byte moves.
//! - An access of 1, 2, 4 or 8 bytes at an address that is a multiple of its size is one
//!   access of the processor. Longer ones are sequences of those, in no promised order.
//! - [`GuestMemory::fetch_or`] and [`GuestMemory::compare_exchange`] are atomic towards the
//!   guest too.
//! - The memory is not in core dumps, and child processes do not inherit it.
//!
//! Faults: a page of RAM that is mapped here can always be read and written. That is the
//! host's promise, not ours: what VTL2 forbids VTL0 with `ModifyVtlProtectionMask` binds VTL0
//! only, and the host never takes RAM away. So there is no handler for SIGBUS or SIGSEGV; a
//! host that breaks its promise kills the process, which is reported like any other death.

mod access;
mod mapping;
mod register;

pub use register::Register;

use access::Bytes;
use loader_defs::range::GpaRange;
use mapping::Mapping;
use register::Registered;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::FromZeros;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

/// The RAM of a guest. Clones are the same memory.
#[derive(Clone)]
pub struct GuestMemory(Arc<Vec<Region>>);

/// A range of RAM. They are sorted and do not overlap.
struct Region {
    range: GpaRange,
    mapping: Mapping,
    registered: Registered,
}

/// Why there is no access to the memory of a guest.
#[derive(Debug, Error)]
pub enum Error {
    /// It leaves RAM.
    #[error("guest memory: {length} bytes at {gpa:#x} are not all RAM: {missing:#x} is not")]
    NotRam {
        /// First address.
        gpa: u64,
        /// Bytes.
        length: u64,
        /// The first address that is not RAM.
        missing: u64,
    },
    /// An atomic access with a remainder.
    #[error("guest memory: address {gpa:#x} of an atomic access, expected a multiple of {size}")]
    Misaligned {
        /// Address.
        gpa: u64,
        /// Size of the access.
        size: u64,
    },
    /// The kernel was told about the memory and refuses.
    #[error("guest memory: cannot register {range:?}: {error}")]
    Register {
        /// What was to be registered.
        range: GpaRange,
        /// Why not.
        error: io::Error,
    },
}

/// Why the RAM of a guest cannot be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// Half a page.
    #[error("guest memory: RAM {0:?} is not made of whole pages")]
    NotPages(GpaRange),
    /// In the wrong order.
    #[error("guest memory: RAM {0:?} overlaps or comes before what precedes it")]
    Order(GpaRange),
    /// The kernel does not map it.
    #[error("guest memory: cannot map RAM {range:?}: {error}")]
    Map {
        /// Which.
        range: GpaRange,
        /// Why not.
        error: io::Error,
    },
}

impl GuestMemory {
    /// Maps `ram` (sorted, whole pages) of `file`, where a file offset is a GPA.
    ///
    /// Before the first access to a chunk of it, `register` is called.
    pub fn map(
        file: BorrowedFd<'_>,
        ram: &[GpaRange],
        register: Arc<dyn Register>,
    ) -> Result<Self, MapError> {
        Self::new(ram, |range| {
            let mapping = Mapping::of_file(file, range)?;
            Ok((mapping, Registered::new(range, register.clone())))
        })
    }

    /// New memory, zeroed, that no guest has: for tests.
    pub fn anonymous(ram: &[GpaRange]) -> Result<Self, MapError> {
        Self::new(ram, |range| {
            Ok((Mapping::anonymous(range)?, Registered::nothing()))
        })
    }

    fn new(
        ram: &[GpaRange],
        mut map: impl FnMut(GpaRange) -> io::Result<(Mapping, Registered)>,
    ) -> Result<Self, MapError> {
        let mut end = 0;
        let mut regions = Vec::new();
        for range in ram.iter().copied().filter(|range| !range.is_empty()) {
            if !range.is_page_aligned() {
                return Err(MapError::NotPages(range));
            }
            if range.start() < end {
                return Err(MapError::Order(range));
            }
            end = range.end();
            let (mapping, registered) =
                map(range).map_err(|error| MapError::Map { range, error })?;
            regions.push(Region {
                range,
                mapping,
                registered,
            });
        }
        Ok(Self(Arc::new(regions)))
    }

    /// The RAM.
    pub fn ram(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.0.iter().map(|region| region.range)
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.ram().map(|range| range.len()).sum()
    }

    /// Whether all of `length` bytes at `gpa` are RAM.
    pub fn is_ram(&self, gpa: u64, length: u64) -> bool {
        self.check(gpa, length).is_ok()
    }

    /// Copies out of the guest.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), Error> {
        let mut rest = data;
        for bytes in self.pieces(gpa, rest.len() as u64)? {
            let (now, later) = rest.split_at_mut(bytes.len());
            bytes.read(now);
            rest = later;
        }
        Ok(())
    }

    /// Copies into the guest.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Error> {
        let mut rest = data;
        for bytes in self.pieces(gpa, rest.len() as u64)? {
            let (now, later) = rest.split_at(bytes.len());
            bytes.write(now);
            rest = later;
        }
        Ok(())
    }

    /// Writes `length` times `value`.
    pub fn fill(&self, gpa: u64, length: u64, value: u8) -> Result<(), Error> {
        for bytes in self.pieces(gpa, length)? {
            bytes.fill(value);
        }
        Ok(())
    }

    /// Copies a value out of the guest.
    pub fn read_value<T: FromZeros + FromBytes + IntoBytes>(&self, gpa: u64) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        self.read(gpa, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a value into the guest.
    pub fn write_value<T: IntoBytes + Immutable>(&self, gpa: u64, value: &T) -> Result<(), Error> {
        self.write(gpa, value.as_bytes())
    }

    /// Sets the bits of `bits`, and says what was there.
    pub fn fetch_or(&self, gpa: u64, bits: u32) -> Result<u32, Error> {
        Ok(self.atomic(gpa, 4)?.fetch_or(bits))
    }

    /// Writes `new` if `current` is there. Either way, says what was there.
    pub fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, Error> {
        Ok(self.atomic(gpa, 8)?.compare_exchange(current, new))
    }

    /// An access that is aligned is in one page, so in one region.
    fn atomic(&self, gpa: u64, size: u64) -> Result<Bytes<'_>, Error> {
        if !gpa.is_multiple_of(size) {
            return Err(Error::Misaligned { gpa, size });
        }
        self.pieces(gpa, size)?.next().ok_or(Error::NotRam {
            gpa,
            length: size,
            missing: gpa,
        })
    }

    /// What `length` bytes at `gpa` consist of, ready for access.
    fn pieces(&self, gpa: u64, length: u64) -> Result<Pieces<'_>, Error> {
        let pieces = self.check(gpa, length)?;
        for (region, range) in pieces.ranges() {
            region.registered.ensure(range)?;
        }
        Ok(pieces)
    }

    /// What `length` bytes at `gpa` consist of, if all of them are RAM.
    fn check(&self, gpa: u64, length: u64) -> Result<Pieces<'_>, Error> {
        let not_ram = |missing| Error::NotRam {
            gpa,
            length,
            missing,
        };
        let rest = GpaRange::new(gpa, length).ok_or(not_ram(u64::MAX))?;
        let first = self.0.partition_point(|region| region.range.end() <= gpa);
        let pieces = Pieces {
            regions: self.0.get(first..).unwrap_or_default(),
            rest,
        };
        let mut reached = gpa;
        for (_, range) in pieces.ranges() {
            if range.start() != reached {
                break;
            }
            reached = range.end();
        }
        if reached != rest.end() {
            return Err(not_ram(reached));
        }
        Ok(pieces)
    }
}

/// The parts of a range in each region. All of the range is RAM.
struct Pieces<'a> {
    regions: &'a [Region],
    rest: GpaRange,
}

impl<'a> Pieces<'a> {
    fn ranges(&self) -> impl Iterator<Item = (&'a Region, GpaRange)> + use<'a> {
        let rest = self.rest;
        self.regions
            .iter()
            .map(move |region| (region, region.range.intersection(&rest)))
            .take_while(|(_, range)| !range.is_empty())
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Bytes<'a>;

    fn next(&mut self) -> Option<Bytes<'a>> {
        let (region, range) = self.ranges().next()?;
        self.regions = self.regions.get(1..).unwrap_or_default();
        let offset = range.start() - region.range.start();
        region.mapping.bytes(offset, range.len())
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ram()).finish()
    }
}

#[cfg(test)]
mod tests;
