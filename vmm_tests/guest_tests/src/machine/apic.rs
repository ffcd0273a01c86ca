//! The VP's local APIC, in whichever mode it is.

use super::memory::{read32, write32};
use super::probe::{Fault, rdmsr, wrmsr};
use super::vps::current;
use crate::acpi::MAX_PROCESSORS;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use hv_defs::msr::HV_X64_MSR_VP_ASSIST_PAGE;
use x86_defs::apic::{APIC_DEFAULT_BASE, ApicBase, ApicRegister, X2APIC_MSR_FIRST};
use x86_defs::msr::APIC_BASE;

/// Vector of spurious interrupts.
pub const SPURIOUS: u8 = 0xff;
/// Shorthand: the sender itself.
pub const TO_SELF: u32 = 1 << 18;
/// Shorthand: everybody.
pub const TO_ALL: u32 = 2 << 18;
/// Shorthand: everybody else.
pub const TO_OTHERS: u32 = 3 << 18;
/// Delivery mode SMI.
pub const SMI: u32 = 2 << 8;
/// Delivery mode NMI.
pub const NMI: u32 = 4 << 8;
/// Delivery mode INIT, asserted.
pub const INIT: u32 = (5 << 8) | ASSERT | (1 << 15);
/// Delivery mode start-up.
pub const STARTUP: u32 = (6 << 8) | ASSERT;
/// Level: assert.
pub const ASSERT: u32 = 1 << 14;
/// Being sent.
const PENDING: u32 = 1 << 12;
/// Bit of an entry of the vector table: masked.
pub const MASKED: u32 = 1 << 16;

/// A VP assist page; only its first field is used.
#[repr(C, align(4096))]
struct AssistPage(AtomicU32, [u8; 4092]);

static ASSIST: [AssistPage; MAX_PROCESSORS] =
    [const { AssistPage(AtomicU32::new(0), [0; 4092]) }; MAX_PROCESSORS];
static ASSISTED: AtomicU64 = AtomicU64::new(0);

/// Bit of the first field of the assist page.
const NO_EOI_REQUIRED: u32 = 1;

/// Modes, so that no access needs to ask: that would be an exit more.
static X2APIC: [AtomicBool; MAX_PROCESSORS] = [const { AtomicBool::new(false) }; MAX_PROCESSORS];

/// The base MSR.
pub fn base() -> ApicBase {
    rdmsr(APIC_BASE).map_or(ApicBase::new(), ApicBase::from_bits)
}

/// The mode: x2APIC, not xAPIC.
pub fn is_x2apic() -> bool {
    X2APIC[current() % MAX_PROCESSORS].load(Ordering::Acquire)
}

fn remember_mode() {
    X2APIC[current() % MAX_PROCESSORS].store(base().x2apic(), Ordering::Release);
}

/// Changes the mode. The way back leads over "off", where the state gets lost.
pub fn set_x2apic(x2apic: bool) -> Result<(), Fault> {
    let base = base();
    if base.x2apic() == x2apic {
        return Ok(());
    }
    if !x2apic {
        wrmsr(
            APIC_BASE,
            base.with_enabled(false).with_x2apic(false).into(),
        )?;
    }
    wrmsr(
        APIC_BASE,
        base.with_enabled(true).with_x2apic(x2apic).into(),
    )?;
    remember_mode();
    enable();
    Ok(())
}

/// Reads a register.
pub fn read(register: ApicRegister) -> u32 {
    if is_x2apic() {
        rdmsr(X2APIC_MSR_FIRST + u32::from(register.0)).unwrap_or(0) as u32
    } else {
        read32(APIC_DEFAULT_BASE + (u64::from(register.0) << 4))
    }
}

/// Writes a register.
pub fn write(register: ApicRegister, value: u32) {
    if is_x2apic() {
        // A fault here shows in what the test expects next.
        let _ = wrmsr(X2APIC_MSR_FIRST + u32::from(register.0), value.into());
    } else {
        write32(APIC_DEFAULT_BASE + (u64::from(register.0) << 4), value);
    }
}

/// Is bit `vector` set in the 256 bits from `first` on?
pub fn bit(first: ApicRegister, vector: u8) -> bool {
    read(ApicRegister(first.0 + vector / 32)) & (1 << (vector % 32)) != 0
}

/// Turns the APIC on and lets everything through.
pub fn enable() {
    remember_mode();
    write(ApicRegister::SVR, 0x100 | u32::from(SPURIOUS));
    write(ApicRegister::TPR, 0);
}

/// Ends the interrupt in service; without an access to the APIC if the host says that it
/// needs none.
pub fn eoi() {
    if let Some(page) = ASSIST.get(current())
        && page.0.fetch_and(!NO_EOI_REQUIRED, Ordering::AcqRel) & NO_EOI_REQUIRED != 0
    {
        ASSISTED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    write(ApicRegister::EOI, 0);
}

/// Gives this VP an assist page, or takes it away.
pub fn set_eoi_assist(on: bool) -> Result<(), Fault> {
    let Some(page) = ASSIST.get(current()) else {
        return Ok(());
    };
    let address = core::ptr::from_ref(page) as u64;
    wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, address | u64::from(on))
}

/// How many interrupts have ended without an access.
pub fn assisted() -> u64 {
    ASSISTED.load(Ordering::Relaxed)
}

/// Its id.
pub fn id() -> u32 {
    match is_x2apic() {
        true => read(ApicRegister::ID),
        false => read(ApicRegister::ID) >> 24,
    }
}

/// Sends an interrupt message: the low half of the command and a destination.
pub fn send(destination: u32, command: u32) {
    if is_x2apic() {
        let value = (u64::from(destination) << 32) | u64::from(command);
        let _ = wrmsr(X2APIC_MSR_FIRST + u32::from(ApicRegister::ICR.0), value);
    } else {
        write(ApicRegister::ICR_HIGH, destination << 24);
        write(ApicRegister::ICR, command);
        while read(ApicRegister::ICR) & PENDING != 0 {
            core::hint::spin_loop();
        }
    }
}

/// Sends an interrupt to this VP itself.
pub fn send_self(vector: u8) {
    send(0, TO_SELF | ASSERT | u32::from(vector));
}
