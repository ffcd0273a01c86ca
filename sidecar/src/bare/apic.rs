//! The local APIC of a sidecar CPU: on, off, and ends of interrupts.

use core::arch::x86_64::__cpuid;
use core::ptr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use sidecar::map;
use x86_64::registers::model_specific::Msr;
use x86_defs::apic::X2APIC_MSR_FIRST;
use x86_defs::msr::APIC_BASE;

/// CPUID.1:ECX.
const HAS_MSRS: u32 = 1 << 21;
/// APIC_BASE: the APIC is used by MSRs, and is on.
const X2APIC: u64 = 1 << 11 | 1 << 10;
/// End of interrupt, offset in the page.
pub(super) const EOI: u32 = 0xb0;
/// Spurious interrupt vector, offset in the page.
const SPURIOUS: u32 = 0xf0;
/// Vector of a spurious interrupt, and the bit that has the APIC on.
const SPURIOUS_VECTOR: u32 = 0xff;
const ENABLED: u32 = 1 << 8;

/// Whether it is used by MSRs; the interrupt handler reads it.
pub(super) static BY_MSRS: AtomicBool = AtomicBool::new(false);

/// Finds out how it is used, before there are other CPUs. The GPA of its page, if by that.
pub(super) fn detect() -> Option<u64> {
    let by_msrs = __cpuid(1).ecx & HAS_MSRS != 0;
    BY_MSRS.store(by_msrs, Relaxed);
    if by_msrs {
        return None;
    }
    // SAFETY: every processor with an APIC has the MSR; reading has no effect.
    let base = unsafe { Msr::new(APIC_BASE).read() };
    Some(base & 0x000f_ffff_ffff_f000)
}

/// Has it accept interrupts.
pub(super) fn enable() {
    if BY_MSRS.load(Relaxed) {
        let mut base = Msr::new(APIC_BASE);
        // SAFETY: CPUID says that there is this mode; this kernel accesses it in no other.
        unsafe { base.write(base.read() | X2APIC) };
    }
    write(SPURIOUS, ENABLED | SPURIOUS_VECTOR);
}

/// Has it accept nothing any more.
pub(super) fn disable() {
    write(SPURIOUS, SPURIOUS_VECTOR);
}

fn write(offset: u32, value: u32) {
    if BY_MSRS.load(Relaxed) {
        let mut register = Msr::new(X2APIC_MSR_FIRST + offset / 16);
        // SAFETY: a register of this CPU's own APIC; interrupts have handlers.
        unsafe { register.write(value.into()) };
    } else {
        let address = map::APIC as usize + offset as usize;
        // SAFETY: the page is mapped if there are no MSRs; as above.
        unsafe { ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(value) };
    }
}
