//! Moves of SSE: what a memcpy that was compiled without regard to devices does to them.

use crate::error::{Exception, Reason, Step, Stop};
use crate::execute::Emulator;
use crate::operand::{self, Operand};
use crate::{Access, Cpu};
use iced_x86::{Mnemonic, OpKind};

/// The part of the register that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lanes {
    /// All; the address is aligned or not.
    All { aligned: bool },
    /// So many low bytes; a load clears the others.
    Low(usize),
    /// The low half; a load keeps the other.
    LowHalf,
    /// The high half; a load keeps the other.
    HighHalf,
}

impl<C: Cpu> Emulator<'_, C> {
    /// A move between an XMM register and memory.
    pub(crate) fn vector_move(&mut self) -> Step<(), C::Error> {
        let unsupported = || Stop::Unsupported(Reason::Instruction);
        let lanes = lanes(self.instruction.mnemonic()).ok_or_else(unsupported)?;
        let memory = (0..2)
            .find(|index| self.instruction.op_kind(*index) == OpKind::Memory)
            .ok_or_else(unsupported)?;
        let register =
            operand::xmm(self.instruction.op_register(1 - memory)).ok_or_else(unsupported)?;
        let Operand::Memory(address) = self.operand(memory)? else {
            return Err(unsupported());
        };
        let (at, length) = match lanes {
            Lanes::All { .. } => (0, 16),
            Lanes::Low(length) => (0, length),
            Lanes::LowHalf => (0, 8),
            Lanes::HighHalf => (8, 8),
        };
        if lanes == (Lanes::All { aligned: true }) && !address.offset.is_multiple_of(16) {
            let cr0 = self.cpu.cr0();
            return Err(Stop::Exception(Exception::segment(false, cr0)));
        }
        let old = self.cpu.xmm(register).to_le_bytes();
        if memory == 0 {
            let place = self.place(address, length, Access::Write)?;
            return self.store_bytes(&place, &old[at..at + length]);
        }
        let mut new = match lanes {
            Lanes::LowHalf | Lanes::HighHalf => old,
            Lanes::All { .. } | Lanes::Low(_) => [0; 16],
        };
        let place = self.place(address, length, Access::Read)?;
        self.load_bytes(&place, &mut new[at..at + length])?;
        self.cpu.set_xmm(register, u128::from_le_bytes(new));
        Ok(())
    }
}

fn lanes(mnemonic: Mnemonic) -> Option<Lanes> {
    Some(match mnemonic {
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movdqa
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdq
        | Mnemonic::Movntdqa => Lanes::All { aligned: true },
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => {
            Lanes::All { aligned: false }
        }
        Mnemonic::Movd | Mnemonic::Movss => Lanes::Low(4),
        Mnemonic::Movq | Mnemonic::Movsd => Lanes::Low(8),
        Mnemonic::Movlps | Mnemonic::Movlpd => Lanes::LowHalf,
        Mnemonic::Movhps | Mnemonic::Movhpd => Lanes::HighHalf,
        _ => return None,
    })
}
