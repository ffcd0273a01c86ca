//! Where a VP begins (TLFS `HV_INITIAL_VP_CONTEXT`), checked.
//!
//! A context comes from the image or from VTL2. Processors refuse to run a guest with
//! some bad values and misbehave with others, so everything is checked here, with a reason
//! that can be shown.

use crate::vp_context::InitialContext;
use hv_defs::vp_context::HvInitialVpContext;
use thiserror::Error;
use x86_defs::{
    CR0_CD, CR0_DEFINED, CR0_NW, CR0_PE, CR0_PG, CR3_DEFINED, CR4_DEFINED, CR4_PAE, EFER_FFXSR,
    EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, RFLAGS_ALWAYS_ONE, RFLAGS_DEFINED, is_canonical,
    is_valid_pat,
};

/// General-purpose registers by their number in instruction encodings.
pub type Gprs = [u64; 16];

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

/// Where a VP begins: a checked context, and the registers that the TLFS does not have in
/// it, of which an IGVM file sets some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartContext {
    pub(crate) state: HvInitialVpContext,
    /// General-purpose registers by their number; RSP is in the context.
    pub gprs: Gprs,
    /// CR2.
    pub cr2: u64,
}

impl StartContext {
    /// Checks a context.
    pub fn new(state: HvInitialVpContext) -> Result<Self, ContextError> {
        let r = &state;
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
            state,
            gprs: [0; 16],
            cr2: 0,
        })
    }

    /// Where a processor begins after a reset.
    pub fn at_reset() -> Self {
        let InitialContext { state, gprs, cr2 } = InitialContext::reset();
        Self { state, gprs, cr2 }
    }

    /// All registers but those below.
    pub fn state(&self) -> &HvInitialVpContext {
        &self.state
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
mod tests {
    use super::*;
    use crate::vp_context::tests::long_mode;
    use proptest::prelude::*;
    use x86_defs::EFER_SVME;
    use zerocopy::FromBytes;

    #[test]
    fn what_belongs_to_the_host_is_refused() {
        let mut context = long_mode();
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
    fn a_reset_leads_to_a_context_that_is_accepted() {
        let reset = StartContext::at_reset();
        assert_eq!(StartContext::new(reset.state), Ok(reset));
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
            let mut context = long_mode();
            change(&mut context);
            assert!(StartContext::new(context).is_err(), "{context:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_or_refused(bytes: [[u8; 32]; 7]) {
            let context = HvInitialVpContext::read_from_bytes(bytes.as_flattened()).unwrap();
            let _ = StartContext::new(context);
        }
    }
}
