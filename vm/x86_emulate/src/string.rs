//! String instructions, alone and with REP.

use crate::address::{self, Address};
use crate::alu::{self, Binary};
use crate::error::{Step, Stop};
use crate::execute::{Emulator, Progress};
use crate::{Access, Cpu, Gpr, SegmentName, Width};
use iced_x86::{Code, OpKind};
use x86_defs::{RFLAGS_DF, RFLAGS_TF, RFLAGS_ZF};

/// How many elements of a REP are done before the guest runs again, so that it can take
/// interrupts.
pub const REPEAT_LIMIT: u32 = 1024;

/// A string instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StringOperation {
    Move,
    Compare,
    Store,
    Load,
    Scan,
    In,
    Out,
}

/// Which prefix it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    No,
    WhileEqual,
    WhileNotEqual,
}

impl<C: Cpu> Emulator<'_, C> {
    /// The string instruction and the size of its elements. (A mnemonic does not tell: MOVSD
    /// and CMPSD are also instructions of SSE.)
    pub(crate) fn string_operation(&self) -> Option<(StringOperation, Width)> {
        use StringOperation::*;
        Some(match self.instruction.code() {
            Code::Movsb_m8_m8 => (Move, Width::Byte),
            Code::Movsw_m16_m16 => (Move, Width::Word),
            Code::Movsd_m32_m32 => (Move, Width::Dword),
            Code::Movsq_m64_m64 => (Move, Width::Qword),
            Code::Cmpsb_m8_m8 => (Compare, Width::Byte),
            Code::Cmpsw_m16_m16 => (Compare, Width::Word),
            Code::Cmpsd_m32_m32 => (Compare, Width::Dword),
            Code::Cmpsq_m64_m64 => (Compare, Width::Qword),
            Code::Stosb_m8_AL => (Store, Width::Byte),
            Code::Stosw_m16_AX => (Store, Width::Word),
            Code::Stosd_m32_EAX => (Store, Width::Dword),
            Code::Stosq_m64_RAX => (Store, Width::Qword),
            Code::Lodsb_AL_m8 => (Load, Width::Byte),
            Code::Lodsw_AX_m16 => (Load, Width::Word),
            Code::Lodsd_EAX_m32 => (Load, Width::Dword),
            Code::Lodsq_RAX_m64 => (Load, Width::Qword),
            Code::Scasb_AL_m8 => (Scan, Width::Byte),
            Code::Scasw_AX_m16 => (Scan, Width::Word),
            Code::Scasd_EAX_m32 => (Scan, Width::Dword),
            Code::Scasq_RAX_m64 => (Scan, Width::Qword),
            Code::Insb_m8_DX => (In, Width::Byte),
            Code::Insw_m16_DX => (In, Width::Word),
            Code::Insd_m32_DX => (In, Width::Dword),
            Code::Outsb_DX_m8 => (Out, Width::Byte),
            Code::Outsw_DX_m16 => (Out, Width::Word),
            Code::Outsd_DX_m32 => (Out, Width::Dword),
            _ => return None,
        })
    }

    pub(crate) fn string(
        &mut self,
        (operation, width): (StringOperation, Width),
    ) -> Step<Progress, C::Error> {
        let compares = matches!(operation, StringOperation::Compare | StringOperation::Scan);
        let repeat = match (
            self.instruction.has_repe_prefix(),
            self.instruction.has_repne_prefix(),
        ) {
            (_, true) => Repeat::WhileNotEqual,
            (true, false) => Repeat::WhileEqual,
            (false, false) => Repeat::No,
        };
        let mask = self.string_address_mask();
        if repeat == Repeat::No {
            self.element(operation, width, mask)?;
            return Ok(Progress::Done);
        }
        // With TF set, there is a #DB behind each element.
        let limit = if self.cpu.rflags() & RFLAGS_TF == 0 {
            REPEAT_LIMIT
        } else {
            1
        };
        for _ in 0..limit {
            let count = self.cpu.gpr(Gpr::Rcx) & mask;
            if count == 0 {
                return Ok(Progress::Done);
            }
            self.element(operation, width, mask)?;
            self.set_indirect(Gpr::Rcx, count - 1, mask);
            let equal = self.cpu.rflags() & RFLAGS_ZF != 0;
            if count == 1 || compares && equal != (repeat == Repeat::WhileEqual) {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Partly)
    }

    /// Does one element: its memory accesses, then the registers.
    fn element(
        &mut self,
        operation: StringOperation,
        width: Width,
        mask: u64,
    ) -> Step<(), C::Error> {
        let source = address::segment_name(self.instruction.memory_segment());
        let source = address::indirect(self.cpu, source, Gpr::Rsi, mask);
        let target = address::indirect(self.cpu, SegmentName::Es, Gpr::Rdi, mask);
        let accumulator = Self::part(Gpr::Rax, width);
        let port = self.cpu.gpr(Gpr::Rdx) as u16;
        match operation {
            StringOperation::Move => {
                let to = self.place(target, width.bytes(), Access::Write)?;
                let value = self.load_at(source, width)?;
                self.store(&to, width, value)?;
            }
            StringOperation::Store => {
                let to = self.place(target, width.bytes(), Access::Write)?;
                let value = self.register(accumulator);
                self.store(&to, width, value)?;
            }
            StringOperation::Load => {
                let value = self.load_at(source, width)?;
                self.set_register(accumulator, value);
            }
            StringOperation::Compare => {
                // Nothing is read before both are known to be there.
                let second = self.place(target, width.bytes(), Access::Read)?;
                let a = self.load_at(source, width)?;
                let b = self.load(&second, width)?;
                self.compare_values(width, a, b);
            }
            StringOperation::Scan => {
                let a = self.register(accumulator);
                let b = self.load_at(target, width)?;
                self.compare_values(width, a, b);
            }
            StringOperation::In => {
                let to = self.place(target, width.bytes(), Access::Write)?;
                let value = self.cpu.read_port(port, width).map_err(Stop::Cpu)?;
                self.store(&to, width, value.into())?;
            }
            StringOperation::Out => {
                let value = self.load_at(source, width)?;
                self.cpu
                    .write_port(port, width, value as u32)
                    .map_err(Stop::Cpu)?;
            }
        }
        let distance = if self.cpu.rflags() & RFLAGS_DF == 0 {
            width.bytes() as u64
        } else {
            (width.bytes() as u64).wrapping_neg()
        };
        use StringOperation::*;
        if matches!(operation, Move | Compare | Load | Out) {
            self.set_indirect(Gpr::Rsi, source.plus(distance).offset, mask);
        }
        if matches!(operation, Move | Compare | Store | Scan | In) {
            self.set_indirect(Gpr::Rdi, target.plus(distance).offset, mask);
        }
        Ok(())
    }

    fn load_at(&mut self, address: Address, width: Width) -> Step<u64, C::Error> {
        let place = self.place(address, width.bytes(), Access::Read)?;
        self.load(&place, width)
    }

    fn compare_values(&mut self, width: Width, a: u64, b: u64) {
        let (_, rflags) = alu::binary(Binary::Sub, width, a, b, self.cpu.rflags());
        self.cpu.set_rflags(rflags);
    }

    /// Ones in the bits of an address, by the address size.
    fn string_address_mask(&self) -> u64 {
        (0..2)
            .find_map(|index| match self.instruction.op_kind(index) {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(0xffff),
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                    Some(0xffff_ffff)
                }
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(u64::MAX),
                _ => None,
            })
            .unwrap_or(u64::MAX)
    }
}
