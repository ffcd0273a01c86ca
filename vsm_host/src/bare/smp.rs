//! The other CPUs: started all at once, then asleep until their VP is.

#![expect(unsafe_code, reason = "called from assembly; stacks")]

use super::interrupts::NmiSleeper;
use super::{clock, cpu, entry, exit, interrupts, lapic};
use alloc::alloc::alloc_zeroed;
use core::alloc::Layout;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use spin::Once;
use vsm_host::guest_memory::RamAccess;
use vsm_host::partition::Partition;
use vsm_host::partition::mailbox::Sleeper;
use vsm_host::vtl::Vtl;

/// Where the other CPUs begin; free until the image is loaded.
const START_PAGE: u64 = 0x8000;

/// A CPU needs about a tenth of a millisecond, also under emulation. Past this limit it
/// is certain that one will not come.
const START_LIMIT: Duration = Duration::from_secs(30);

/// CPUs that will keep an NMI until they sleep.
static READY: AtomicU32 = AtomicU32::new(0);

/// The stacks of the other CPUs, lowest address first, and their number.
static STACKS: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// What the CPUs work on, once it exists.
pub(crate) static PARTITION: Once<Partition> = Once::new();

/// Starts all CPUs but this one, `count` of them, and returns when they are ready to be
/// woken.
pub(crate) fn start(count: u32) {
    if count == 0 {
        return;
    }
    let layout = Layout::from_size_align(count as usize * entry::AP_STACK_SIZE, 16)
        .expect("the size of the stacks fits into memory");
    // SAFETY: the size is not zero.
    let stacks = unsafe { alloc_zeroed(layout) };
    assert!(
        !stacks.is_null(),
        "no memory for the stacks of {count} CPUs"
    );
    entry::set_ap_stacks(stacks as u64, count);
    STACKS.store(stacks as u64, Ordering::Relaxed);
    COUNT.store(count, Ordering::Relaxed);
    super::memory::Physical.write_ram(START_PAGE, entry::ap_start_code());
    lapic::init_others();
    lapic::start_others((START_PAGE >> 12) as u8);
    let begin = clock::since_start();
    loop {
        let ready = READY.load(Ordering::Acquire);
        if ready == count {
            break;
        }
        assert!(
            clock::since_start() - begin < START_LIMIT,
            "{ready} of {count} CPUs are ready after {START_LIMIT:?}"
        );
        core::hint::spin_loop();
    }
}

/// Bytes of its stack that a CPU has used at most, of all but the first CPU.
pub(crate) fn stack_use() -> usize {
    const WORD: usize = size_of::<u64>();
    let stack = |index: u32| {
        let base = STACKS.load(Ordering::Relaxed) + u64::from(index) * entry::AP_STACK_SIZE as u64;
        let untouched = (0..entry::AP_STACK_SIZE / WORD)
            .take_while(|word| {
                let address = base + (word * WORD) as u64;
                // SAFETY: an aligned word of memory that was allocated for stacks and is never
                // freed. Its CPU may be writing there; a torn value is as good as any.
                let value = unsafe { core::ptr::read_volatile(address as *const u64) };
                value == 0
            })
            .count();
        entry::AP_STACK_SIZE - untouched * WORD
    };
    let count = COUNT.load(Ordering::Relaxed);
    (0..count).map(stack).max().unwrap_or(0)
}

/// Where every other CPU enters Rust; `_arrival` counts from 0.
#[unsafe(no_mangle)]
extern "C" fn ap_main(_arrival: u32) -> ! {
    interrupts::load();
    cpu::enable_svm();
    READY.fetch_add(1, Ordering::Release);
    // The NMI that ends this sleep says that the VP of this CPU is being started.
    let partition = loop {
        NmiSleeper.sleep();
        if let Some(partition) = PARTITION.get() {
            break partition;
        }
    };
    match partition.vp_index(Vtl::PARAVISOR, lapic::id()) {
        Some(index) => cpu::run(partition, index),
        None => exit::stop(),
    }
}
