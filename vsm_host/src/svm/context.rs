//! Initial contexts, from the TLFS into a VMCB.

use crate::partition::gpr;
use hv_defs::vp_context::{HvX64SegmentRegister, HvX64TableRegister, SegmentAttributes};
use igvm_loader::StartContext;
use x86_defs::svm::{Save, Segment, Vmcb};
use x86_defs::{DR6_AT_RESET, DR7_AT_RESET, EFER_SVME, RFLAGS_ALWAYS_ONE};
use zerocopy::FromZeros;

/// Puts a context into a block.
pub fn apply(context: &StartContext, vmcb: &mut Vmcb) {
    let r = context.state();
    let save = &mut vmcb.save;
    save.zero();
    save.cs = segment(&r.cs);
    save.ds = segment(&r.ds);
    save.es = segment(&r.es);
    save.fs = segment(&r.fs);
    save.gs = segment(&r.gs);
    save.ss = segment(&r.ss);
    save.tr = segment(&r.tr);
    save.ldtr = segment(&r.ldtr);
    save.gdtr = table(&r.gdtr);
    save.idtr = table(&r.idtr);
    // SVM keeps the privilege level apart; the TLFS has it in SS.
    save.cpl = r.ss.attributes.dpl();
    // VMRUN insists on SVME.
    save.efer = r.efer | EFER_SVME;
    save.cr0 = r.cr0;
    save.cr3 = r.cr3;
    save.cr4 = r.cr4;
    save.rflags = r.rflags | RFLAGS_ALWAYS_ONE;
    save.rip = r.rip;
    save.rsp = r.rsp;
    save.rax = context.gprs[gpr::RAX];
    save.cr2 = context.cr2;
    save.dr6 = DR6_AT_RESET;
    save.dr7 = DR7_AT_RESET;
    save.g_pat = r.msr_cr_pat;
}

/// A segment register in the form of a block.
pub(crate) fn segment(register: &HvX64SegmentRegister) -> Segment {
    Segment {
        selector: register.selector,
        attributes: register.attributes.to_vmcb(),
        limit: register.limit,
        base: register.base,
    }
}

/// A table register in the form of a block.
pub(crate) fn table(register: &HvX64TableRegister) -> Segment {
    Segment {
        limit: register.limit.into(),
        base: register.base,
        ..Segment::new_zeroed()
    }
}

/// SS as the TLFS has it: with the privilege level, which SVM keeps apart. The descriptor's
/// own level differs from it behind a SYSRET on some processors.
pub(crate) fn stack_segment(save: &Save) -> Segment {
    let attributes = SegmentAttributes::from_vmcb(save.ss.attributes).with_dpl(save.cpl & 3);
    Segment {
        attributes: attributes.to_vmcb(),
        ..save.ss
    }
}

#[cfg(test)]
pub(crate) mod tests;
