//! What can stop an emulation.

use crate::MAX_INSTRUCTION;
use arrayvec::ArrayVec;
use std::fmt;
use thiserror::Error;
use x86_defs::CR0_PE;

/// An exception of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// What the processor would push; nothing in real mode.
    pub error_code: Option<u32>,
    /// The linear address of a page fault, for CR2.
    pub address: Option<u64>,
}

impl Exception {
    /// Vector of #UD.
    pub const INVALID_OPCODE: u8 = 6;
    /// Vector of #SS.
    pub const STACK: u8 = 12;
    /// Vector of #GP.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// Vector of #PF.
    pub const PAGE_FAULT: u8 = 14;

    /// #GP or #SS with error code 0, which real mode does not have.
    pub(crate) fn segment(stack: bool, cr0: u64) -> Self {
        Self {
            vector: if stack {
                Self::STACK
            } else {
                Self::GENERAL_PROTECTION
            },
            error_code: (cr0 & CR0_PE != 0).then_some(0),
            address: None,
        }
    }

    pub(crate) fn page_fault(error_code: u32, address: u64) -> Self {
        Self {
            vector: Self::PAGE_FAULT,
            error_code: Some(error_code),
            address: Some(address),
        }
    }
}

/// Why an instruction was not emulated. The VM cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EmulateError<E> {
    /// The emulator does not do this.
    #[error("{0}")]
    Unsupported(Box<Unsupported>),
    /// The caller's own error.
    #[error("memory or device access of an emulated instruction: {0}")]
    Cpu(E),
}

/// An instruction that is not emulated: all that a report needs, beside the registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Where it is.
    pub rip: u64,
    /// What the code segment decodes as: 16, 32 or 64 bits.
    pub bits: u32,
    /// The bytes that are known; of the instruction alone, if it decodes.
    pub bytes: ArrayVec<u8, MAX_INSTRUCTION>,
    /// Its name, if it decodes.
    pub mnemonic: Option<String>,
    /// Why not.
    pub reason: Reason,
}

/// Why an instruction is not emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// The bytes are no instruction that the decoder knows.
    #[error("not an instruction that the decoder knows (AVX is none)")]
    Undecodable,
    /// The instruction is not among those that are emulated.
    #[error("this form of the instruction is not emulated")]
    Instruction,
    /// The instruction lies in a device's registers.
    #[error("the instruction lies at guest-physical address {0:#x}, where there is no memory")]
    CodeOutsideMemory(u64),
    /// A page table lies in a device's registers.
    #[error("a page table lies at guest-physical address {0:#x}, where there is no memory")]
    TableOutsideMemory(u64),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot emulate the guest's {}-bit instruction ",
            self.bits
        )?;
        if let Some(mnemonic) = &self.mnemonic {
            write!(f, "{mnemonic} ")?;
        }
        write!(f, "at RIP {:#x} (bytes", self.rip)?;
        for byte in &self.bytes {
            write!(f, " {byte:02x}")?;
        }
        write!(f, "): {}", self.reason)
    }
}

impl std::error::Error for Unsupported {}

/// Ends an emulation early, inside the crate.
#[derive(Debug)]
pub(crate) enum Stop<E> {
    Exception(Exception),
    Unsupported(Reason),
    Retry,
    Cpu(E),
}

pub(crate) type Step<T, E> = Result<T, Stop<E>>;
