//! The x86-64 architecture, as far as this project touches it: numbers and layouts of
//! the AMD64 Architecture Programmer's Manual ("APM") that the `x86_64` crate does not
//! have, or that describe a guest and not the processor that the program runs on.
//!
//! Definitions only, declared once. Nothing here has behaviour beyond saying whether a
//! value is one that the architecture permits.

#![no_std]
#![forbid(unsafe_code)]

pub mod apic;
pub mod long_mode;
pub mod msr;
pub mod svm;

/// CR0.PE.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.AM.
pub const CR0_AM: u64 = 1 << 18;
/// CR0.ET; always one.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.NE.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.WP.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.NW.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR0: PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG.
pub const CR0_DEFINED: u64 = 0xe005_003f;

/// No processor has more than 52 bits of physical address.
pub const CR3_DEFINED: u64 = (1 << 52) - 1;

/// CR4.DE.
pub const CR4_DE: u64 = 1 << 3;
/// CR4.PSE.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.PGE.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4.PCIDE.
pub const CR4_PCIDE: u64 = 1 << 17;
/// CR4.LA57.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.SMEP.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4: VME to OSXMMEXCPT, UMIP, LA57, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE.
pub const CR4_DEFINED: u64 = 0x0077_1fff;

/// EFER.SCE.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER.LME.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE.
pub const EFER_NXE: u64 = 1 << 11;
/// EFER.SVME.
pub const EFER_SVME: u64 = 1 << 12;
/// EFER.FFXSR.
pub const EFER_FFXSR: u64 = 1 << 14;

/// RFLAGS.CF.
pub const RFLAGS_CF: u64 = 1 << 0;
/// RFLAGS.PF.
pub const RFLAGS_PF: u64 = 1 << 2;
/// RFLAGS.AF.
pub const RFLAGS_AF: u64 = 1 << 4;
/// RFLAGS.ZF.
pub const RFLAGS_ZF: u64 = 1 << 6;
/// RFLAGS.SF.
pub const RFLAGS_SF: u64 = 1 << 7;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.DF.
pub const RFLAGS_DF: u64 = 1 << 10;
/// RFLAGS.OF.
pub const RFLAGS_OF: u64 = 1 << 11;
/// RFLAGS.RF.
pub const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS.VM.
pub const RFLAGS_VM: u64 = 1 << 17;
/// RFLAGS.AC.
pub const RFLAGS_AC: u64 = 1 << 18;
/// RFLAGS bit 1.
pub const RFLAGS_ALWAYS_ONE: u64 = 1 << 1;
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS: all defined bits up to ID, except VM, which long mode does not have.
pub const RFLAGS_DEFINED: u64 = 0x003d_7fd7;

/// DR6.BS: a single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6 after reset: the bits that are always one.
pub const DR6_AT_RESET: u64 = 0xffff_0ff0;
/// Bits of DR7 by which the four breakpoints are on, two each.
pub const DR7_ENABLED: u64 = 0xff;
/// DR7 after reset: the bit that is always one.
pub const DR7_AT_RESET: u64 = 0x400;
/// IA32_PAT after reset.
pub const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// With 48-bit linear addresses.
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16) >> 16 == address as i64
}

/// Every byte is a memory type: UC, WC, WT, WP, WB or UC-.
pub fn is_valid_pat(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|memory_type| matches!(memory_type, 0 | 1 | 4..=7))
}
