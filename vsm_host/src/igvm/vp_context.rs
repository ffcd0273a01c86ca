//! The registers that VP 0 starts VTL2 with.

use super::error::Detail::{AtLeast, AtMost};
use super::error::{ImageError, Reason};
use super::header::{File, Header};
use super::scan::VTL2;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::vp_context::*;
use igvm_defs::{IGVM_VHS_VP_CONTEXT, VbsVpContextHeader, VbsVpContextRegister};
use zerocopy::FromBytes;

/// Every register that can be set fits in; it bounds the search for repeated ones.
const MAX_REGISTERS: u32 = 128;

const CR0_PE: u64 = 1 << 0;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_LA57: u64 = 1 << 12;
/// All bits of CR4 that the AMD64 manual defines.
const CR4_DEFINED: u64 = 0x00f7_1fff;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// SCE, LME, LMA, NXE and FFXSR. SVME is the host's.
const EFER_ALLOWED: u64 = 1 | EFER_LME | EFER_LMA | 1 << 11 | 1 << 14;
const RFLAGS_ALWAYS_ONE: u64 = 1 << 1;
/// All defined flags but VM: there is no virtual-8086 mode in 64-bit mode.
const RFLAGS_ALLOWED: u64 = 0x3f_ffff & !(1 << 17);

/// Registers of a VP at its first instruction. Those that the image does not name have
/// their value after reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialContext {
    /// All but the general purpose registers (RSP and RIP are here).
    pub state: HvInitialVpContext,
    /// General purpose registers by their number in instruction encodings: RAX, RCX, RDX,
    /// RBX, RSP, RBP, RSI, RDI, R8 to R15. RSP equals `state.rsp`.
    pub gprs: [u64; 16],
    /// CR2.
    pub cr2: u64,
    /// CR8.
    pub cr8: u64,
}

impl InitialContext {
    /// State after reset, as far as 64-bit mode has it.
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
        Self {
            state: HvInitialVpContext {
                rip: 0xfff0,
                rflags: RFLAGS_ALWAYS_ONE,
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
                cr0: CR0_CD | CR0_NW | 0x10,
                msr_cr_pat: 0x0007_0406_0007_0406,
                ..Default::default()
            },
            gprs: [0; 16],
            cr2: 0,
            cr8: 0,
        }
    }

    /// The place of a 64-bit register.
    fn slot(&mut self, name: Name) -> Option<&mut u64> {
        let state = &mut self.state;
        Some(match name {
            Name::RIP => &mut state.rip,
            Name::RFLAGS => &mut state.rflags,
            Name::CR0 => &mut state.cr0,
            Name::CR2 => &mut self.cr2,
            Name::CR3 => &mut state.cr3,
            Name::CR4 => &mut state.cr4,
            Name::CR8 => &mut self.cr8,
            Name::EFER => &mut state.efer,
            Name::PAT => &mut state.msr_cr_pat,
            Name(number) if (Name::RAX.0..=Name::R15.0).contains(&number) => {
                &mut self.gprs[(number - Name::RAX.0) as usize]
            }
            _ => return None,
        })
    }

    fn segment(&mut self, name: Name) -> Option<&mut HvX64SegmentRegister> {
        let state = &mut self.state;
        Some(match name {
            Name::ES => &mut state.es,
            Name::CS => &mut state.cs,
            Name::SS => &mut state.ss,
            Name::DS => &mut state.ds,
            Name::FS => &mut state.fs,
            Name::GS => &mut state.gs,
            Name::LDTR => &mut state.ldtr,
            Name::TR => &mut state.tr,
            _ => return None,
        })
    }

    fn table(&mut self, name: Name) -> Option<&mut HvX64TableRegister> {
        match name {
            Name::IDTR => Some(&mut self.state.idtr),
            Name::GDTR => Some(&mut self.state.gdtr),
            _ => None,
        }
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
    let (count, most) = (list.register_count, u64::from(MAX_REGISTERS));
    let right = u64::from(count) <= most;
    header.ensure(right, Reason::TooMany("registers"), count, AtMost(most))?;
    let count = count as usize;
    let (registers, _) = <[VbsVpContextRegister]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| truncated(count * size_of::<VbsVpContextRegister>()))?;
    let mut context = InitialContext::reset();
    let mut seen = [Name(0); MAX_REGISTERS as usize];
    for (index, register) in registers.iter().enumerate() {
        let name = Name(register.register_name.get());
        header.equal("VTL of a register", register.vtl.into(), VTL2.into())?;
        let zero = register.mbz == [0; 11];
        header.ensure(
            zero,
            Reason::Field("reserved field"),
            "other bytes",
            "zeros",
        )?;
        let first = !seen[..index].contains(&name);
        header.ensure(
            first,
            Reason::Register(name),
            "it twice",
            "every register once",
        )?;
        seen[index] = name;
        set(&mut context, header, name, register.register_value)?;
    }
    context.state.rsp = context.gprs[4];
    check(&mut context, header)?;
    Ok(context)
}

