//! Memory of a VTL.
//!
//! An address that comes from a VTL means nothing until [`GuestMemory`] has found it in
//! the RAM that this VTL has. Nobody holds a reference into it: the VTL's other VPs and
//! its devices change it at any time, so bytes are copied out, once, and then parsed.

use igvm_loader::{MemoryRange, PAGE_SIZE};
use thiserror::Error;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Copies between the host and physical memory. The addresses are RAM: whoever calls
/// has checked it.
pub trait RamAccess {
    /// Copies out.
    fn read_ram(&self, address: u64, out: &mut [u8]);
    /// Copies in.
    fn write_ram(&self, address: u64, data: &[u8]);
}

/// An access beyond the memory of the VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{size} bytes at GPA {address:#x} are not RAM of this VTL")]
pub struct NotMapped {
    /// First byte.
    pub address: u64,
    /// Number of bytes.
    pub size: u64,
}

/// The RAM that a VTL may use, by GPA.
#[derive(Clone, Copy)]
pub struct GuestMemory<'a, R: ?Sized> {
    ram: &'a R,
    allowed: &'a [MemoryRange],
}

impl<'a, R: RamAccess + ?Sized> GuestMemory<'a, R> {
    /// Memory of a VTL that may use the sorted and joined ranges `allowed`.
    pub fn new(ram: &'a R, allowed: &'a [MemoryRange]) -> Self {
        Self { ram, allowed }
    }

    /// Checks that all of these bytes are the VTL's.
    pub fn check(&self, address: u64, size: u64) -> Result<(), NotMapped> {
        let error = NotMapped { address, size };
        let wanted = MemoryRange::with_size(address, size).ok_or(error)?;
        if self.allowed.iter().any(|range| range.covers(wanted)) {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Checks that a whole page is the VTL's and yields its address.
    pub fn check_page(&self, page_number: u64) -> Result<u64, NotMapped> {
        let address = page_number.checked_mul(PAGE_SIZE).ok_or(NotMapped {
            address: u64::MAX,
            size: PAGE_SIZE,
        })?;
        self.check(address, PAGE_SIZE)?;
        Ok(address)
    }

    /// Copies out.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), NotMapped> {
        self.check(address, out.len() as u64)?;
        self.ram.read_ram(address, out);
        Ok(())
    }

    /// Copies in.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), NotMapped> {
        self.check(address, data.len() as u64)?;
        self.ram.write_ram(address, data);
        Ok(())
    }

    /// Copies a structure out.
    pub fn read_as<T: FromBytes + IntoBytes + FromZeros>(
        &self,
        address: u64,
    ) -> Result<T, NotMapped> {
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a structure in.
    pub fn write_as<T: IntoBytes + Immutable>(
        &self,
        address: u64,
        value: &T,
    ) -> Result<(), NotMapped> {
        self.write(address, value.as_bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests;
