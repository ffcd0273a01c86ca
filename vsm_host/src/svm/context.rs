//! Initial contexts: from the TLFS (or an IGVM file) into a VMCB.
//!
//! A context comes from VTL2 or from the image. VMRUN refuses some bad values and
//! misbehaves with others, so everything is checked here, with a reason that can be shown.

use crate::partition::{Gprs, gpr};
use hv_defs::vp_context::{HvInitialVpContext, HvX64SegmentRegister, HvX64TableRegister};
use thiserror::Error;
use x86_defs::svm::{Segment, Vmcb};
use x86_defs::{
    CR0_CD, CR0_DEFINED, CR0_NW, CR0_PE, CR0_PG, CR3_DEFINED, CR4_DEFINED, CR4_PAE, DR6_AT_RESET,
    DR7_AT_RESET, EFER_FFXSR, EFER_LMA, EFER_NXE, EFER_SCE, EFER_SVME, RFLAGS_ALWAYS_ONE,
    RFLAGS_DEFINED, is_canonical, is_valid_pat,
};
use zerocopy::FromZeros;

pub use x86_defs::{CR4_LA57, EFER_LME, PAT_AT_RESET};

/// What a VTL may set in EFER; SVME is the host's.
pub const EFER_GUEST: u64 = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_FFXSR;

/// A context that no VP can begin in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ContextError {
    /// Bits that are reserved or not for a VTL.
    #[error("{register} is {value:#x}: bits {wrong:#x} are set, expected 0")]
    Reserved {
        /// Which register.
        register: &'static str,
        /// Its value.
        value: u64,
        /// The offending bits.
        wrong: u64,
    },
    /// An address that is not canonical.
    #[error("{register} is {value:#x}, expected a canonical address")]
    NotCanonical {
        /// Which register.
        register: &'static str,
        /// Its value.
        value: u64,
    },
    /// A register that contradicts another one.
    #[error("{register} is {value:#x}, expected {expected}")]
    Mode {
        /// Which register.
        register: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// A memory type that does not exist.
    #[error("PAT is {value:#x}, expected memory types 0, 1, 4, 5, 6 or 7 in every byte")]
    Pat {
        /// Its value.
        value: u64,
    },
}

/// Where a VP begins: a checked context, and the general-purpose registers that are in
/// no VMCB (of which an IGVM file sets some).
#[derive(Debug, Clone)]
pub struct StartContext {
    registers: HvInitialVpContext,
    /// General-purpose registers by their number; RSP is in the context.
    pub gprs: Gprs,
    /// CR2.
    pub cr2: u64,
}

impl StartContext {
    /// Checks a context.
    pub fn new(registers: HvInitialVpContext) -> Result<Self, ContextError> {
        let r = &registers;
        for (register, value, defined) in [
            ("CR0", r.cr0, CR0_DEFINED),
            ("CR3", r.cr3, CR3_DEFINED),
            ("CR4", r.cr4, CR4_DEFINED),
            ("EFER", r.efer, EFER_GUEST),
            ("RFLAGS", r.rflags, RFLAGS_DEFINED | RFLAGS_ALWAYS_ONE),
        ] {
            let wrong = value & !defined;
            if wrong != 0 {
                return Err(ContextError::Reserved {
                    register,
                    value,
                    wrong,
                });
            }
        }
        for (register, value) in [
            ("RIP", r.rip),
            ("FS base", r.fs.base),
            ("GS base", r.gs.base),
            ("LDTR base", r.ldtr.base),
            ("TR base", r.tr.base),
            ("GDTR base", r.gdtr.base),
            ("IDTR base", r.idtr.base),
        ] {
            if !is_canonical(value) {
                return Err(ContextError::NotCanonical { register, value });
            }
        }
        check_mode(r)?;
        if !is_valid_pat(r.msr_cr_pat) {
            return Err(ContextError::Pat {
                value: r.msr_cr_pat,
            });
        }
        Ok(Self {
            registers,
            gprs: [0; 16],
            cr2: 0,
        })
    }

    /// Puts the context into a block.
    pub fn apply(&self, vmcb: &mut Vmcb) {
        let r = &self.registers;
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
        save.rax = self.gprs[gpr::RAX];
        save.cr2 = self.cr2;
        save.dr6 = DR6_AT_RESET;
        save.dr7 = DR7_AT_RESET;
        save.g_pat = r.msr_cr_pat;
    }
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

fn check_mode(r: &HvInitialVpContext) -> Result<(), ContextError> {
    let has = |value: u64, bit: u64| value & bit != 0;
    let check = |right, register, value, expected| match right {
        true => Ok(()),
        false => Err(ContextError::Mode {
            register,
            value,
            expected,
        }),
    };
    let long = has(r.efer, EFER_LME) && has(r.cr0, CR0_PG);
    let (pg, lma) = (has(r.cr0, CR0_PG), has(r.efer, EFER_LMA));
    let cs = r.cs.attributes;
    check(has(r.cr0, CR0_PE) || !pg, "CR0", r.cr0, "PE with PG")?;
    let cd_with_nw = has(r.cr0, CR0_CD) || !has(r.cr0, CR0_NW);
    check(cd_with_nw, "CR0", r.cr0, "CD with NW")?;
    check(lma == long, "EFER", r.efer, "LMA with LME and CR0.PG")?;
    check(has(r.cr4, CR4_PAE) || !long, "CR4", r.cr4, "PAE with LMA")?;
    let l_without_d = !(long && cs.long() && cs.default());
    let attributes = cs.into_bits().into();
    check(l_without_d, "CS attributes", attributes, "D clear with L")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::svm::vmcb;
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
        StartContext::new(linux_ap()).unwrap().apply(&mut vmcb);
        assert_eq!(vmcb.save.cs.attributes, 0xa9b);
        assert_eq!(vmcb.save.ss.attributes, 0xc93);
        assert_eq!(vmcb.save.efer, 0xd01 | EFER_SVME);
        assert_eq!(vmcb.save.gdtr.limit, 0x7f);
        assert_eq!(vmcb.save.cpl, 0);
        assert!(vmcb::is_64_bit(&vmcb.save));
    }

    #[test]
    fn what_belongs_to_the_host_is_refused() {
        let mut context = linux_ap();
        context.efer |= EFER_SVME;
        assert_eq!(
            StartContext::new(context).unwrap_err(),
            ContextError::Reserved {
                register: "EFER",
                value: 0x1d01,
                wrong: EFER_SVME
            }
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for change in [
            (|c| c.rip = 1 << 60) as fn(&mut HvInitialVpContext),
            |c| c.gdtr.base = 0x8000_0000_0000,
            |c| c.cr0 &= !CR0_PE,
            |c| c.cr4 = 0,
            |c| c.efer &= !EFER_LMA,
            |c| c.cs.attributes = 0xe09b.into(),
            |c| c.msr_cr_pat = 2,
            |c| c.cr3 = 1 << 52,
            |c| c.rflags = 1 << 17,
        ] {
            let mut context = linux_ap();
            change(&mut context);
            assert!(StartContext::new(context).is_err(), "{context:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_or_refused(bytes: [[u8; 32]; 7]) {
            let context = HvInitialVpContext::read_from_bytes(bytes.as_flattened()).unwrap();
            if let Ok(context) = StartContext::new(context) {
                let mut vmcb = vmcb::new(0, 0, 0, 1);
                context.apply(&mut vmcb);
                prop_assert_ne!(vmcb.save.efer & EFER_SVME, 0);
            }
        }
    }
}
