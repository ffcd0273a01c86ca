//! What each instruction does.

use crate::address::Address;
use crate::alu::{self, Binary, Unary};
use crate::error::{Reason, Step, Stop};
use crate::mode::Mode;
use crate::operand::Operand;
use crate::{Access, Cpu, Gpr, Outcome, SegmentName, Width};
use hv_defs::vp_context::SegmentAttributes;
use iced_x86::{Instruction, Mnemonic};
use x86_defs::{RFLAGS_CF, RFLAGS_RF, RFLAGS_TF, RFLAGS_ZF};

/// One instruction and the VP that executes it.
pub(crate) struct Emulator<'a, C: Cpu> {
    pub(crate) cpu: &'a mut C,
    pub(crate) mode: Mode,
    pub(crate) instruction: Instruction,
}

/// How much of the instruction was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All.
    Done,
    /// An element or more of a REP.
    Partly,
}

/// What a bit test does with the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BitChange {
    None,
    Set,
    Reset,
    Complement,
}

impl<'a, C: Cpu> Emulator<'a, C> {
    pub(crate) fn new(cpu: &'a mut C, mode: Mode, instruction: Instruction) -> Self {
        Self {
            cpu,
            mode,
            instruction,
        }
    }

    /// Executes the instruction and moves RIP.
    pub(crate) fn run(mut self) -> Step<Outcome, C::Error> {
        let step = self.cpu.rflags() & RFLAGS_TF != 0;
        let progress = self.execute()?;
        if progress == Progress::Done {
            let next = self.cpu.rip().wrapping_add(self.instruction.len() as u64);
            self.cpu.set_rip(next & self.mode.rip_mask());
        }
        let rflags = self.cpu.rflags();
        self.cpu.set_rflags(rflags & !RFLAGS_RF);
        Ok(match (step, progress) {
            (true, _) => Outcome::SingleStep,
            (false, Progress::Done) => Outcome::Done,
            (false, Progress::Partly) => Outcome::Interrupted,
        })
    }

