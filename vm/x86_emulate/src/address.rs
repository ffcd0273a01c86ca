//! From an operand to a linear address: effective addresses and segments.

use crate::error::{Exception, Step, Stop};
use crate::mode::Mode;
use crate::operand;
use crate::{Access, Cpu, Gpr, SegmentName};
use hv_defs::vp_context::SegmentAttributes;
use iced_x86::{Instruction, Register};
use x86_defs::long_mode::Segment;
use x86_defs::{CR0_PE, CR4_LA57, RFLAGS_VM};

/// Of [`SegmentAttributes::segment_type`], for a code segment: it can be read; for a data
/// segment: it can be written.
const TYPE_READ_WRITE: u8 = 1 << 1;
/// Of a data segment: what lies above the limit is valid.
const TYPE_EXPAND_DOWN: u8 = 1 << 2;
/// A code segment.
const TYPE_CODE: u8 = 1 << 3;

/// Where a memory operand is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) segment: SegmentName,
    pub(crate) offset: u64,
    /// Ones in the bits that an offset has.
    pub(crate) mask: u64,
}

impl Address {
    /// The address so many bytes behind (or before) it.
    pub(crate) fn plus(self, bytes: u64) -> Self {
        Self {
            offset: self.offset.wrapping_add(bytes) & self.mask,
            ..self
        }
    }
}

/// The effective address of the operand that ModRM (or a plain offset) describes.
pub(crate) fn effective<C: Cpu>(cpu: &mut C, instruction: &Instruction) -> Address {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let mut offset = instruction.memory_displacement64();
    let mut mask = match instruction.memory_displ_size() {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    match base {
        // The displacement is the target.
        Register::RIP => mask = u64::MAX,
        Register::EIP => mask = 0xffff_ffff,
        _ => {
            if let Some(part) = operand::general(base) {
                mask = part.width.mask();
                offset = offset.wrapping_add(cpu.gpr(part.register) & mask);
            }
        }
    }
    if let Some(part) = operand::general(index) {
        mask = part.width.mask();
        let scaled =
            (cpu.gpr(part.register) & mask).wrapping_mul(instruction.memory_index_scale().into());
        offset = offset.wrapping_add(scaled);
    }
    Address {
        segment: segment_name(instruction.memory_segment()),
        offset: offset & mask,
        mask,
    }
}

/// An address that a register holds, as string instructions have it.
pub(crate) fn indirect<C: Cpu>(
    cpu: &mut C,
    segment: SegmentName,
    register: Gpr,
    mask: u64,
) -> Address {
    Address {
        segment,
        offset: cpu.gpr(register) & mask,
        mask,
    }
}

/// The segment register that the decoder names; DS for what is none.
pub(crate) fn segment_name(register: Register) -> SegmentName {
    let number = (register as usize).wrapping_sub(Register::ES as usize);
    SegmentName::ALL
        .get(number)
        .copied()
        .unwrap_or(SegmentName::Ds)
}

/// Checks an access by the rules of its segment and finds the linear address.
/// `length` is not zero.
pub(crate) fn linear<C: Cpu>(
    cpu: &mut C,
    mode: Mode,
    name: SegmentName,
    offset: u64,
    length: usize,
    access: Access,
) -> Step<u64, C::Error> {
    let segment = cpu.segment(name);
    let cr0 = cpu.cr0();
    let fault = Stop::Exception(Exception::segment(name == SegmentName::Ss, cr0));
    let last = length as u64 - 1;
    if mode == Mode::Bits64 {
        let base = match name {
            SegmentName::Fs | SegmentName::Gs => segment.base,
            _ => 0,
        };
        let address = base.wrapping_add(offset);
        let five_levels = cpu.cr4() & CR4_LA57 != 0;
        let valid = [address, address.wrapping_add(last)]
            .into_iter()
            .all(|address| is_canonical(address, five_levels));
        return if valid { Ok(address) } else { Err(fault) };
    }
    // Real and virtual-8086 mode have limits, but no types.
    let typed = cr0 & CR0_PE != 0 && cpu.rflags() & RFLAGS_VM == 0;
    if !covers(&segment, offset, last, typed.then_some(access)) {
        return Err(fault);
    }
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Whether the segment has these bytes, and, where segments have types, permits the access.
fn covers(segment: &Segment, offset: u64, last: u64, access: Option<Access>) -> bool {
    let attributes = SegmentAttributes::from_bits(segment.attributes);
    let kind = attributes.segment_type();
    let code = kind & TYPE_CODE != 0;
    let permitted = match access {
        None => true,
        Some(_) if !attributes.present() || !attributes.non_system() => false,
        Some(Access::Read) => !code || kind & TYPE_READ_WRITE != 0,
        Some(Access::Write) => !code && kind & TYPE_READ_WRITE != 0,
        Some(Access::Execute) => code,
    };
    let limit = u64::from(segment.limit);
    let end = offset + last;
    let inside = if access.is_some() && !code && kind & TYPE_EXPAND_DOWN != 0 {
        let top = if attributes.default() {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && end <= top
    } else {
        end <= limit
    };
    permitted && inside
}

fn is_canonical(address: u64, five_levels: bool) -> bool {
    let unused = if five_levels { 7 } else { 16 };
    ((address as i64) << unused) >> unused == address as i64
}
