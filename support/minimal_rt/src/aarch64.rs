//! aarch64: hypercalls by `hvc #1`, and what follows from them.
//!
//! Everything here traps without a hypervisor below, so it is called by binaries only.

#![expect(unsafe_code, reason = "`hvc` and system registers")]

use core::arch::asm;
use core::cell::UnsafeCell;

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use hv_defs::hypercall::{HvInputVtl, HypercallCode, HypercallControl, HypercallResult};
use hv_defs::registers::HvRegisterName;
use hv_defs::{HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF};

use crate::Page;
use crate::crash::{CrashMessage, CrashRegisters};
use crate::hypercall::{GUEST_OS_ID, Transport, get_vp_register};

/// Stops this CPU for ever.
pub fn halt() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Bits of a physical address, from `ID_AA64MMFR0_EL1.PARange`.
pub fn physical_address_bits() -> u8 {
    match ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        // 52 and larger values: a guest without large physical addresses has 48.
        _ => 48,
    }
}

/// Writes one register by a fast hypercall, which needs no memory.
pub fn set_register_fast(name: HvRegisterName, value: u64) -> HypercallResult {
    let control = HypercallControl::new()
        .with_code(HypercallCode::SET_VP_REGISTERS.0)
        .with_fast(true)
        .with_rep_count(1);
    let result: u64;
    // SAFETY: the inputs are values, not addresses; the registers that the hypervisor may
    // change are declared.
    unsafe {
        asm!(
            "hvc #1",
            inout("x0") control.into_bits() => result,
            inout("x1") HV_PARTITION_ID_SELF => _,
            inout("x2") u64::from(HV_VP_INDEX_SELF) => _,
            inout("x3") u64::from(name.0) => _,
            inout("x4") 0u64 => _,
            inout("x5") value => _,
            inout("x6") 0u64 => _,
            lateout("x7") _, lateout("x8") _, lateout("x9") _, lateout("x10") _,
            lateout("x11") _, lateout("x12") _, lateout("x13") _, lateout("x14") _,
            lateout("x15") _, lateout("x16") _, lateout("x17") _,
            options(nostack),
        );
    }
    HypercallResult::from_bits(result)
}

/// Hands a text to the host; it may end the VM at once.
pub fn report_crash(tag: [u8; 8], message: &'static CrashMessage) {
    let text = message.as_bytes();
    let registers = CrashRegisters::new(tag, text.as_ptr().addr() as u64, text.len());
    for (i, value) in (0u32..).zip(registers.parameters) {
        // A register that the host does not have cannot be helped here.
        let _ = set_register_fast(HvRegisterName(HvRegisterName::GUEST_CRASH_P0.0 + i), value);
    }
    let _ = set_register_fast(HvRegisterName::GUEST_CRASH_CTL, registers.control);
}

/// Memory of hypercalls with parameters in memory.
#[derive(Debug)]
#[repr(C)]
pub struct HypercallPages {
    input: UnsafeCell<Page>,
    output: UnsafeCell<Page>,
}

// SAFETY: there is one thread (crate docs); the pages are used through `Hypercalls` only,
// of which there is one, as its constructor demands.
unsafe impl Sync for HypercallPages {}

impl HypercallPages {
    /// Empty pages.
    pub const fn new() -> Self {
        Self {
            input: UnsafeCell::new(Page::ZERO),
            output: UnsafeCell::new(Page::ZERO),
        }
    }
}

impl Default for HypercallPages {
    fn default() -> Self {
        Self::new()
    }
}

/// The hypercall interface, enabled.
#[derive(Debug)]
pub struct Hypercalls {
    pages: &'static HypercallPages,
}

impl Hypercalls {
    /// Gives the guest's identity.
    ///
    /// # Safety
    /// `pages` must be identity mapped and used by no other `Hypercalls`.
    pub unsafe fn enable(pages: &'static HypercallPages) -> Self {
        // A hypervisor that refuses it will refuse the calls as well, with a status.
        let _ = set_register_fast(HvRegisterName::GUEST_OS_ID, GUEST_OS_ID);
        Self { pages }
    }

    /// Takes the identity back, so that the next program starts clean.
    pub fn disable(self) {
        let _ = set_register_fast(HvRegisterName::GUEST_OS_ID, 0);
    }

    /// The reference counter in units of 100 ns.
    pub fn reference_time(&mut self) -> Option<u64> {
        get_vp_register(self, HvInputVtl::new(), HvRegisterName::TIME_REF_COUNT).ok()
    }
}

impl Transport for Hypercalls {
    fn input(&mut self) -> &mut Page {
        // SAFETY: `&mut self` is the only way to the page, and no call is in progress.
        unsafe { &mut *self.pages.input.get() }
    }

    fn output(&self) -> &Page {
        // SAFETY: only `call`, which needs `&mut self`, lets the hypervisor write it.
        unsafe { &*self.pages.output.get() }
    }

    fn call(&mut self, control: HypercallControl) -> HypercallResult {
        let result: u64;
        // SAFETY: the pages are identity mapped and no reference to them is alive across
        // this call; the registers that the hypervisor may change are declared.
        unsafe {
            asm!(
                "hvc #1",
                inout("x0") control.into_bits() => result,
                inout("x1") self.pages.input.get().expose_provenance() => _,
                inout("x2") self.pages.output.get().expose_provenance() => _,
                lateout("x3") _, lateout("x4") _, lateout("x5") _, lateout("x6") _,
                lateout("x7") _, lateout("x8") _, lateout("x9") _, lateout("x10") _,
                lateout("x11") _, lateout("x12") _, lateout("x13") _, lateout("x14") _,
                lateout("x15") _, lateout("x16") _, lateout("x17") _,
                options(nostack),
            );
        }
        HypercallResult::from_bits(result)
    }
}
