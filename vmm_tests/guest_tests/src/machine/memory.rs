//! Physical memory: everything is mapped where it is, GiB 3 (devices) uncached.

#![expect(unsafe_code, reason = "physical memory is accessed by address")]

use crate::acpi;
use core::cell::UnsafeCell;
use zerocopy::{Immutable, IntoBytes};

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// End of what the page tables map.
pub const MAPPED_END: u64 = 512 << 30;
/// Pages for the tests.
const SCRATCH_PAGES: usize = 16;

/// Memory that a device or a hypervisor may write.
#[repr(C, align(4096))]
struct Pages(UnsafeCell<[[u64; 512]; SCRATCH_PAGES]>);

// SAFETY: all accesses go through raw pointers with volatile operations.
unsafe impl Sync for Pages {}

static SCRATCH: Pages = Pages(UnsafeCell::new([[0; 512]; SCRATCH_PAGES]));

/// A page of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page(usize);

impl Page {
    /// Input of hypercalls.
    pub const INPUT: Self = Self(0);
    /// Output of hypercalls.
    pub const OUTPUT: Self = Self(1);
    /// The hypercall page.
    pub const HYPERCALL: Self = Self(2);
    /// Messages.
    pub const MESSAGES: Self = Self(3);
    /// Event flags.
    pub const EVENTS: Self = Self(4);
    /// Reference time.
    pub const REFERENCE_TSC: Self = Self(5);
    /// Whatever a test needs.
    pub const ANY: Self = Self(6);
    /// The same once more.
    pub const OTHER: Self = Self(7);

    /// Its address.
    pub fn address(self) -> u64 {
        SCRATCH.0.get() as u64 + self.0 as u64 * PAGE_SIZE
    }

    /// Reads 64-bit word `index`.
    pub fn read(self, index: usize) -> u64 {
        // SAFETY: within the page, as the index is reduced; aligned; nobody holds a
        // reference.
        unsafe {
            (self.address() as *const u64)
                .add(index % 512)
                .read_volatile()
        }
    }

    /// Writes 64-bit word `index`.
    pub fn write(self, index: usize, value: u64) {
        // SAFETY: as above.
        unsafe {
            (self.address() as *mut u64)
                .add(index % 512)
                .write_volatile(value)
        };
    }

    /// Fills it.
    pub fn fill(self, value: u64) {
        for index in 0..512 {
            self.write(index, value);
        }
    }

    /// Writes bytes to its start, padded to whole words.
    pub fn write_bytes<T: IntoBytes + Immutable + ?Sized>(self, value: &T) {
        for (index, chunk) in value.as_bytes().chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write(index, u64::from_le_bytes(word));
        }
    }
}

/// The memory of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Physical;

impl acpi::Memory for Physical {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(end) = address.checked_add(into.len() as u64) else {
            return false;
        };
        if address == 0 || end > MAPPED_END {
            return false;
        }
        for (offset, byte) in (0..).zip(into) {
            *byte = read8(address + offset);
        }
        true
    }
}

/// Reads a byte.
pub fn read8(address: u64) -> u8 {
    // SAFETY: reading what is mapped changes nothing that Rust knows of.
    unsafe { (address as *const u8).read_volatile() }
}

/// Writes a byte to memory that the caller has reserved: the page below 640 KiB for the
/// start of other VPs.
pub fn write8(address: u64, value: u8) {
    // SAFETY: this kernel has no object there.
    unsafe { (address as *mut u8).write_volatile(value) };
}

/// Reads a register of a device.
pub fn read32(address: u64) -> u32 {
    // SAFETY: as above; the callers' addresses are aligned.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register of a device.
pub fn write32(address: u64, value: u32) {
    // SAFETY: as above; no device of this machine writes to memory.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// The text at `address` up to its zero, if it is UTF-8.
pub fn text(address: u64) -> Option<&'static str> {
    const LONGEST: usize = 4096;
    if address == 0 || address.saturating_add(LONGEST as u64) > MAPPED_END {
        return None;
    }
    let length = (0..LONGEST).find(|offset| read8(address + *offset as u64) == 0)?;
    // SAFETY: the loader has placed the command line there; nobody writes it any more.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, length) };
    core::str::from_utf8(bytes).ok()
}
