//! The hypervisor, as the TLFS describes it.

use super::memory::Page;
use super::probe::{Fault, Registers, call, cpuid, rdmsr, vmmcall, wrmsr};
use crate::report::Failure;
use hv_defs::cpuid::{HV_CPUID_INTERFACE, HV_INTERFACE};
use hv_defs::hypercall::{HvStatus, HypercallControl};
use hv_defs::msr::{
    HV_X64_MSR_GUEST_OS_ID, HV_X64_MSR_HYPERCALL, HV_X64_MSR_TSC_FREQUENCY, OverlayPage,
};
use zerocopy::{Immutable, IntoBytes};

/// Identity of this kernel: vendor 0xfd in the open-source form of the TLFS.
pub const GUEST_OS_ID: u64 = (1 << 63) | (0xfd << 48) | 1;
/// CPUID 1, ECX: there is a hypervisor.
const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// True if there is a hypervisor that says it follows the TLFS.
pub fn is_present() -> bool {
    cpuid(1)[2] & HYPERVISOR_PRESENT != 0 && cpuid(HV_CPUID_INTERFACE)[0] == HV_INTERFACE
}

/// Ticks of the time stamp counter per second; 0 if nobody says.
pub fn tsc_frequency() -> u64 {
    match is_present() {
        true => rdmsr(HV_X64_MSR_TSC_FREQUENCY).unwrap_or(0),
        false => 0,
    }
}

/// An enabled overlay at `page`.
pub fn overlay(page: Page) -> u64 {
    OverlayPage::new()
        .with_enabled(true)
        .with_page_number(page.address() / super::memory::PAGE_SIZE)
        .into_bits()
}

/// Makes the kernel known and places the hypercall page.
pub fn enable_hypercalls() -> Result<(), Failure> {
    wrmsr(HV_X64_MSR_GUEST_OS_ID, GUEST_OS_ID)?;
    let wanted = overlay(Page::HYPERCALL);
    wrmsr(HV_X64_MSR_HYPERCALL, wanted)?;
    let found = rdmsr(HV_X64_MSR_HYPERCALL)?;
    crate::ensure!(
        found == wanted,
        "hypercall MSR is {found:#x}, expected {wanted:#x}"
    );
    Ok(())
}

/// Makes a hypercall with exactly these register values, by the instruction.
pub fn raw(control: u64, input: u64, output: u64) -> Result<HvStatus, Fault> {
    status(vmmcall(registers(control, input, output)))
}

/// The same through the hypercall page.
pub fn by_page(control: u64, input: u64, output: u64) -> Result<HvStatus, Fault> {
    status(call(Registers {
        rbx: Page::HYPERCALL.address(),
        ..registers(control, input, output)
    }))
}

/// Makes a hypercall with this input.
pub fn hypercall<T: IntoBytes + Immutable + ?Sized>(
    control: HypercallControl,
    input: &T,
) -> Result<HvStatus, Fault> {
    Page::INPUT.write_bytes(input);
    raw(
        control.into_bits(),
        Page::INPUT.address(),
        Page::OUTPUT.address(),
    )
}

fn registers(control: u64, input: u64, output: u64) -> Registers {
    Registers {
        rax: u64::MAX,
        rcx: control,
        rdx: input,
        r8: output,
        ..Default::default()
    }
}

fn status(result: Result<Registers, Fault>) -> Result<HvStatus, Fault> {
    result.map(|r| HvStatus(r.rax as u16))
}