    fn execute(&mut self) -> Step<Progress, C::Error> {
        if let Some(string) = self.string_operation() {
            return self.string(string);
        }
        match self.instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti => self.mov(),
            Mnemonic::Movzx => self.extend(|_, value| value),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.extend(Width::sign_extend),
            Mnemonic::Movbe => self.movbe(),
            Mnemonic::Add => self.binary(Binary::Add),
            Mnemonic::Or => self.binary(Binary::Or),
            Mnemonic::Adc => self.binary(Binary::Adc),
            Mnemonic::Sbb => self.binary(Binary::Sbb),
            Mnemonic::And => self.binary(Binary::And),
            Mnemonic::Sub => self.binary(Binary::Sub),
            Mnemonic::Xor => self.binary(Binary::Xor),
            Mnemonic::Cmp => self.compare(Binary::Sub),
            Mnemonic::Test => self.compare(Binary::And),
            Mnemonic::Inc => self.unary(Unary::Increment),
            Mnemonic::Dec => self.unary(Unary::Decrement),
            Mnemonic::Neg => self.unary(Unary::Negate),
            Mnemonic::Not => self.unary(Unary::Not),
            Mnemonic::Xchg => self.exchange(),
            Mnemonic::Xadd => self.exchange_add(),
            Mnemonic::Cmpxchg => self.compare_exchange(),
            Mnemonic::Bt => self.bit_test(BitChange::None),
            Mnemonic::Bts => self.bit_test(BitChange::Set),
            Mnemonic::Btr => self.bit_test(BitChange::Reset),
            Mnemonic::Btc => self.bit_test(BitChange::Complement),
            Mnemonic::Push => self.push(),
            Mnemonic::Pop => self.pop(),
            Mnemonic::In => self.port_in(),
            Mnemonic::Out => self.port_out(),
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => self.touch(),
            mnemonic => {
                if let Some(code) = condition_of_move(mnemonic) {
                    self.conditional_move(code)
                } else if let Some(code) = condition_of_set(mnemonic) {
                    self.conditional_set(code)
                } else {
                    return self.vector_move().map(|()| Progress::Done);
                }
            }
        }?;
        Ok(Progress::Done)
    }

    fn mov(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let value = self.read(1, width)?;
        self.write(0, width, value)
    }

    fn extend(&mut self, change: fn(Width, u64) -> u64) -> Step<(), C::Error> {
        let (to, from) = (self.width(0)?, self.width(1)?);
        let value = self.read(1, from)?;
        self.write(0, to, change(from, value))
    }

    fn movbe(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let value = self.read(1, width)?;
        let swapped = value.swap_bytes() >> (64 - width.bits());
        self.write(0, width, swapped)
    }

    fn binary(&mut self, op: Binary) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let source = self.read(1, width)?;
        let (rflags, locked) = (self.cpu.rflags(), self.instruction.has_lock_prefix());
        let rflags = self.update(0, width, locked, |value| {
            alu::binary(op, width, value, source, rflags)
        })?;
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    fn compare(&mut self, op: Binary) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let (a, b) = (self.read(0, width)?, self.read(1, width)?);
        let (_, rflags) = alu::binary(op, width, a, b, self.cpu.rflags());
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    fn unary(&mut self, op: Unary) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let (rflags, locked) = (self.cpu.rflags(), self.instruction.has_lock_prefix());
        let rflags = self.update(0, width, locked, |value| {
            alu::unary(op, width, value, rflags)
        })?;
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    /// Always locked in memory.
    fn exchange(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let new = self.read(1, width)?;
        let old = self.update(0, width, true, |old| (new, old))?;
        self.write(1, width, old)
    }

    fn exchange_add(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let source = self.read(1, width)?;
        let (rflags, locked) = (self.cpu.rflags(), self.instruction.has_lock_prefix());
        let (first, operand) = (self.operand(0)?, self.operand(1)?);
        let change = |old| {
            let (sum, rflags) = alu::binary(Binary::Add, width, old, source, rflags);
            (sum, (old, rflags))
        };
        if let (Operand::Register(to), Operand::Register(from)) = (first, operand) {
            // The sum wins when both are the same register.
            let (sum, (old, rflags)) = change(self.register(to));
            self.set_register(from, old);
            self.set_register(to, sum);
            self.cpu.set_rflags(rflags);
            return Ok(());
        }
        let (old, rflags) = self.update_operand(first, width, locked, change)?;
        self.write(1, width, old)?;
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    fn compare_exchange(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let new = self.read(1, width)?;
        let accumulator = Self::part(Gpr::Rax, width);
        let expected = self.register(accumulator);
        let (rflags, locked) = (self.cpu.rflags(), self.instruction.has_lock_prefix());
        let (old, rflags) = self.update(0, width, locked, |old| {
            let (_, rflags) = alu::binary(Binary::Sub, width, expected, old, rflags);
            let written = if old == expected { new } else { old };
            (written, (old, rflags))
        })?;
        if rflags & RFLAGS_ZF == 0 {
            self.set_register(accumulator, old);
        }
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    fn bit_test(&mut self, change: BitChange) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let number = self.read(1, width)?;
        let bit = 1 << (number & u64::from(width.bits() - 1));
        let operand = match (self.operand(0)?, self.operand(1)?) {
            // The number is signed, and reaches beyond the operand.
            (Operand::Memory(address), Operand::Register(_)) => {
                let elements = (width.sign_extend(number) as i64) >> width.bits().ilog2();
                let distance = elements.wrapping_mul(width.bytes() as i64);
                Operand::Memory(address.plus(distance as u64))
            }
            (operand, _) => operand,
        };
        let value = if change == BitChange::None {
            self.read_operand(operand, width)?
        } else {
            let locked = self.instruction.has_lock_prefix();
            self.update_operand(operand, width, locked, |value| {
                let new = match change {
                    BitChange::None => value,
                    BitChange::Set => value | bit,
                    BitChange::Reset => value & !bit,
                    BitChange::Complement => value ^ bit,
                };
                (new, value)
            })?
        };
        let carry = if value & bit != 0 { RFLAGS_CF } else { 0 };
        let rflags = self.cpu.rflags() & !RFLAGS_CF | carry;
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    /// The source is read, and may fault, in any case.
    fn conditional_move(&mut self, code: u8) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let source = self.read(1, width)?;
        let value = if alu::condition(code, self.cpu.rflags()) {
            source
        } else {
            self.read(0, width)?
        };
        self.write(0, width, value)
    }

    fn conditional_set(&mut self, code: u8) -> Step<(), C::Error> {
        let value = alu::condition(code, self.cpu.rflags());
        self.write(0, Width::Byte, value.into())
    }

    fn push(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let value = self.read(0, width)?;
        let stack = self.stack();
        let top = stack.plus((width.bytes() as u64).wrapping_neg());
        let place = self.place(top, width.bytes(), Access::Write)?;
        self.store(&place, width, value)?;
        self.set_stack(top);
        Ok(())
    }

    /// An address that uses RSP is computed with the value behind the popped one.
    fn pop(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let (stack, rsp) = (self.stack(), self.cpu.gpr(Gpr::Rsp));
        let source = self.place(stack, width.bytes(), Access::Read)?;
        let value = self.load(&source, width)?;
        self.set_stack(stack.plus(width.bytes() as u64));
        self.write(0, width, value)
            .inspect_err(|_| self.cpu.set_gpr(Gpr::Rsp, rsp))
    }

    /// The top of the stack.
    fn stack(&mut self) -> Address {
        let attributes = SegmentAttributes::from_bits(self.cpu.segment(SegmentName::Ss).attributes);
        let mask = match (self.mode, attributes.default()) {
            (Mode::Bits64, _) => u64::MAX,
            (_, true) => 0xffff_ffff,
            (_, false) => 0xffff,
        };
        crate::address::indirect(self.cpu, SegmentName::Ss, Gpr::Rsp, mask)
    }

    fn set_stack(&mut self, top: Address) {
        self.set_indirect(Gpr::Rsp, top.offset, top.mask);
    }

    /// Writes a register that holds an address of 16, 32 or 64 bits.
    pub(crate) fn set_indirect(&mut self, register: Gpr, value: u64, mask: u64) {
        let width = match mask {
            0xffff => Width::Word,
            0xffff_ffff => Width::Dword,
            _ => Width::Qword,
        };
        self.set_register(Self::part(register, width), value);
    }

    fn port_in(&mut self) -> Step<(), C::Error> {
        let width = self.width(0)?;
        let port = self.read(1, Width::Word)?;
        let value = self.cpu.read_port(port as u16, width).map_err(Stop::Cpu)?;
        self.write(0, width, value.into())
    }

    fn port_out(&mut self) -> Step<(), C::Error> {
        let width = self.width(1)?;
        let port = self.read(0, Width::Word)?;
        let value = self.read(1, width)?;
        self.cpu
            .write_port(port as u16, width, value as u32)
            .map_err(Stop::Cpu)
    }

    /// Cache control: nothing happens, unless the address faults.
    fn touch(&mut self) -> Step<(), C::Error> {
        match self.operand(0)? {
            Operand::Memory(address) => self.place(address, 1, Access::Read).map(|_| ()),
            _ => Err(Stop::Unsupported(Reason::Instruction)),
        }
    }

    fn read_operand(&mut self, operand: Operand, width: Width) -> Step<u64, C::Error> {
        match operand {
            Operand::Memory(address) => {
                let place = self.place(address, width.bytes(), Access::Read)?;
                self.load(&place, width)
            }
            _ => self.read(0, width),
        }
    }
}

