//! A heap for programs that allocate a little, once, and then hand over the machine.
//!
//! Memory is taken from one region, upwards. Only the newest allocation can be given
//! back or grow in place: that is exactly what a growing `Vec` and short-lived strings
//! do, and it needs no bookkeeping. When the region is used up, allocation fails, which
//! `alloc` turns into a panic with a text.

#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr;

/// The allocator. Empty until [`BumpAllocator::init`].
#[derive(Debug)]
pub struct BumpAllocator {
    start: Cell<usize>,
    next: Cell<usize>,
    end: Cell<usize>,
    peak: Cell<usize>,
}

// SAFETY: the programs that this crate is for have one thread and no interrupts (crate
// docs), so the cells are never accessed concurrently.
unsafe impl Sync for BumpAllocator {}

impl BumpAllocator {
    /// An allocator without memory.
    pub const fn empty() -> Self {
        Self {
            start: Cell::new(0),
            next: Cell::new(0),
            end: Cell::new(0),
            peak: Cell::new(0),
        }
    }

    /// Gives it memory.
    ///
    /// # Safety
    /// `[start, start + size)` must be mapped, writable and used by nothing else from now
    /// on; it must be called at most once and before the first allocation; only one
    /// thread may ever use the allocator.
    pub unsafe fn init(&self, start: *mut u8, size: usize) {
        let address = start.expose_provenance();
        self.start.set(address);
        self.next.set(address);
        self.peak.set(address);
        self.end.set(address.saturating_add(size));
    }

    /// The most bytes that were ever in use.
    pub fn peak_bytes(&self) -> usize {
        self.peak.get() - self.start.get()
    }

    /// All bytes.
    pub fn capacity(&self) -> usize {
        self.end.get() - self.start.get()
    }

    fn advance(&self, next: usize) {
        self.next.set(next);
        self.peak.set(self.peak.get().max(next));
    }

    fn is_newest(&self, block: *mut u8, size: usize) -> bool {
        block.addr().checked_add(size) == Some(self.next.get())
    }
}

// SAFETY: blocks lie in the region given to `init`, are aligned by rounding up, and never
// overlap: `next` only moves below a live block's end when that block, the newest, is
// itself freed or shrunk.
unsafe impl GlobalAlloc for BumpAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(start) = self.next.get().checked_next_multiple_of(layout.align()) else {
            return ptr::null_mut();
        };
        match start.checked_add(layout.size()) {
            Some(end) if end <= self.end.get() => {
                self.advance(end);
                ptr::with_exposed_provenance_mut(start)
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.is_newest(block, layout.size()) {
            self.next.set(block.addr());
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.is_newest(block, layout.size()) {
            return match block.addr().checked_add(new_size) {
                Some(end) if end <= self.end.get() => {
                    self.advance(end);
                    block
                }
                _ => ptr::null_mut(),
            };
        }
        if new_size <= layout.size() {
            return block;
        }
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return ptr::null_mut();
        };
        // SAFETY: the layout has a non-zero size, because it is larger than the old one.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both blocks are at least `layout.size()` bytes, live, and disjoint
            // because the new one begins at or behind `next`.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size()) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[repr(align(64))]
    struct Region([u8; 256]);

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn blocks_are_aligned_and_inside_the_region_until_it_is_full() {
        let mut region = Region([0; 256]);
        let heap = BumpAllocator::empty();
        // SAFETY: the region outlives the heap and is used by nothing else.
        unsafe { heap.init(region.0.as_mut_ptr(), 256) };

        // SAFETY: layouts have non-zero sizes.
        let (a, b, c) = unsafe {
            (
                heap.alloc(layout(3, 1)),
                heap.alloc(layout(8, 64)),
                heap.alloc(layout(200, 1)),
            )
        };

        assert_eq!(a.addr(), region.0.as_ptr().addr());
        assert_eq!(b.addr() % 64, 0);
        assert!(b.addr() >= a.addr() + 3);
        assert!(c.is_null());
        assert_eq!(heap.peak_bytes(), 72);
        assert_eq!(heap.capacity(), 256);
    }

    #[test]
    fn the_newest_block_grows_in_place_and_is_given_back() {
        let mut region = Region([0; 256]);
        let heap = BumpAllocator::empty();
        // SAFETY: as above.
        unsafe { heap.init(region.0.as_mut_ptr(), 256) };

        // SAFETY: blocks are used with the layouts that they were made with.
        unsafe {
            let a = heap.alloc(layout(8, 8));
            assert_eq!(heap.realloc(a, layout(8, 8), 128), a);
            let b = heap.alloc(layout(8, 8));
            *a = 7;
            let moved = heap.realloc(a, layout(128, 8), 16);
            assert_eq!(moved, a, "shrinking never moves");
            heap.dealloc(b, layout(8, 8));
            assert_eq!(heap.alloc(layout(8, 8)), b, "the newest block is reused");
            let moved = heap.realloc(a, layout(16, 8), 32);
            assert_ne!(moved, a);
            assert_eq!(*moved, 7, "contents move along");
            assert!(heap.realloc(moved, layout(32, 8), 1024).is_null());
        }
    }

    #[test]
    fn without_memory_it_answers_null() {
        let heap = BumpAllocator::empty();
        // SAFETY: non-zero size.
        assert!(unsafe { heap.alloc(layout(1, 1)) }.is_null());
    }
}
