//! The heap: what is left of the host's memory behind its image.

#![expect(unsafe_code, reason = "the global allocator")]

use super::entry;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;
use spin::Mutex;
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};

struct LockedHeap(Mutex<Heap>);

#[global_allocator]
static HEAP: LockedHeap = LockedHeap(Mutex::new(Heap::empty()));

/// Opens the heap. To be called once, before anything allocates.
pub(crate) fn init() {
    let start = entry::host_image_end();
    let size = HOST_MEMORY_BASE + HOST_MEMORY_SIZE - start;
    // SAFETY: [start, start + size) lies behind the image and within the memory that is
    // the host's alone; it is identity-mapped and used for nothing else.
    unsafe { HEAP.0.lock().init(start as *mut u8, size as usize) };
}

/// Bytes used and bytes free.
pub(crate) fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.used(), heap.free())
}

// SAFETY: `Heap` hands out disjoint blocks of the layout asked for, and the lock makes
// calls from several CPUs follow one another.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .allocate_first_fit(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller promises that `block` came from `alloc` with `layout`.
            unsafe { self.0.lock().deallocate(block, layout) };
        }
    }
}
