//! The registers that VP 0 starts with.

use super::error::Detail::AtLeast;
use super::error::{ImageError, Reason};
use super::header::{File, Header};
use crate::start_context::Gprs;

use hv_defs::registers::HvRegisterName as Name;
use hv_defs::vp_context::*;
use igvm_defs::{IGVM_VHS_VP_CONTEXT, VbsVpContextHeader, VbsVpContextRegister};
use zerocopy::FromBytes;

/// Registers of a VP at its first instruction. Those that the image does not name have
/// their value after reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitialContext {
    /// All but the general purpose registers (RSP and RIP are here).
    pub(crate) state: HvInitialVpContext,
    /// General purpose registers by their number in instruction encodings; RSP equals
    /// `state.rsp`.
    pub(crate) gprs: Gprs,
    /// CR2.
    pub(crate) cr2: u64,
}

impl InitialContext {
    pub(crate) fn reset() -> Self {
        let segment = |attributes, selector, base| HvX64SegmentRegister {
            base,
            limit: 0xffff,
            selector,
            attributes: SegmentAttributes::from_bits(attributes),
        };
        let data = segment(0x93, 0, 0);
        let table = HvX64TableRegister {
            limit: 0xffff,
            ..Default::default()
        };
        let state = HvInitialVpContext {
            rip: 0xfff0,
            rflags: x86_defs::RFLAGS_ALWAYS_ONE,
            cs: segment(0x9b, 0xf000, 0xffff_0000),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: segment(0x8b, 0, 0),
            ldtr: segment(0x82, 0, 0),
            idtr: table,
            gdtr: table,
            cr0: 0x6000_0010,
            msr_cr_pat: x86_defs::PAT_AT_RESET,
            ..Default::default()
        };
        Self {
            state,
            gprs: [0; 16],
            cr2: 0,
        }
    }

    /// Sets a register, if there is one of this name.
    fn set(&mut self, name: Name, value: [u8; 16]) -> bool {
        let segment: HvX64SegmentRegister = zerocopy::transmute!(value);
        let table: HvX64TableRegister = zerocopy::transmute!(value);
        let [low, _]: [u64; 2] = zerocopy::transmute!(value);
        let state = &mut self.state;
        match name {
            Name::ES => state.es = segment,
            Name::CS => state.cs = segment,
            Name::SS => state.ss = segment,
            Name::DS => state.ds = segment,
            Name::FS => state.fs = segment,
            Name::GS => state.gs = segment,
            Name::LDTR => state.ldtr = segment,
            Name::TR => state.tr = segment,
            Name::IDTR => state.idtr = table,
            Name::GDTR => state.gdtr = table,
            Name::RIP => state.rip = low,
            Name::RFLAGS => state.rflags = low,
            Name::CR0 => state.cr0 = low,
            Name::CR2 => self.cr2 = low,
            Name::CR3 => state.cr3 = low,
            Name::CR4 => state.cr4 = low,
            Name::EFER => state.efer = low,
            Name::PAT => state.msr_cr_pat = low,
            Name(n) if (Name::RAX.0..=Name::R15.0).contains(&n) => {
                self.gprs[(n - Name::RAX.0) as usize] = low;
            }
            // Memory types under nested paging come from the nested page tables and from
            // PAT; the MTRRs stay as the firmware set them for the whole machine.
            Name(n) => return (Name::MTRR_DEF_TYPE.0..=Name::MTRR_LAST.0).contains(&n),
        }
        true
    }
}

/// Reads and checks the register list of a VP context directive.
pub(crate) fn parse(
    file: &File<'_>,
    header: &Header<'_>,
    directive: &IGVM_VHS_VP_CONTEXT,
    vtl: u8,
) -> Result<InitialContext, ImageError> {
    header.equal("VP index", directive.vp_index.into(), 0)?;
    header.reserved(directive.reserved.into())?;
    header.equal("GPA", directive.gpa.get(), 0)?;
    let data = file.data(header, directive.file_offset, None)?;
    let length = data.len() as u64;
    let truncated = |n: usize| Reason::FileData.at(header.place, length, AtLeast(n as u64));
    let (list, rest) = VbsVpContextHeader::read_from_prefix(data)
        .map_err(|_| truncated(size_of::<VbsVpContextHeader>()))?;
    let count = list.register_count as usize;
    let (registers, _) = <[VbsVpContextRegister]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| truncated(count.saturating_mul(size_of::<VbsVpContextRegister>())))?;
    let mut context = InitialContext::reset();
    for register in registers {
        let name = Name(register.register_name.get());
        header.equal("VTL of a register", register.vtl.into(), vtl.into())?;
        header.reserved(register.mbz.iter().map(|byte| u64::from(*byte)).sum())?;
        let expected = "a general purpose, control, segment, table or MTRR register";
        let known = context.set(name, register.register_value);
        header.ensure(known, Reason::Register(name), "it", expected)?;
    }
    context.state.rsp = context.gprs[4];
    Ok(context)
}

#[cfg(test)]
pub(crate) mod tests;
