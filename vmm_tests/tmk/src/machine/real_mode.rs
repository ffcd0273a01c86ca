//! Starting a CPU behind the host's back, by the interrupt controllers, which are VTL2's.

#![expect(unsafe_code, reason = "local APIC, and code in low memory")]

use super::memory;
use super::probe::rdmsr;
use hv_defs::msr::HV_X64_MSR_TSC_FREQUENCY;

/// Where the CPU would begin: a page of VTL0's RAM below 1 MiB.
const START_PAGE: u64 = 0x9000;
/// Where it would leave its sign, in the same page.
const SIGN: u64 = START_PAGE + 0x100;
/// The sign.
const SIGN_VALUE: u8 = 0x5a;
/// `mov byte ptr cs:[0x100], 0x5a; cli; hlt; jmp` to the HLT.
const CODE: [u8; 10] = [
    0x2e, 0xc6, 0x06, 0x00, 0x01, SIGN_VALUE, 0xfa, 0xf4, 0xeb, 0xfd,
];
/// Interrupt command register: low half, high half.
const ICR: [u64; 2] = [0xfee0_0300, 0xfee0_0310];
/// Registers of the IOAPIC: selection, window.
const IO_APIC: [u64; 2] = [0xfec0_0000, 0xfec0_0010];
/// Low half of an entry that nothing uses.
const IO_APIC_ENTRY: u32 = 0x10 + 2 * 20;
/// An entry that is masked and would send INIT.
const ENTRY_INIT: u32 = 0x1_0500;
/// INIT, asserted.
const ICR_INIT: u32 = 0x4500;
/// Start-up, asserted; the vector is the page number.
const ICR_STARTUP: u32 = 0x4600;

/// Sends INIT and start-up to a CPU. True if the code has run there.
pub fn start(apic_id: u8) -> bool {
    for (offset, byte) in CODE.iter().enumerate() {
        poke(START_PAGE + offset as u64, *byte);
    }
    poke(SIGN, 0);
    for command in [ICR_INIT, ICR_STARTUP | (START_PAGE >> 12) as u32] {
        // SAFETY: the registers of the local APIC are mapped and VTL2's.
        unsafe {
            (ICR[1] as *mut u32).write_volatile(u32::from(apic_id) << 24);
            (ICR[0] as *mut u32).write_volatile(command);
        }
        pause();
    }
    // SAFETY: RAM, mapped, referenced by nobody.
    unsafe { (SIGN as *const u8).read_volatile() == SIGN_VALUE }
}

/// Asks the IOAPIC to send INIT on behalf of a device. True if it would.
pub fn init_by_device() -> bool {
    // SAFETY: the registers of the IOAPIC are mapped and VTL2's; the entry is masked.
    unsafe {
        (IO_APIC[0] as *mut u32).write_volatile(IO_APIC_ENTRY);
        let window = IO_APIC[1] as *mut u32;
        window.write_volatile(ENTRY_INIT);
        window.read_volatile() & 0x700 == ENTRY_INIT & 0x700
    }
}

fn poke(address: u64, byte: u8) {
    // SAFETY: a page of VTL0's RAM; nothing runs in VTL0.
    unsafe { (address as *mut u8).write_volatile(byte) };
}

/// 50 ms: the other CPU needs far less. Too short a time could only hide an escape.
fn pause() {
    let frequency = rdmsr(HV_X64_MSR_TSC_FREQUENCY).unwrap_or(1_000_000_000);
    let start = memory::tsc();
    while memory::tsc().wrapping_sub(start) < frequency / 20 {
        core::hint::spin_loop();
    }
}
