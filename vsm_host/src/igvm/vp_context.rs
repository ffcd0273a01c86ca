//! The registers that VP 0 starts VTL2 with.

use super::error::Detail::AtLeast;
use super::error::{ImageError, Reason};
use super::header::{File, Header};
use super::scan::VTL2;
use crate::partition::Gprs;
use crate::svm::context::PAT_AT_RESET;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::vp_context::*;
use igvm_defs::{IGVM_VHS_VP_CONTEXT, VbsVpContextHeader, VbsVpContextRegister};
use zerocopy::FromBytes;

/// Registers of a VP at its first instruction. Those that the image does not name have
/// their value after reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialContext {
    /// All but the general purpose registers (RSP and RIP are here).
    pub state: HvInitialVpContext,
    /// General purpose registers by their number in instruction encodings; RSP equals
    /// `state.rsp`.
    pub gprs: Gprs,
    /// CR2.
    pub cr2: u64,
}

impl InitialContext {
    fn reset() -> Self {
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
            rflags: 2,
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
            msr_cr_pat: PAT_AT_RESET,
            ..Default::default()
        };
        Self {
            state,
            gprs: [0; 16],
            cr2: 0,
        }
    }

    /// Sets a register if there is one of this name.
    fn set(&mut self, name: Name, value: [u8; 16]) -> Option<()> {
        let state = &mut self.state;
        let segment = match name {
            Name::ES => Some(&mut state.es),
            Name::CS => Some(&mut state.cs),
            Name::SS => Some(&mut state.ss),
            Name::DS => Some(&mut state.ds),
            Name::FS => Some(&mut state.fs),
            Name::GS => Some(&mut state.gs),
            Name::LDTR => Some(&mut state.ldtr),
            Name::TR => Some(&mut state.tr),
            _ => None,
        };
        if let Some(segment) = segment {
            *segment = zerocopy::transmute!(value);
            return Some(());
        }
        let [low, _]: [u64; 2] = zerocopy::transmute!(value);
        *match name {
            Name::IDTR => return Some(state.idtr = zerocopy::transmute!(value)),
            Name::GDTR => return Some(state.gdtr = zerocopy::transmute!(value)),
            Name::RIP => &mut state.rip,
            Name::RFLAGS => &mut state.rflags,
            Name::CR0 => &mut state.cr0,
            Name::CR2 => &mut self.cr2,
            Name::CR3 => &mut state.cr3,
            Name::CR4 => &mut state.cr4,
            Name::EFER => &mut state.efer,
            Name::PAT => &mut state.msr_cr_pat,
            Name(n) if (Name::RAX.0..=Name::R15.0).contains(&n) => {
                &mut self.gprs[(n - Name::RAX.0) as usize]
            }
            // Memory types under nested paging come from the nested page tables and from
            // PAT; the MTRRs stay as the firmware set them for the whole machine.
            Name(n) if (Name::MTRR_DEF_TYPE.0..=Name::MTRR_LAST.0).contains(&n) => return Some(()),
            _ => return None,
        } = low;
        Some(())
    }
}

/// Reads and checks the register list of a VP context directive.
pub(crate) fn parse(
    file: &File<'_>,
    header: &Header<'_>,
    directive: &IGVM_VHS_VP_CONTEXT,
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
        header.equal("VTL of a register", register.vtl.into(), VTL2.into())?;
        header.reserved(register.mbz.iter().map(|byte| u64::from(*byte)).sum())?;
        let expected = "a general purpose, control, segment, table or MTRR register";
        let known = context.set(name, register.register_value).is_some();
        header.ensure(known, Reason::Register(name), "it", expected)?;
    }
    context.state.rsp = context.gprs[4];
    Ok(context)
}
