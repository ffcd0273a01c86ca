//! Physical memory, which is identity-mapped.

#![expect(unsafe_code, reason = "access to physical memory")]

use super::entry::MAPPED_LIMIT;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use igvm_loader::{HostMemoryWriter, MemoryRange};
use vsm_host::guest_memory::RamAccess;
use vsm_host::platform::{PhysMemory, Unreadable};

/// All of physical memory.
pub(crate) struct Physical;

/// Copies `size` bytes. Assembly, because VTL2 and its devices may write at the same
/// time: whatever mixture arrives is fine, but it must not be a data race in Rust.
///
/// # Safety
///
/// Both ranges are mapped, and what is overwritten is nobody's Rust object but the
/// caller's.
unsafe fn copy(from: *const u8, to: *mut u8, size: usize) {
    let (words, bytes) = (size / 8, size % 8);
    // SAFETY: the caller's promise; the direction flag is clear as the ABI demands.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {bytes}",
            "rep movsb",
            bytes = in(reg) bytes,
            inout("rcx") words => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

fn check(address: u64, size: usize) -> Result<(), Unreadable> {
    match address.checked_add(size as u64) {
        Some(end) if end <= MAPPED_LIMIT => Ok(()),
        _ => Err(Unreadable { address, size }),
    }
}

impl PhysMemory for Physical {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        check(address, out.len())?;
        // SAFETY: the source is mapped; reading it has no side effect in RAM and ROM, and
        // a device register would only yield a strange value.
        unsafe { copy(address as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }
}

impl RamAccess for Physical {
    fn read_ram(&self, address: u64, out: &mut [u8]) {
        // SAFETY: `RamAccess` is only called with RAM of a VTL, which is mapped (checked
        // in `boot`) and never the host's.
        unsafe { copy(address as *const u8, out.as_mut_ptr(), out.len()) };
    }

    fn write_ram(&self, address: u64, data: &[u8]) {
        // SAFETY: as above.
        unsafe { copy(data.as_ptr(), address as *mut u8, data.len()) };
    }

    fn load_word(&self, address: u64) -> u32 {
        word(address).load(Ordering::Acquire)
    }

    fn store_word(&self, address: u64, value: u32) {
        word(address).store(value, Ordering::Release);
    }

    fn set_word_bits(&self, address: u64, bits: u32) -> u32 {
        word(address).fetch_or(bits, Ordering::AcqRel)
    }
}

/// A word of a VTL's RAM.
fn word(address: u64) -> &'static AtomicU32 {
    // SAFETY: `RamAccess` is only called with RAM of a VTL, which is mapped for good and
    // never a Rust object of the host, and with aligned words. Whoever else writes it is
    // outside of Rust or uses assembly.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }
}

impl HostMemoryWriter for Physical {
    fn write(&mut self, address: u64, data: &[u8]) {
        self.write_ram(address, data);
    }

    fn zero(&mut self, address: u64, size: u64) {
        // SAFETY: the plan zeroes only RAM that is not the host's; a multiple of 8 bytes
        // is written by words, the rest by bytes.
        unsafe {
            asm!(
                "rep stosq",
                "mov rcx, {bytes}",
                "rep stosb",
                bytes = in(reg) size % 8,
                inout("rcx") size / 8 => _,
                inout("rdi") address => _,
                in("rax") 0,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// The bytes of a file that whoever started the host has left in memory; `None` if they
/// are not mapped.
pub(crate) fn file(range: MemoryRange) -> Option<&'static [u8]> {
    check(range.start(), range.size() as usize).ok()?;
    // SAFETY: mapped; no VTL runs yet, and nothing is loaded over the file (it is among
    // the busy ranges of the machine).
    Some(unsafe { core::slice::from_raw_parts(range.start() as *const u8, range.size() as usize) })
}
