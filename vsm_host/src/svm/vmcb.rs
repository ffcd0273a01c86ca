//! What the host does with control blocks.

use alloc::boxed::Box;
use x86_defs::svm::{EventInjection, ExceptionIntercepts, Intercepts3, Intercepts4, Save, Vmcb};
use x86_defs::{DR6_BS, EFER_LMA, RFLAGS_RF, RFLAGS_TF};
use zerocopy::FromZeros;

/// Value of `tlb_control` that forgets all translations.
const TLB_FLUSH_ALL: u32 = 1;

/// Bit of CS attributes in a control block: 64-bit code.
const CS_LONG: u16 = 1 << 9;

/// Bit of `interrupt_shadow`: the instruction before holds interrupts back.
pub const SHADOW: u64 = 1;

/// Exceptions that the host injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
    /// #DB, with DR6 as it stands.
    Debug,
    /// #AC(0).
    AlignmentCheck,
}

/// A block with the intercepts and maps that every VTL of this host has, and no state
/// yet. VTL2 owns the physical local APIC: interrupts, HLT and I/O are its own. NMIs are
/// the host's: by them a CPU is called out of its VTL.
///
/// It is a page, which shall not come over the caller's stack.
pub fn new(nested_cr3: u64, iopm: u64, msrpm: u64, asid: u32) -> Box<Vmcb> {
    let mut vmcb = Box::new(Vmcb::new_zeroed());
    let control = &mut vmcb.control;
    control.intercepts3 = Intercepts3::new()
        .with_nmi(true)
        .with_smi(true)
        .with_init(true)
        .with_cpuid(true)
        .with_invlpga(true)
        .with_ioio(true)
        .with_msr(true)
        .with_shutdown(true)
        .into_bits();
    control.intercepts4 = Intercepts4::new()
        .with_vmrun(true)
        .with_vmmcall(true)
        .with_vmload(true)
        .with_vmsave(true)
        .with_stgi(true)
        .with_clgi(true)
        .with_skinit(true)
        .with_xsetbv(true)
        .into_bits();
    control.iopm_base = iopm;
    control.msrpm_base = msrpm;
    control.asid = asid;
    // Translations of whoever had this ASID before.
    control.tlb_control = TLB_FLUSH_ALL;
    control.nested_paging = 1;
    control.nested_cr3 = nested_cr3;
    vmcb
}

/// Adds what the host intercepts of a guest that has no devices: physical interrupts are
/// for another VTL, and the guest's own are virtual.
pub fn intercept_guest(vmcb: &mut Vmcb) {
    let control = &mut vmcb.control;
    // Their delivery can raise them again, for ever and out of reach of any interrupt
    // (CVE-2015-5307, CVE-2015-8104): the processor has to come by here each time.
    control.intercept_exceptions = ExceptionIntercepts::new()
        .with_debug(true)
        .with_alignment_check(true)
        .into_bits();
    control.intercepts3 = Intercepts3::from_bits(control.intercepts3)
        .with_intr(true)
        .with_hlt(true)
        // It would throw away what others have written.
        .with_invd(true)
        .into_bits();
    control.intercepts4 = Intercepts4::from_bits(control.intercepts4)
        // Its #DB would have RIP in front of the instruction, where that of all others of its
        // kind is behind.
        .with_icebp(true)
        // CPUID does not show them.
        .with_monitor(true)
        .with_mwait(true)
        .with_mwait_armed(true)
        .into_bits();
    control.virtual_interrupt.set_masking(true);
}

/// Makes VMRUN deliver an exception instead of the instruction that exited.
pub fn inject(vmcb: &mut Vmcb, exception: Exception) {
    let event = EventInjection::new().with_kind(3).with_valid(true);
    vmcb.control.event_injection = match exception {
        Exception::InvalidOpcode => event.with_vector(6),
        Exception::GeneralProtection => event.with_vector(13).with_has_error_code(true),
        Exception::Debug => event.with_vector(1),
        Exception::AlignmentCheck => event.with_vector(17).with_has_error_code(true),
    };
}

/// Makes VMRUN forget all translations.
pub fn flush(vmcb: &mut Vmcb) {
    vmcb.control.tlb_control = TLB_FLUSH_ALL;
}

/// Continues behind the instruction that exited. Who executes step by step stops there: the
/// processor itself, which has not executed it, would only stop behind the next one.
pub fn advance(vmcb: &mut Vmcb, next_rip: u64) {
    vmcb.save.rip = next_rip;
    // It holds back breakpoints at one instruction, which was this one.
    vmcb.save.rflags &= !RFLAGS_RF;
    vmcb.control.interrupt_shadow = 0;
    if vmcb.save.rflags & RFLAGS_TF != 0 && !vmcb.control.event_injection.valid() {
        vmcb.save.dr6 |= DR6_BS;
        inject(vmcb, Exception::Debug);
    }
}

/// The guest runs 64-bit code.
pub fn is_64_bit(save: &Save) -> bool {
    save.efer & EFER_LMA != 0 && save.cs.attributes & CS_LONG != 0
}
