//! The other VPs: how they start, and how they are given work.

#![expect(
    unsafe_code,
    reason = "a VP's number is found through GS; control registers"
)]

use super::clock::{halt_until, wait_for};
use super::entry::{self, TRAMPOLINE_PAGE};
use super::memory::write8;
use super::probe::cpuid;

use super::{apic, interrupts};
use crate::acpi::MAX_PROCESSORS;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::GsBase;

/// Vector that wakes a VP that has work.
pub const WAKE: u8 = 0xf0;

/// What a VP shall do, and what VP 0 knows of it.
#[repr(C)]
struct Slot {
    /// Must come first: found through GS.
    index: AtomicU32,
    online: AtomicU32,
    /// A function, as its address; 0 if there is nothing to do.
    work: AtomicUsize,
}

static SLOTS: [Slot; MAX_PROCESSORS] = [const {
    Slot {
        index: AtomicU32::new(0),
        online: AtomicU32::new(0),
        work: AtomicUsize::new(0),
    }
}; MAX_PROCESSORS];

/// Number of the VP that this runs on.
pub fn current() -> usize {
    let index: u32;
    // SAFETY: GS points to the VP's slot since its first Rust code.
    unsafe {
        asm!("mov {0:e}, gs:[0]", out(reg) index, options(nostack, readonly, preserves_flags));
    }
    index as usize
}

/// Makes this VP number `index`.
pub(super) fn identify(index: usize) {
    let slot = &SLOTS[index.min(MAX_PROCESSORS - 1)];
    slot.index.store(index as u32, Ordering::Release);
    GsBase::write(VirtAddr::from_ptr(slot));
}

/// Sets what kernels set of CR0 and CR4: write protection, large and global pages, and no
/// access to a program's pages. Emulators forget their translations when these change, so it
/// decides what an exit costs.
pub(super) fn protect() {
    const SMEP: u32 = 1 << 7;
    const SMAP: u32 = 1 << 20;
    let features = cpuid(7)[1];
    // SAFETY: the kernel writes to no read-only page, replaces no translation, and has no
    // page that a program could use.
    unsafe {
        Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT));
        Cr4::update(|flags| {
            flags.insert(Cr4Flags::PAGE_SIZE_EXTENSION | Cr4Flags::PAGE_GLOBAL);
            let smep = Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION;
            flags.set(smep, features & SMEP != 0);
            let smap = Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION;
            flags.set(smap, features & SMAP != 0);
        });
    }
}

/// True once the VP has started.
pub fn is_online(vp: usize) -> bool {
    vp == 0
        || SLOTS
            .get(vp)
            .is_some_and(|slot| slot.online.load(Ordering::Acquire) != 0)
}

/// Puts the code where VPs start into low memory.
pub fn place_trampoline() {
    for (address, byte) in (u64::from(TRAMPOLINE_PAGE) << 12..).zip(entry::trampoline()) {
        write8(address, *byte);
    }
}

/// Starts VP `vp`, whose APIC has this id. False if it does not report.
pub fn start(vp: usize, apic_id: u32) -> bool {
    if vp >= MAX_PROCESSORS {
        return false;
    }
    if is_online(vp) {
        return true;
    }
    place_trampoline();
    entry::set_next_vp(vp);
    apic::send(apic_id, apic::INIT);
    apic::send(apic_id, apic::STARTUP | u32::from(TRAMPOLINE_PAGE));
    wait_for(|| is_online(vp))
}

/// Takes a VP for not started, as after INIT.
pub fn forget(vp: usize) {
    if let Some(slot) = SLOTS.get(vp) {
        slot.online.store(0, Ordering::Release);
        slot.work.store(0, Ordering::Release);
    }
}

/// Gives VP `vp` work and waits until it is done; false if it never is.
pub fn run_on(vp: usize, apic_id: u32, work: fn()) -> bool {
    begin_on(vp, apic_id, work) && wait_for(|| is_idle(vp))
}

/// Gives VP `vp` work; false if it has some already.
pub fn begin_on(vp: usize, apic_id: u32, work: fn()) -> bool {
    let Some(slot) = SLOTS.get(vp) else {
        return false;
    };
    if slot
        .work
        .compare_exchange(0, work as usize, Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        return false;
    }
    apic::send(apic_id, apic::ASSERT | u32::from(WAKE));
    true
}

/// True if the VP has nothing to do.
pub fn is_idle(vp: usize) -> bool {
    SLOTS
        .get(vp)
        .is_some_and(|slot| slot.work.load(Ordering::Acquire) == 0)
}

/// First Rust code of another VP.
pub(super) extern "C" fn ap_main(index: usize) -> ! {
    identify(index);
    interrupts::load();
    protect();
    apic::enable();
    let slot = &SLOTS[index.min(MAX_PROCESSORS - 1)];
    slot.online.store(1, Ordering::Release);
    loop {
        halt_until(|| slot.work.load(Ordering::Acquire) != 0);
        let work = slot.work.load(Ordering::Acquire);
        // SAFETY: only `begin_on` stores there, and what it stores is such a function.
        let work: fn() = unsafe { core::mem::transmute(work) };
        work();
        slot.work.store(0, Ordering::Release);
    }
}
