//! Mappings of guest memory into this process.

#![expect(unsafe_code, reason = "maps memory and gives out parts of the mapping")]

use crate::access::Bytes;
use loader_defs::range::GpaRange;
use rustix::mm;
use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::ptr::NonNull;

/// So that the kernel can map the largest pages, addresses here and there must be the same
/// modulo the size of those. Ranges that are smaller than that lie anywhere.
const LARGE_PAGES: [u64; 2] = [1 << 30, 2 << 20];

/// A range of guest memory in the address space of this process.
pub(crate) struct Mapping {
    /// What was reserved; a little more than what is used.
    reserved: NonNull<u8>,
    reserved_length: usize,
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; all access is through `Bytes`,
// which is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `range` of `file`, whose offsets are addresses.
    pub(crate) fn of_file(file: BorrowedFd<'_>, range: GpaRange) -> io::Result<Self> {
        let mapping = Self::reserve(range)?;
        // SAFETY: replaces a part of what `reserve` has reserved, and nobody else has.
        unsafe {
            mm::mmap(
                mapping.start.as_ptr().cast(),
                mapping.length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                range.start(),
            )?;
        }
        mapping.keep_private()?;
        Ok(mapping)
    }

    /// Zeroed memory of this process, of the size of `range`.
    pub(crate) fn anonymous(range: GpaRange) -> io::Result<Self> {
        let mapping = Self::reserve(range)?;
        // SAFETY: replaces a part of what `reserve` has reserved, and nobody else has.
        unsafe {
            mm::mmap_anonymous(
                mapping.start.as_ptr().cast(),
                mapping.length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            )?;
        }
        mapping.keep_private()?;
        Ok(mapping)
    }

    /// Address space for `range`.
    fn reserve(range: GpaRange) -> io::Result<Self> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let alignment = LARGE_PAGES
            .into_iter()
            .find(|size| range.len() >= *size)
            .unwrap_or(1 << 12);
        let length = usize::try_from(range.len()).map_err(too_large)?;
        let reserved_length =
            usize::try_from(range.len().saturating_add(alignment)).map_err(too_large)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let reserved = unsafe {
            mm::mmap_anonymous(
                ptr::null_mut(),
                reserved_length,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let reserved = NonNull::new(reserved.cast::<u8>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let address = reserved.as_ptr().addr() as u64;
        // Below `alignment`, so the rest holds all of `range`.
        let skip = range.start().wrapping_sub(address) & (alignment - 1);
        // SAFETY: in what has just been reserved.
        let start = unsafe { reserved.add(skip as usize) };
        Ok(Self {
            reserved,
            reserved_length,
            start,
            length,
        })
    }

    /// Neither core dumps nor child processes have it.
    fn keep_private(&self) -> io::Result<()> {
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: this advice does not change what the memory holds.
            unsafe { mm::madvise(self.start.as_ptr().cast(), self.length, advice)? };
        }
        Ok(())
    }

    /// `length` bytes at `offset`, if the mapping has them.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Option<Bytes<'_>> {
        let offset = usize::try_from(offset).ok()?;
        let length = usize::try_from(length).ok()?;
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: these bytes are in the mapping, which lives as long as the borrow of
        // `self`. Nobody makes references to them.
        Some(unsafe { Bytes::new(self.start.add(offset), length) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is this type's own, and no `Bytes` outlives it. Should it fail, the
        // mapping stays, and does no harm.
        let _ = unsafe { mm::munmap(self.reserved.as_ptr().cast(), self.reserved_length) };
    }
}