/// Sets one register.
fn set(
    context: &mut InitialContext,
    header: &Header<'_>,
    name: Name,
    value: [u8; 16],
) -> Result<(), ImageError> {
    if let Some(segment) = context.segment(name) {
        *segment = zerocopy::transmute!(value);
        return Ok(());
    }
    if let Some(table) = context.table(name) {
        *table = zerocopy::transmute!(value);
        return Ok(());
    }
    let [low, high]: [u64; 2] = zerocopy::transmute!(value);
    header.ensure(high == 0, Reason::Register(name), high, "64 bits")?;
    if let Some(slot) = context.slot(name) {
        *slot = low;
        return Ok(());
    }
    // Memory types under nested paging come from the nested page tables and from PAT; the
    // processor's MTRRs stay as the firmware set them for the whole machine.
    let ignored = (Name::MTRR_DEF_TYPE.0..=Name::MTRR_LAST.0).contains(&name.0);
    let expected = "a general purpose, control, segment, table or MTRR register";
    header.ensure(ignored, Reason::Register(name), low, expected)
}

/// Makes sure that the processor will accept the state, and that it is 64-bit mode.
fn check(context: &mut InitialContext, header: &Header<'_>) -> Result<(), ImageError> {
    let state = &mut context.state;
    let needs = |name, n: u64, bits: u64, expected: &'static str| {
        header.ensure(n & bits == bits, Reason::Register(name), n, expected)
    };
    let allows = |name, n: u64, bits: u64| {
        let expected = "no bit that is reserved or the host's";
        header.ensure(n & !bits == 0, Reason::Register(name), n, expected)
    };
    needs(Name::CR0, state.cr0, CR0_PE | CR0_PG, "PE and PG set")?;
    needs(Name::CR4, state.cr4, CR4_PAE, "PAE set (64-bit mode)")?;
    needs(Name::EFER, state.efer, EFER_LME, "LME set (64-bit mode)")?;
    allows(Name::CR0, state.cr0, u32::MAX.into())?;
    allows(Name::CR4, state.cr4, CR4_DEFINED)?;
    allows(Name::EFER, state.efer, EFER_ALLOWED)?;
    if state.cr0 & CR0_NW != 0 {
        needs(Name::CR0, state.cr0, CR0_CD, "CD set where NW is")?;
    }
    allows(Name::RFLAGS, state.rflags, RFLAGS_ALLOWED)?;
    allows(Name::CR8, context.cr8, 0xf)?;
    let cs = state.cs.attributes;
    let (right, n) = (cs.long() && !cs.default(), u32::from(cs.into_bits()));
    let expected = "a 64-bit code segment (L set, D clear)";
    header.ensure(right, Reason::Register(Name::CS), n, expected)?;
    state.efer |= EFER_LMA;
    state.rflags |= RFLAGS_ALWAYS_ONE;
    Ok(())
}
