//! The bare-metal half: entry code, the real machine, and the jump to the kernel.
//!
//! It is kept thin. Whatever can be decided without the machine is decided in the
//! library, which is tested on the host.

#![expect(
    unsafe_code,
    reason = "entry code, memory of the image, and the jump to the kernel"
)]

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;
mod image;
mod panic;

use minimal_rt::bump::BumpAllocator;
use minimal_rt::relocate::{Dyn, R_RELATIVE};

#[global_allocator]
static HEAP: BumpAllocator = BumpAllocator::empty();

unsafe extern "C" {
    static __ehdr_start: u8;
    static __stack_start: u64;
    static mut __heap_start: u8;
    static __heap_end: u8;
}

/// Value at the lower end of the stack; another one there means that the stack was too
/// small. The entry code writes it.
const STACK_COOKIE: u64 = 0x3040_5060;

/// First Rust code. Nothing that needs a relocation may happen before it is done.
///
/// # Safety
/// Called once, by the entry code, with the image's own base and dynamic section.
unsafe extern "C" fn relocate_image(base: *mut u8, dynamic: *const Dyn) -> u32 {
    // SAFETY: passed on from the entry code.
    match unsafe { minimal_rt::relocate::relocate(base, dynamic, R_RELATIVE) } {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// From here on the image is an ordinary program.
extern "C" fn shim_main(params_offset: i64) -> ! {
    // SAFETY: the linker script sets both symbols around memory that is used for nothing
    // else; this is the first allocation-related call, on the only CPU.
    unsafe {
        let start = &raw mut __heap_start;
        HEAP.init(start, (&raw const __heap_end).addr() - start.addr());
    }
    let base = (&raw const __ehdr_start).expose_provenance() as u64;
    arch::run(base, params_offset)
}

fn check_stack_cookie() {
    // SAFETY: the linker script reserves the stack; its lowest word is only ever written
    // by the entry code, or by an overflow, which is what the volatile read looks for.
    let cookie = unsafe { (&raw const __stack_start).read_volatile() };
    assert!(
        cookie == STACK_COOKIE,
        "stack cookie is {cookie:#x}, expected {STACK_COOKIE:#x}: the stack was too small"
    );
}
