//! Contexts of tests, and how they arrive.

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
