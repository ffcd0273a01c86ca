//! Whether the registers of a guest agree with each other.
//!
//! VTL2 sets the guest's registers one by one, and each value is fine for itself. VMRUN
//! refuses some combinations (APM 15.5.1, "Canonicalization and Consistency Checks"), but
//! emulators do not look at all of them, and run something else instead.

use hv_defs::registers::HvRegisterName as Name;
use x86_defs::svm::{Save, Segment};
use x86_defs::{CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME, RFLAGS_VM};

/// Attributes of CS in a control block: 64-bit code, 32-bit code.
const CS_LONG: u16 = 1 << 9;
const CS_DEFAULT: u16 = 1 << 10;

/// Brings EFER.LMA, which follows from other registers, up to date; names a register that
/// contradicts others, if there is one.
pub fn make_consistent(save: &mut Save) -> Result<(), Name> {
    let paging = save.cr0 & CR0_PG != 0;
    let protected = save.cr0 & CR0_PE != 0;
    let long = paging && save.efer & EFER_LME != 0;
    let virtual_8086 = save.rflags & RFLAGS_VM != 0;
    let require = |condition: bool, name| if condition { Ok(()) } else { Err(name) };

    require(protected || !paging, Name::CR0)?;
    require(save.cr0 & CR0_NW == 0 || save.cr0 & CR0_CD != 0, Name::CR0)?;
    require(!long || save.cr4 & CR4_PAE != 0, Name::CR4)?;
    require(long || save.cr4 & CR4_PCIDE == 0, Name::CR4)?;
    require(
        !virtual_8086 || protected && !long && save.cpl == 3,
        Name::RFLAGS,
    )?;
    require(protected || save.cpl == 0, Name::SS)?;
    let Segment { attributes, .. } = save.cs;
    let both = CS_LONG | CS_DEFAULT;
    require(!long || attributes & both != both, Name::CS)?;
    save.efer = if long {
        save.efer | EFER_LMA
    } else {
        save.efer & !EFER_LMA
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use x86_defs::svm::Vmcb;
    use zerocopy::FromZeros;

    fn real_mode() -> Box<Vmcb> {
        Box::new(Vmcb::new_zeroed())
    }

    fn long_mode() -> Box<Vmcb> {
        let mut vmcb = real_mode();
        vmcb.save.cr0 = CR0_PE | CR0_PG;
        vmcb.save.cr4 = CR4_PAE;
        vmcb.save.efer = EFER_LME;
        vmcb.save.cs.attributes = CS_LONG;
        vmcb
    }

    #[test]
    fn long_mode_follows_from_paging() {
        let mut vmcb = long_mode();
        assert_eq!(make_consistent(&mut vmcb.save), Ok(()));
        assert_eq!(vmcb.save.efer, EFER_LME | EFER_LMA);
        vmcb.save.cr0 = CR0_PE;
        assert_eq!(make_consistent(&mut vmcb.save), Ok(()));
        assert_eq!(vmcb.save.efer, EFER_LME);
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = |change: fn(&mut Save), name| {
            let mut vmcb = long_mode();
            change(&mut vmcb.save);
            assert_eq!(make_consistent(&mut vmcb.save), Err(name));
        };
        wrong(|s| s.cr0 = CR0_PG, Name::CR0);
        wrong(|s| s.cr0 |= CR0_NW, Name::CR0);
        wrong(|s| s.cr4 = 0, Name::CR4);
        wrong(|s| s.rflags = RFLAGS_VM, Name::RFLAGS);
        wrong(|s| s.cs.attributes |= CS_DEFAULT, Name::CS);
        wrong(
            |s| {
                s.cr0 = CR0_PE;
                s.cr4 |= CR4_PCIDE;
            },
            Name::CR4,
        );
        let mut vmcb = real_mode();
        vmcb.save.cpl = 3;
        assert_eq!(make_consistent(&mut vmcb.save), Err(Name::SS));
    }

    proptest! {
        #[test]
        fn what_passes_once_passes_again(
            cr0: u64, cr4: u64, efer: u64, rflags: u64, cpl in 0u8..4, attributes: u16,
        ) {
            let mut vmcb = real_mode();
            let save = &mut vmcb.save;
            (save.cr0, save.cr4, save.efer, save.rflags) = (cr0, cr4, efer, rflags);
            save.cpl = cpl;
            save.cs.attributes = attributes;
            if make_consistent(save).is_ok() {
                let efer = save.efer;
                prop_assert_eq!(make_consistent(save), Ok(()));
                prop_assert_eq!(save.efer, efer);
            }
        }
    }
}
