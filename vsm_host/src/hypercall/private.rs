//! Processor state of a lower VTL: what is in its control block while another VTL runs.
//!
//! Each value is checked when it is written, by the rules of the processor that concern
//! this register alone. Rules between registers (paging and long mode, code segment and
//! mode) cannot hold between two writes; they are for whoever enters the VTL.
//!
//! General-purpose registers, CR2 and the debug addresses are shared by all VTLs of a VP
//! (TLFS "Virtual Secure Mode"): the caller has them in its processor. Of these, CR2 is
//! offered here too, since software sets it with the others; the debug addresses are state
//! of the host's ([`super::guest`]), which may have put them aside.

use crate::partition::Vp;
use crate::svm::{context, vmcb};
use crate::vtl::Vtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::vp_context::{HvX64SegmentRegister, HvX64TableRegister, SegmentAttributes};
use igvm_loader::EFER_GUEST;
use x86_defs::svm::{Save, Segment};
use x86_defs::{
    CR0_CD, CR0_DEFINED, CR0_NW, CR0_PE, CR0_PG, CR3_DEFINED, CR4_DEFINED, EFER_SVME,
    RFLAGS_ALWAYS_ONE, RFLAGS_DEFINED, is_canonical, is_valid_pat,
};

const LOW_32: u64 = 0xffff_ffff;
/// CR8 has four bits, which are the virtual task priority of the block.
const CR8_DEFINED: u64 = 0xf;

/// Whether a register is such state.
pub(super) fn is(name: Name) -> bool {
    const CR0: u32 = Name::CR0.0;
    const CR8: u32 = Name::CR8.0;
    const PAT: u32 = Name::PAT.0;
    const SFMASK: u32 = Name::SFMASK.0;
    is_segment(name)
        || is_table(name)
        || matches!(
            name,
            Name::RSP
                | Name::RIP
                | Name::RFLAGS
                | Name(CR0..=CR8)
                | Name::DR6
                | Name::DR7
                | Name::EFER
                | Name::KERNEL_GS_BASE
                | Name(PAT..=SFMASK)
        )
}

/// Reads a register of `vtl`.
pub(super) fn read(vp: &mut Vp, vtl: Vtl, name: Name) -> Option<u128> {
    let vmcb = &mut vp.vtls[vtl.index()].vmcb;
    let save = &mut vmcb.save;
    let stack = context::stack_segment(save);
    if let Some(segment) = segment_of(save, name) {
        let segment = if name == Name::SS { &stack } else { segment };
        let Segment { base, limit, .. } = *segment;
        return Some(if is_table(name) {
            zerocopy::transmute!(HvX64TableRegister {
                pad: [0; 3],
                limit: limit as u16,
                base,
            })
        } else {
            zerocopy::transmute!(HvX64SegmentRegister {
                base,
                limit,
                selector: segment.selector,
                attributes: SegmentAttributes::from_vmcb(segment.attributes),
            })
        });
    }
    let value = match name {
        Name::CR2 => vp.vmcb().save.cr2,
        Name::CR8 => vmcb.control.virtual_interrupt.tpr().into(),
        Name::EFER => save.efer & !EFER_SVME,
        _ => *word_of(save, name)?,
    };
    Some(value.into())
}

/// Writes a register of `vtl`; `None` if there is no such register.
pub(super) fn write(
    vp: &mut Vp,
    vtl: Vtl,
    name: Name,
    value: [u64; 2],
) -> Option<Result<(), HvStatus>> {
    let written = if is_segment(name) || is_table(name) {
        write_segment(vp, vtl, name, value)
    } else {
        write_word(vp, vtl, name, value)
    };
    // A register that is one can only have a bad value.
    is(name).then(|| written.ok_or(HvStatus::INVALID_REGISTER_VALUE))
}

fn write_word(vp: &mut Vp, vtl: Vtl, name: Name, value: [u64; 2]) -> Option<()> {
    let [value, 0] = value else {
        return None;
    };
    if !is_valid(name, value) {
        return None;
    }
    if name == Name::CR2 {
        vp.vmcb_mut().save.cr2 = value;
        return Some(());
    }
    let block = &mut vp.vtls[vtl.index()].vmcb;
    if name == Name::CR8 {
        // It has four bits.
        block.control.virtual_interrupt.set_tpr(value as u8);
        return Some(());
    }
    *word_of(&mut block.save, name)? = match name {
        // VMRUN insists on it.
        Name::EFER => value | EFER_SVME,
        Name::RFLAGS => value | RFLAGS_ALWAYS_ONE,
        _ => value,
    };
    // Nobody has executed a MOV that forgets what the old value led to.
    if matches!(name, Name::CR0 | Name::CR3 | Name::CR4 | Name::EFER) {
        vmcb::flush(block);
    }
    Some(())
}

