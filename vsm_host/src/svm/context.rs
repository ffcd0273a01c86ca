//! Initial contexts, from the TLFS into a VMCB.

use crate::partition::gpr;
use hv_defs::vp_context::{HvX64SegmentRegister, HvX64TableRegister};
use igvm_loader::StartContext;
use x86_defs::svm::{Segment, Vmcb};
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
fn segment(register: &HvX64SegmentRegister) -> Segment {
    Segment {
        selector: register.selector,
        attributes: register.attributes.to_vmcb(),
        limit: register.limit,
        base: register.base,
    }
}

fn table(register: &HvX64TableRegister) -> Segment {
    Segment {
        limit: register.limit.into(),
        base: register.base,
        ..Segment::new_zeroed()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::svm::vmcb;
    use hv_defs::vp_context::HvInitialVpContext;
    use proptest::prelude::*;
    use zerocopy::FromBytes;

    /// What Linux asks for when it starts a CPU in VTL2.
    pub(crate) fn linux_ap() -> HvInitialVpContext {
        let mut context = HvInitialVpContext {
            rip: 0xffff_ffff_8100_0000,
            rsp: 0xffff_c900_0000_4000,
            rflags: 2,
            efer: 0xd01,
            cr0: 0x8005_0033,
            cr3: 0x0a00_0000,
            cr4: 0x6f0,
            msr_cr_pat: 0x0407_0506_0007_0106,
            ..Default::default()
        };
        context.cs.selector = 0x10;
        context.cs.limit = 0xffff_ffff;
        context.cs.attributes = 0xa09b.into();
        context.ss.attributes = 0xc093.into();
        context.tr.attributes = 0x8b.into();
        context.gdtr.limit = 0x7f;
        context.gdtr.base = 0xffff_fe00_0000_1000;
        context
    }

    #[test]
    fn a_context_arrives_in_the_vmcb() {
        let mut vmcb = vmcb::new(0x1000, 0x2000, 0x3000, 1);
        apply(&StartContext::new(linux_ap()).unwrap(), &mut vmcb);
        assert_eq!(vmcb.save.cs.attributes, 0xa9b);
        assert_eq!(vmcb.save.ss.attributes, 0xc93);
        assert_eq!(vmcb.save.efer, 0xd01 | EFER_SVME);
        assert_eq!(vmcb.save.gdtr.limit, 0x7f);
        assert_eq!(vmcb.save.cpl, 0);
        assert!(vmcb::is_64_bit(&vmcb.save));
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_or_refused(bytes: [[u8; 32]; 7]) {
            let context = HvInitialVpContext::read_from_bytes(bytes.as_flattened()).unwrap();
            if let Ok(context) = StartContext::new(context) {
                let mut vmcb = vmcb::new(0, 0, 0, 1);
                apply(&context, &mut vmcb);
                prop_assert_ne!(vmcb.save.efer & EFER_SVME, 0);
            }
        }
    }
}
