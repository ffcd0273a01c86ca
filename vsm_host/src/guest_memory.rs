//! Memory of a VTL.
//!
//! An address that comes from a VTL means nothing until [`GuestMemory`] has found it in
//! the RAM that this VTL has, and where a higher VTL protects it from this one, that
//! counts for the host's accesses too. Nobody holds a reference into it: the VTL's other VPs and
//! its devices change it at any time, so bytes are copied out, once, and then parsed.

use crate::nested::NestedTables;
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
    /// Reads an aligned word at once.
    fn load_word(&self, address: u64) -> u32;
    /// Writes an aligned word at once, visible after all earlier writes.
    fn store_word(&self, address: u64, value: u32);
    /// Sets bits of an aligned word in one step; returns the value before.
    fn set_word_bits(&self, address: u64, bits: u32) -> u32;
}

/// An access beyond the memory of the VTL, or against its protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{size} bytes at GPA {address:#x} are not RAM that this VTL may access so")]
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
    protections: Option<&'a NestedTables>,
}

impl<'a, R: RamAccess + ?Sized> GuestMemory<'a, R> {
    /// Memory of a VTL that may use the sorted and joined ranges `allowed`.
    pub fn new(ram: &'a R, allowed: &'a [MemoryRange]) -> Self {
        Self {
            ram,
            allowed,
            protections: None,
        }
    }

    /// The same memory, with what a higher VTL permits.
    pub fn protected_by(self, tables: &'a NestedTables) -> Self {
        Self {
            protections: Some(tables),
            ..self
        }
    }

    /// Checks that all of these bytes are the VTL's, whatever it may do with them.
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

    /// Checks that the VTL may write all of these bytes now.
    pub fn check_writable(&self, address: u64, size: u64) -> Result<(), NotMapped> {
        self.with(address, size, true, |_| ())
    }

    /// Copies out.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), NotMapped> {
        self.with(address, out.len() as u64, false, |ram| {
            ram.read_ram(address, out);
        })
    }

    /// Copies in.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), NotMapped> {
        self.with(address, data.len() as u64, true, |ram| {
            ram.write_ram(address, data);
        })
    }

    /// Reads a word at once; not if it is not aligned.
    pub fn load_word(&self, address: u64) -> Result<u32, NotMapped> {
        self.with_word(address, false, |ram| ram.load_word(address))
    }

    /// Writes a word at once, visible after all earlier writes; not if it is not aligned.
    pub fn store_word(&self, address: u64, value: u32) -> Result<(), NotMapped> {
        self.with_word(address, true, |ram| ram.store_word(address, value))
    }

    /// Sets bits of a word in one step and returns the value before; not if it is not
    /// aligned.
    pub fn set_word_bits(&self, address: u64, bits: u32) -> Result<u32, NotMapped> {
        self.with_word(address, true, |ram| ram.set_word_bits(address, bits))
    }

    fn with_word<T>(
        &self,
        address: u64,
        write: bool,
        access: impl FnOnce(&R) -> T,
    ) -> Result<T, NotMapped> {
        let size = size_of::<u32>() as u64;
        if !address.is_multiple_of(size) {
            return Err(NotMapped { address, size });
        }
        self.with(address, size, write, access)
    }

    /// Accesses bytes that the VTL may access; nobody takes that permission back before
    /// the access is done.
    fn with<T>(
        &self,
        address: u64,
        size: u64,
        write: bool,
        access: impl FnOnce(&R) -> T,
    ) -> Result<T, NotMapped> {
        self.check(address, size)?;
        let Some(tables) = self.protections else {
            return Ok(access(self.ram));
        };
        let held = tables.hold();
        let mut page = address - address % PAGE_SIZE;
        // Ends: the range has been found in RAM, so it does not wrap.
        while page < address + size {
            if !held.access(page).permits(write) {
                return Err(NotMapped { address, size });
            }
            page += PAGE_SIZE;
        }
        Ok(access(self.ram))
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
