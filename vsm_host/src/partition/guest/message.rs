//! Intercept messages: what the guest did, for VTL2.

use crate::partition::{Partition, Processor, Vp, gpr};
use crate::svm::{debug, fetch, vmcb};
use hv_defs::intercept::{
    AccessType, ExecutionState, INSTRUCTION_BYTES, InterceptHeader, LengthAndCr8,
};
use hv_defs::vp_context::{HvX64SegmentRegister, SegmentAttributes};
use x86_defs::svm::{Save, Segment};
use x86_defs::{CR0_AM, CR0_PE, EFER_LMA};

/// A segment register in the form of the TLFS.
pub(super) fn segment(register: &Segment) -> HvX64SegmentRegister {
    HvX64SegmentRegister {
        base: register.base,
        limit: register.limit,
        selector: register.selector,
        attributes: SegmentAttributes::from_vmcb(register.attributes),
    }
}

/// What begins a message about the instruction at which the guest stands; `length` in
/// bytes, 0 if it is not known.
pub(super) fn header(vp: &Vp, access_type: AccessType, length: u64) -> InterceptHeader {
    let vmcb = vp.vmcb();
    let save = &vmcb.save;
    InterceptHeader {
        vp_index: vp.index,
        length_and_cr8: LengthAndCr8::new()
            .with_instruction_length((length & 0xf) as u8)
            .with_cr8(vmcb.control.virtual_interrupt.tpr()),
        access_type,
        execution_state: ExecutionState::new()
            .with_cpl(save.cpl & 3)
            .with_cr0_pe(save.cr0 & CR0_PE != 0)
            .with_cr0_am(save.cr0 & CR0_AM != 0)
            .with_efer_lma(save.efer & EFER_LMA != 0)
            .with_debug_active(debug::is_on(save.dr7))
            .with_interruption_pending(vmcb.control.event_injection.valid())
            .with_vtl(vp.vtl.number())
            .with_interrupt_shadow(vmcb.control.interrupt_shadow & vmcb::SHADOW != 0),
        cs: segment(&save.cs),
        rip: save.rip,
        rflags: save.rflags,
    }
}

/// The instruction at which the guest stands, perhaps with what follows, and how many
/// bytes of it could be read.
pub(super) fn instruction(
    partition: &Partition,
    vp: &Vp,
    processor: &impl Processor,
) -> ([u8; INSTRUCTION_BYTES], u8) {
    let mut bytes = [0; INSTRUCTION_BYTES];
    let memory = partition.memory(vp.vtl, processor);
    let count = fetch::fetch(&memory, &vp.vmcb().save, &mut bytes);
    // At most the 16 that there is room for.
    (bytes, count as u8)
}

/// General-purpose registers by number, RAX and RSP included.
pub(super) fn gprs(vp: &Vp) -> [u64; 16] {
    let Save { rax, rsp, .. } = vp.vmcb().save;
    let mut all = vp.gprs;
    all[gpr::RAX] = rax;
    all[gpr::RSP] = rsp;
    all
}
