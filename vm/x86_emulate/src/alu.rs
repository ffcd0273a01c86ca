//! Arithmetic with flags (APM volume 3, the pages of the instructions). What the manual
//! calls undefined is left as AMD and Intel processors leave it.

use crate::Width;
use x86_defs::{RFLAGS_AF, RFLAGS_CF, RFLAGS_OF, RFLAGS_PF, RFLAGS_SF, RFLAGS_ZF};

/// The flags that arithmetic sets.
pub(crate) const STATUS: u64 =
    RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF;

/// An instruction with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// An instruction with one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Increment,
    Decrement,
    Negate,
    Not,
}

/// Computes `a op b`: result and all of RFLAGS.
pub(crate) fn binary(op: Binary, width: Width, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let carry = rflags & RFLAGS_CF;
    match op {
        Binary::Add => add(width, a, b, 0, rflags),
        Binary::Adc => add(width, a, b, carry, rflags),
        Binary::Sub => subtract(width, a, b, 0, rflags),
        Binary::Sbb => subtract(width, a, b, carry, rflags),
        Binary::Or => logic(width, a | b, rflags),
        Binary::And => logic(width, a & b, rflags),
        Binary::Xor => logic(width, a ^ b, rflags),
    }
}

/// Computes `op a`: result and all of RFLAGS.
pub(crate) fn unary(op: Unary, width: Width, a: u64, rflags: u64) -> (u64, u64) {
    let keep_carry = |(result, new): (u64, u64)| {
        let flags = new & !RFLAGS_CF | rflags & RFLAGS_CF;
        (result, flags)
    };
    match op {
        Unary::Increment => keep_carry(add(width, a, 1, 0, rflags)),
        Unary::Decrement => keep_carry(subtract(width, a, 1, 0, rflags)),
        Unary::Negate => subtract(width, 0, a, 0, rflags),
        Unary::Not => (!a & width.mask(), rflags),
    }
}

fn add(width: Width, a: u64, b: u64, carry: u64, rflags: u64) -> (u64, u64) {
    let (a, b) = (a & width.mask(), b & width.mask());
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = wide as u64 & width.mask();
    let carried = wide >> width.bits() != 0;
    let overflow = (a ^ result) & (b ^ result) & width.sign() != 0;
    let flags = arithmetic(width, result, a ^ b ^ result, carried, overflow);
    (result, rflags & !STATUS | flags)
}

fn subtract(width: Width, a: u64, b: u64, borrow: u64, rflags: u64) -> (u64, u64) {
    let (a, b) = (a & width.mask(), b & width.mask());
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    let borrowed = u128::from(a) < u128::from(b) + u128::from(borrow);
    let overflow = (a ^ b) & (a ^ result) & width.sign() != 0;
    let flags = arithmetic(width, result, a ^ b ^ result, borrowed, overflow);
    (result, rflags & !STATUS | flags)
}

fn logic(width: Width, result: u64, rflags: u64) -> (u64, u64) {
    let result = result & width.mask();
    let flags = rflags & !STATUS | of_result(width, result);
    (result, flags)
}

fn arithmetic(width: Width, result: u64, carries: u64, carry: bool, overflow: bool) -> u64 {
    let mut flags = of_result(width, result) | carries & RFLAGS_AF;
    if carry {
        flags |= RFLAGS_CF;
    }
    if overflow {
        flags |= RFLAGS_OF;
    }
    flags
}

/// ZF, SF and PF.
fn of_result(width: Width, result: u64) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= RFLAGS_ZF;
    }
    if result & width.sign() != 0 {
        flags |= RFLAGS_SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= RFLAGS_PF;
    }
    flags
}

/// Whether a condition of CMOVcc or SETcc holds; `code` is the low half of the opcode.
pub(crate) fn condition(code: u8, rflags: u64) -> bool {
    let flag = |flag: u64| rflags & flag != 0;
    let less = flag(RFLAGS_SF) != flag(RFLAGS_OF);
    let holds = match code >> 1 & 7 {
        0 => flag(RFLAGS_OF),
        1 => flag(RFLAGS_CF),
        2 => flag(RFLAGS_ZF),
        3 => flag(RFLAGS_CF) || flag(RFLAGS_ZF),
        4 => flag(RFLAGS_SF),
        5 => flag(RFLAGS_PF),
        6 => less,
        _ => less || flag(RFLAGS_ZF),
    };
    holds != (code & 1 != 0)
}