fn condition_of_move(mnemonic: Mnemonic) -> Option<u8> {
    const CODES: [Mnemonic; 16] = [
        Mnemonic::Cmovo,
        Mnemonic::Cmovno,
        Mnemonic::Cmovb,
        Mnemonic::Cmovae,
        Mnemonic::Cmove,
        Mnemonic::Cmovne,
        Mnemonic::Cmovbe,
        Mnemonic::Cmova,
        Mnemonic::Cmovs,
        Mnemonic::Cmovns,
        Mnemonic::Cmovp,
        Mnemonic::Cmovnp,
        Mnemonic::Cmovl,
        Mnemonic::Cmovge,
        Mnemonic::Cmovle,
        Mnemonic::Cmovg,
    ];
    position(&CODES, mnemonic)
}

fn condition_of_set(mnemonic: Mnemonic) -> Option<u8> {
    const CODES: [Mnemonic; 16] = [
        Mnemonic::Seto,
        Mnemonic::Setno,
        Mnemonic::Setb,
        Mnemonic::Setae,
        Mnemonic::Sete,
        Mnemonic::Setne,
        Mnemonic::Setbe,
        Mnemonic::Seta,
        Mnemonic::Sets,
        Mnemonic::Setns,
        Mnemonic::Setp,
        Mnemonic::Setnp,
        Mnemonic::Setl,
        Mnemonic::Setge,
        Mnemonic::Setle,
        Mnemonic::Setg,
    ];
    position(&CODES, mnemonic)
}

fn position(codes: &[Mnemonic; 16], mnemonic: Mnemonic) -> Option<u8> {
    let code = codes.iter().position(|code| *code == mnemonic)?;
    u8::try_from(code).ok()
}
