//! What happens when interrupts arrive, and what did.

#![expect(unsafe_code, reason = "the interrupt table is loaded by address")]

use super::apic;
use super::console::Console;
use super::entry::{CODE_SELECTOR, STUB_SIZE, stubs};
use super::power;
use super::vps::current;
use crate::acpi::MAX_PROCESSORS;
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::{VirtAddr, instructions};

/// Entries of a VP's record.
const RECORD: usize = 16;
/// The non-maskable interrupt.
const NMI: u64 = 2;
/// Vectors below are exceptions.
const EXCEPTIONS: u64 = 32;

/// What the handler of a vector does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Ends the interrupt.
    End,
    /// Leaves it in service; the test ends it.
    Leave,
    /// Lets others in while it is in service, sends itself the vectors of the next two
    /// priority classes, above and below, then ends it.
    Nest,
}

/// An end in the record, beside its vector.
pub const ENDED: u32 = 1 << 8;

/// What has happened on a VP.
struct Record {
    counts: [AtomicU32; 256],
    nmis: AtomicU32,
    sequence: [AtomicU32; RECORD],
    length: AtomicU32,
}

static RECORDS: [Record; MAX_PROCESSORS] = [const {
    Record {
        counts: [const { AtomicU32::new(0) }; 256],
        nmis: AtomicU32::new(0),
        sequence: [const { AtomicU32::new(0) }; RECORD],
        length: AtomicU32::new(0),
    }
}; MAX_PROCESSORS];

static ACTIONS: [AtomicU8; 256] = [const { AtomicU8::new(Action::End as u8) }; 256];

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written by VP 0 before any other VP runs, afterwards only read by processors.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; 256]));

/// What the processor and the stub have put on the stack.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Fills the table. Once, on VP 0.
pub fn init() {
    let table = TABLE.0.get() as *mut [u64; 2];
    for vector in 0..256u64 {
        let handler = stubs() + vector * STUB_SIZE;
        let gate = [
            (handler & 0xffff)
                | (u64::from(CODE_SELECTOR) << 16)
                | (0x8e00 << 32)
                | ((handler >> 16 & 0xffff) << 48),
            handler >> 32,
        ];
        // SAFETY: 256 entries; only VP 0 runs and the table is not in use yet.
        unsafe { table.add(vector as usize).write(gate) };
    }
}

/// Loads the table on this VP.
pub fn load() {
    let pointer = DescriptorTablePointer {
        limit: size_of::<[[u64; 2]; 256]>() as u16 - 1,
        base: VirtAddr::new_truncate(TABLE.0.get() as u64),
    };
    // SAFETY: the table is complete, lives for ever, and its handlers return properly.
    unsafe { lidt(&pointer) };
}

/// How often `vector` has arrived on a VP.
pub fn count(vp: usize, vector: u8) -> u32 {
    RECORDS.get(vp).map_or(0, |record| {
        record.counts[usize::from(vector)].load(Ordering::Acquire)
    })
}

/// How often `vector` has arrived on this VP.
pub fn count_here(vector: u8) -> u32 {
    count(current(), vector)
}

/// How often the non-maskable interrupt has arrived on a VP.
pub fn nmis(vp: usize) -> u32 {
    RECORDS
        .get(vp)
        .map_or(0, |record| record.nmis.load(Ordering::Acquire))
}

/// Chooses what the handler of `vector` does from now on.
pub fn set_action(vector: u8, action: Action) {
    ACTIONS[usize::from(vector)].store(action as u8, Ordering::Release);
}

/// Forgets the sequence of this VP.
pub fn clear_sequence() {
    if let Some(record) = RECORDS.get(current()) {
        record.length.store(0, Ordering::Release);
    }
}

/// The vectors that have arrived on this VP, in order; those that [`Action::Nest`] has
/// ended once more with [`ENDED`]. Returns how many, 16 at most.
pub fn sequence(into: &mut [u32; RECORD]) -> usize {
    let Some(record) = RECORDS.get(current()) else {
        return 0;
    };
    for (entry, recorded) in into.iter_mut().zip(&record.sequence) {
        *entry = recorded.load(Ordering::Acquire);
    }
    (record.length.load(Ordering::Acquire) as usize).min(RECORD)
}

fn note(record: &Record, what: u32) {
    let at = record.length.fetch_add(1, Ordering::AcqRel) as usize;
    if let Some(entry) = record.sequence.get(at) {
        entry.store(what, Ordering::Release);
    }
}

/// Called by the stubs.
pub(super) extern "C" fn on_interrupt(frame: *const Frame) {
    // SAFETY: the stub passes the address of the frame on its stack.
    let frame = unsafe { *frame };
    let Some(record) = RECORDS.get(current()) else {
        unexpected(&frame)
    };
    if frame.vector == NMI {
        record.nmis.fetch_add(1, Ordering::AcqRel);
        return;
    }
    if frame.vector < EXCEPTIONS {
        unexpected(&frame);
    }
    let vector = frame.vector as u8;
    record.counts[usize::from(vector)].fetch_add(1, Ordering::AcqRel);
    note(record, vector.into());
    if vector == apic::SPURIOUS {
        return;
    }
    let action = ACTIONS[usize::from(vector)].load(Ordering::Acquire);
    if action == Action::Leave as u8 {
        return;
    }
    if action == Action::Nest as u8 {
        apic::send_self(vector.wrapping_sub(0x10));
        instructions::interrupts::enable();
        apic::send_self(vector.wrapping_add(0x10));
        super::clock::interrupt_window();
        instructions::interrupts::disable();
        note(record, u32::from(vector) | ENDED);
    }
    apic::eoi();
}

fn unexpected(frame: &Frame) -> ! {
    let Frame {
        vector,
        error,
        rip,
        cs,
        rflags,
        rsp,
        ..
    } = frame;
    let _ = writeln!(
        Console,
        "note exception {vector} error {error:#x} at {cs:#x}:{rip:#x} flags {rflags:#x} \
         stack {rsp:#x} address {:#x}",
        x86_64::registers::control::Cr2::read_raw()
    );
    power::stop("unexpected exception")
}
