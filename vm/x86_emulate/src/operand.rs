//! The operands of an instruction: registers, memory, constants.

use crate::address::{self, Address};
use crate::error::{Reason, Step, Stop};
use crate::execute::Emulator;
use crate::{Access, Cpu, Gpr, SegmentName, Width};
use iced_x86::{MemorySize, OpKind, Register};

/// A general register, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) register: Gpr,
    pub(crate) width: Width,
    /// AH, CH, DH, BH.
    high: bool,
}

/// What an operand is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operand {
    Register(Part),
    Segment(SegmentName),
    Memory(Address),
    Constant(u64),
}

/// The general register that the decoder names.
pub(crate) fn general(register: Register) -> Option<Part> {
    let number = register as usize;
    let class = |first: Register, last: Register| {
        (first as usize..=last as usize)
            .contains(&number)
            .then(|| number - first as usize)
    };
    let (index, width, high) = if let Some(index) = class(Register::AL, Register::BL) {
        (index, Width::Byte, false)
    } else if let Some(index) = class(Register::AH, Register::BH) {
        (index, Width::Byte, true)
    } else if let Some(index) = class(Register::SPL, Register::R15L) {
        (index + 4, Width::Byte, false)
    } else if let Some(index) = class(Register::AX, Register::R15W) {
        (index, Width::Word, false)
    } else if let Some(index) = class(Register::EAX, Register::R15D) {
        (index, Width::Dword, false)
    } else {
        (class(Register::RAX, Register::R15)?, Width::Qword, false)
    };
    Some(Part {
        register: *Gpr::ALL.get(index)?,
        width,
        high,
    })
}

/// The number of an XMM register that every processor has.
pub(crate) fn xmm(register: Register) -> Option<u8> {
    let number = (register as usize).checked_sub(Register::XMM0 as usize)?;
    u8::try_from(number).ok().filter(|number| *number < 16)
}

impl<C: Cpu> Emulator<'_, C> {
    /// What the operand is, if it is of a kind that general instructions have.
    pub(crate) fn operand(&mut self, index: u32) -> Step<Operand, C::Error> {
        let register = self.instruction.op_register(index);
        match self.instruction.op_kind(index) {
            OpKind::Register => general(register)
                .map(Operand::Register)
                .or_else(|| {
                    (Register::ES as usize..=Register::GS as usize)
                        .contains(&(register as usize))
                        .then(|| Operand::Segment(address::segment_name(register)))
                })
                .ok_or(Stop::Unsupported(Reason::Instruction)),
            OpKind::Memory => Ok(Operand::Memory(address::effective(
                self.cpu,
                &self.instruction,
            ))),
            _ => self
                .instruction
                .try_immediate(index)
                .map(Operand::Constant)
                .map_err(|_| Stop::Unsupported(Reason::Instruction)),
        }
    }

    /// The width of a register or memory operand.
    pub(crate) fn width(&self, index: u32) -> Step<Width, C::Error> {
        let width = match self.instruction.op_kind(index) {
            OpKind::Register => {
                let register = self.instruction.op_register(index);
                general(register).map(|part| part.width)
            }
            OpKind::Memory => match self.instruction.memory_size() {
                MemorySize::UInt8 | MemorySize::Int8 => Some(Width::Byte),
                MemorySize::UInt16 | MemorySize::Int16 => Some(Width::Word),
                MemorySize::UInt32 | MemorySize::Int32 => Some(Width::Dword),
                MemorySize::UInt64 | MemorySize::Int64 => Some(Width::Qword),
                _ => None,
            },
            _ => None,
        };
        width.ok_or(Stop::Unsupported(Reason::Instruction))
    }

    /// Reads an operand of any kind.
    pub(crate) fn read(&mut self, index: u32, width: Width) -> Step<u64, C::Error> {
        match self.operand(index)? {
            Operand::Register(part) => Ok(self.register(part)),
            Operand::Segment(name) => Ok(self.cpu.segment(name).selector.into()),
            Operand::Constant(value) => Ok(value & width.mask()),
            Operand::Memory(address) => {
                let place = self.place(address, width.bytes(), Access::Read)?;
                self.load(&place, width)
            }
        }
    }

    /// Writes a general register or memory.
    pub(crate) fn write(&mut self, index: u32, width: Width, value: u64) -> Step<(), C::Error> {
        match self.operand(index)? {
            Operand::Register(part) => {
                self.set_register(part, value);
                Ok(())
            }
            Operand::Memory(address) => {
                let place = self.place(address, width.bytes(), Access::Write)?;
                self.store(&place, width, value)
            }
            Operand::Segment(_) | Operand::Constant(_) => {
                Err(Stop::Unsupported(Reason::Instruction))
            }
        }
    }

    /// Reads and writes a general register or memory.
    pub(crate) fn update<T>(
        &mut self,
        index: u32,
        width: Width,
        locked: bool,
        change: impl FnMut(u64) -> (u64, T),
    ) -> Step<T, C::Error> {
        let operand = self.operand(index)?;
        self.update_operand(operand, width, locked, change)
    }

    pub(crate) fn update_operand<T>(
        &mut self,
        operand: Operand,
        width: Width,
        locked: bool,
        mut change: impl FnMut(u64) -> (u64, T),
    ) -> Step<T, C::Error> {
        match operand {
            Operand::Register(part) => {
                let (new, result) = change(self.register(part));
                self.set_register(part, new);
                Ok(result)
            }
            Operand::Memory(address) => {
                let place = self.place(address, width.bytes(), Access::Write)?;
                self.modify(&place, width, locked, change)
            }
            Operand::Segment(_) | Operand::Constant(_) => {
                Err(Stop::Unsupported(Reason::Instruction))
            }
        }
    }

    /// Reads a general register or its part.
    pub(crate) fn register(&mut self, part: Part) -> u64 {
        let shift = if part.high { 8 } else { 0 };
        self.cpu.gpr(part.register) >> shift & part.width.mask()
    }

    /// Writes a general register or its part. Writing 32 bits clears those above.
    pub(crate) fn set_register(&mut self, part: Part, value: u64) {
        let shift = if part.high { 8 } else { 0 };
        let kept = match part.width {
            Width::Byte | Width::Word => {
                self.cpu.gpr(part.register) & !(part.width.mask() << shift)
            }
            Width::Dword | Width::Qword => 0,
        };
        let value = (value & part.width.mask()) << shift;
        self.cpu.set_gpr(part.register, kept | value);
    }

    /// The part of a general register with this width that is not a high byte.
    pub(crate) fn part(register: Gpr, width: Width) -> Part {
        Part {
            register,
            width,
            high: false,
        }
    }
}
