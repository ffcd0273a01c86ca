//! How the processor reads code: the three operating modes that matter to an instruction.

use crate::{Cpu, SegmentName};
use hv_defs::vp_context::SegmentAttributes;
use x86_defs::EFER_LMA;

/// Default operand and address size of the code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Bits16,
    Bits32,
    Bits64,
}

impl Mode {
    pub(crate) fn of<C: Cpu>(cpu: &mut C) -> Self {
        let code = SegmentAttributes::from_bits(cpu.segment(SegmentName::Cs).attributes);
        match (cpu.efer() & EFER_LMA != 0 && code.long(), code.default()) {
            (true, _) => Self::Bits64,
            (false, true) => Self::Bits32,
            (false, false) => Self::Bits16,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// What an instruction pointer has room for.
    pub(crate) fn rip_mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
}