/// Whether the processor takes this value whatever the other registers hold.
fn is_valid(name: Name, value: u64) -> bool {
    let only = |defined: u64| value & !defined == 0;
    let implies = |bit: u64, other: u64| value & bit == 0 || value & other != 0;
    match name {
        Name::CR0 => only(CR0_DEFINED) && implies(CR0_PG, CR0_PE) && implies(CR0_NW, CR0_CD),
        Name::CR3 => only(CR3_DEFINED),
        Name::CR4 => only(CR4_DEFINED),
        Name::CR8 => only(CR8_DEFINED),
        Name::EFER => only(EFER_GUEST),
        Name::RFLAGS => only(RFLAGS_DEFINED | RFLAGS_ALWAYS_ONE),
        Name::DR6 | Name::DR7 | Name::SFMASK | Name::SYSENTER_CS => only(LOW_32),
        Name::PAT => is_valid_pat(value),
        Name::RIP
        | Name::LSTAR
        | Name::CSTAR
        | Name::KERNEL_GS_BASE
        | Name::SYSENTER_EIP
        | Name::SYSENTER_ESP => is_canonical(value),
        _ => true,
    }
}

fn write_segment(vp: &mut Vp, vtl: Vtl, name: Name, value: [u64; 2]) -> Option<()> {
    let new = if is_table(name) {
        let register: HvX64TableRegister = zerocopy::transmute!(value);
        let valid = register.pad == [0; 3] && is_canonical(register.base);
        valid.then(|| context::table(&register))?
    } else {
        let register: HvX64SegmentRegister = zerocopy::transmute!(value);
        let attributes = register.attributes;
        let base_fits = match name {
            // Their bases have 32 bits.
            Name::ES | Name::CS | Name::SS | Name::DS => register.base <= LOW_32,
            _ => is_canonical(register.base),
        };
        let known = SegmentAttributes::from_vmcb(attributes.to_vmcb()) == attributes;
        let one_size = name != Name::CS || !(attributes.long() && attributes.default());
        (base_fits && known && one_size).then(|| context::segment(&register))?
    };
    let save = &mut vp.vtls[vtl.index()].vmcb.save;
    if name == Name::SS {
        // SVM keeps the privilege level apart; the TLFS has it in SS.
        save.cpl = (new.attributes >> 5 & 3) as u8;
    }
    *segment_of(save, name)? = new;
    Some(())
}

const fn is_table(name: Name) -> bool {
    matches!(name, Name::IDTR | Name::GDTR)
}

fn is_segment(name: Name) -> bool {
    (Name::ES.0..=Name::TR.0).contains(&name.0)
}

fn segment_of(save: &mut Save, name: Name) -> Option<&mut Segment> {
    Some(match name {
        Name::ES => &mut save.es,
        Name::CS => &mut save.cs,
        Name::SS => &mut save.ss,
        Name::DS => &mut save.ds,
        Name::FS => &mut save.fs,
        Name::GS => &mut save.gs,
        Name::LDTR => &mut save.ldtr,
        Name::TR => &mut save.tr,
        Name::IDTR => &mut save.idtr,
        Name::GDTR => &mut save.gdtr,
        _ => return None,
    })
}

fn word_of(save: &mut Save, name: Name) -> Option<&mut u64> {
    Some(match name {
        Name::RIP => &mut save.rip,
        Name::RSP => &mut save.rsp,
        Name::RFLAGS => &mut save.rflags,
        Name::CR0 => &mut save.cr0,
        Name::CR3 => &mut save.cr3,
        Name::CR4 => &mut save.cr4,
        Name::DR6 => &mut save.dr6,
        Name::DR7 => &mut save.dr7,
        Name::EFER => &mut save.efer,
        Name::KERNEL_GS_BASE => &mut save.kernel_gs_base,
        Name::PAT => &mut save.g_pat,
        Name::SYSENTER_CS => &mut save.sysenter_cs,
        Name::SYSENTER_EIP => &mut save.sysenter_eip,
        Name::SYSENTER_ESP => &mut save.sysenter_esp,
        Name::STAR => &mut save.star,
        Name::LSTAR => &mut save.lstar,
        Name::CSTAR => &mut save.cstar,
        Name::SFMASK => &mut save.sfmask,
        _ => return None,
    })
}
