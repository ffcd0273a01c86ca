//! Copies of bytes that others change meanwhile.

#![expect(
    unsafe_code,
    reason = "accesses memory that is shared with a guest, through atomic operations"
)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

/// Mapped bytes that a guest can change at any time. Every access is an atomic operation:
/// that is the one kind of access that may race with others.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    start: NonNull<u8>,
    length: usize,
    mapping: PhantomData<&'a ()>,
}

/// Walks through bytes in the widest accesses that are aligned; `$access` is called with
/// an atomic and its offset.
macro_rules! walk {
    ($bytes:expr, |$atomic:ident, $offset:ident, $integer:ident| $access:expr) => {{
        let mut $offset = 0;
        while $offset < $bytes.length {
            let address = $bytes.start.as_ptr().addr() + $offset;
            let left = $bytes.length - $offset;
            // SAFETY: `$offset` plus the width is at most `length`, so each access is in
            // the mapping, which lives as long as `Bytes`; the address is a multiple of
            // the width.
            unsafe {
                let pointer = $bytes.start.as_ptr().add($offset);
                if left >= 8 && address.is_multiple_of(8) {
                    type $integer = u64;
                    let $atomic = AtomicU64::from_ptr(pointer.cast());
                    $access;
                    $offset += 8;
                } else if left >= 4 && address.is_multiple_of(4) {
                    type $integer = u32;
                    let $atomic = AtomicU32::from_ptr(pointer.cast());
                    $access;
                    $offset += 4;
                } else if left >= 2 && address.is_multiple_of(2) {
                    type $integer = u16;
                    let $atomic = AtomicU16::from_ptr(pointer.cast());
                    $access;
                    $offset += 2;
                } else {
                    type $integer = u8;
                    let $atomic = AtomicU8::from_ptr(pointer);
                    $access;
                    $offset += 1;
                }
            }
        }
    }};
}

impl Bytes<'_> {
    /// # Safety
    ///
    /// `length` bytes at `start` must be mapped, readable and writable, for the lifetime,
    /// and no reference to any of them may exist.
    pub(crate) unsafe fn new(start: NonNull<u8>, length: usize) -> Self {
        Self {
            start,
            length,
            mapping: PhantomData,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Copies out; `data` has the same length.
    pub(crate) fn read(self, data: &mut [u8]) {
        walk!(self, |atomic, offset, Integer| {
            const WIDTH: usize = size_of::<Integer>();
            if let Some(part) = data.get_mut(offset..offset + WIDTH) {
                part.copy_from_slice(&atomic.load(Relaxed).to_ne_bytes());
            }
        });
    }

    /// Copies in; `data` has the same length.
    pub(crate) fn write(self, data: &[u8]) {
        walk!(self, |atomic, offset, Integer| {
            const WIDTH: usize = size_of::<Integer>();
            if let Some(part) = data[offset..].first_chunk::<WIDTH>() {
                atomic.store(Integer::from_ne_bytes(*part), Relaxed);
            }
        });
    }

    pub(crate) fn fill(self, value: u8) {
        walk!(self, |atomic, offset, Integer| {
            atomic.store(
                Integer::from_ne_bytes([value; size_of::<Integer>()]),
                Relaxed,
            )
        });
    }

    /// Four bytes, aligned.
    pub(crate) fn fetch_or(self, bits: u32) -> u32 {
        assert!(self.length >= 4 && self.start.cast::<u32>().is_aligned());
        // SAFETY: the bytes are mapped, as `new` was promised, there are enough, and the
        // address is a multiple of 4.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast()) }.fetch_or(bits, SeqCst)
    }

    /// Eight bytes, aligned.
    pub(crate) fn compare_exchange(self, current: u64, new: u64) -> u64 {
        assert!(self.length >= 8 && self.start.cast::<u64>().is_aligned());
        // SAFETY: the bytes are mapped, as `new` was promised, there are enough, and the
        // address is a multiple of 8.
        let atomic = unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast()) };
        match atomic.compare_exchange(current, new, SeqCst, SeqCst) {
            Ok(was) | Err(was) => was,
        }
    }
}
