//! The emulator and the processor of the build machine do the same: registers, flags that
//! are defined, and operands, of which one half is memory and the other a device.

use super::native::{Native, Registers};
use crate::testing::{Machine, Translation};
use crate::{Outcome, emulate};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use x86_defs::{RFLAGS_AF, RFLAGS_OF, RFLAGS_PF, RFLAGS_SF};

const PAGE: usize = 4096;
const RAX: usize = 0;
const RCX: usize = 1;
const RSP: u8 = 4;
const RSI: usize = 6;
const RDI: usize = 7;
/// CF, PF, AF, ZF, SF, DF, OF.
const FLAGS: u64 = 0xcd5;
/// IF: a program always has it.
const RFLAGS_OF_PROGRAMS: u64 = 0x202;

/// What follows ModRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Constant {
    None,
    Byte,
    /// Of the operand size, at most four bytes.
    Operand,
}

/// An instruction with ModRM.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// A mandatory prefix, or 0.
    prefix: u8,
    opcode: &'static [u8],
    /// What ModRM has in place of a register.
    digit: Option<u8>,
    constant: Constant,
    /// With a register operand of eight bits.
    byte: bool,
    /// 66 and REX.W mean sizes.
    sizes: bool,
    lock: bool,
    /// Flags that are undefined.
    undefined: u64,
    align: bool,
}

const GENERAL: Form = Form {
    prefix: 0,
    opcode: &[],
    digit: None,
    constant: Constant::None,
    byte: false,
    sizes: true,
    lock: false,
    undefined: 0,
    align: false,
};

fn form(opcode: &'static [u8]) -> Form {
    Form { opcode, ..GENERAL }
}

fn byte(opcode: &'static [u8]) -> Form {
    Form {
        byte: true,
        sizes: false,
        ..form(opcode)
    }
}

fn vector(prefix: u8, opcode: &'static [u8]) -> Form {
    Form {
        prefix,
        sizes: false,
        ..form(opcode)
    }
}

fn forms() -> Vec<Form> {
    let mut forms = vec![
        // MOV, MOVZX, MOVSX, MOVSXD, MOVNTI, MOVBE.
        byte(&[0x88]),
        byte(&[0x8a]),
        form(&[0x89]),
        form(&[0x8b]),
        byte(&[0x0f, 0xb6]),
        form(&[0x0f, 0xb6]),
        form(&[0x0f, 0xb7]),
        form(&[0x0f, 0xbe]),
        form(&[0x0f, 0xbf]),
        form(&[0x63]),
        form(&[0x0f, 0x38, 0xf0]),
        form(&[0x0f, 0x38, 0xf1]),
        // TEST.
        byte(&[0x84]),
        form(&[0x85]),
    ];
    forms[4].byte = false;
    let digit = |base: Form, digit, constant| Form {
        digit: Some(digit),
        constant,
        ..base
    };
    forms.extend([
        Form {
            sizes: false,
            ..form(&[0x0f, 0xc3])
        },
        digit(byte(&[0xc6]), 0, Constant::Byte),
        digit(form(&[0xc7]), 0, Constant::Operand),
        digit(byte(&[0xf6]), 0, Constant::Byte),
        digit(form(&[0xf7]), 0, Constant::Operand),
    ]);
    let locked = |base: Form| Form { lock: true, ..base };
    // ADD to CMP, in their seven encodings; CMP cannot be locked.
    const OPCODES: [[u8; 4]; 8] = {
        let mut opcodes = [[0; 4]; 8];
        let mut op = 0;
        while op < 8 {
            let mut kind = 0;
            while kind < 4 {
                opcodes[op][kind] = (op * 8 + kind) as u8;
                kind += 1;
            }
            op += 1;
        }
        opcodes
    };
    for (op, opcodes) in OPCODES.iter().enumerate() {
        let undefined = if [1, 4, 6].contains(&op) {
            RFLAGS_AF
        } else {
            0
        };
        let same = |base: Form| Form {
            undefined,
            lock: op != 7,
            ..base
        };
        forms.extend([
            same(byte(&opcodes[0..1])),
            same(form(&opcodes[1..2])),
            Form {
                lock: false,
                ..same(byte(&opcodes[2..3]))
            },
            Form {
                lock: false,
                ..same(form(&opcodes[3..4]))
            },
            digit(same(byte(&[0x80])), op as u8, Constant::Byte),
            digit(same(form(&[0x81])), op as u8, Constant::Operand),
            digit(same(form(&[0x83])), op as u8, Constant::Byte),
        ]);
    }
    for (base, number) in [
        (byte(&[0xfe]), 0),
        (byte(&[0xfe]), 1),
        (form(&[0xff]), 0),
        (form(&[0xff]), 1),
        (byte(&[0xf6]), 2),
        (byte(&[0xf6]), 3),
        (form(&[0xf7]), 2),
        (form(&[0xf7]), 3),
    ] {
        forms.push(digit(locked(base), number, Constant::None));
    }
    forms.extend(
        [
            byte(&[0x86]),
            form(&[0x87]),
            byte(&[0x0f, 0xc0]),
            form(&[0x0f, 0xc1]),
            byte(&[0x0f, 0xb0]),
            form(&[0x0f, 0xb1]),
        ]
        .map(locked),
    );
    let bits = |base: Form| Form {
        undefined: RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF,
        ..base
    };
    forms.extend([
        bits(form(&[0x0f, 0xa3])),
        bits(locked(form(&[0x0f, 0xab]))),
        bits(locked(form(&[0x0f, 0xb3]))),
        bits(locked(form(&[0x0f, 0xbb]))),
        bits(digit(form(&[0x0f, 0xba]), 4, Constant::Byte)),
        bits(digit(locked(form(&[0x0f, 0xba])), 5, Constant::Byte)),
        bits(digit(locked(form(&[0x0f, 0xba])), 6, Constant::Byte)),
        bits(digit(locked(form(&[0x0f, 0xba])), 7, Constant::Byte)),
    ]);
    const CONDITIONS: [[u8; 2]; 32] = {
        let mut opcodes = [[0x0f; 2]; 32];
        let mut code = 0;
        while code < 16 {
            opcodes[code][1] = 0x40 + code as u8;
            opcodes[16 + code][1] = 0x90 + code as u8;
            code += 1;
        }
        opcodes
    };
    for opcode in &CONDITIONS[..16] {
        forms.push(form(opcode));
    }
    for opcode in &CONDITIONS[16..] {
        forms.push(digit(byte(opcode), 0, Constant::None));
    }
    let aligned = |base: Form| Form {
        align: true,
        ..base
    };
    forms.extend([
        vector(0, &[0x0f, 0x10]),
        vector(0, &[0x0f, 0x11]),
        vector(0x66, &[0x0f, 0x10]),
        vector(0x66, &[0x0f, 0x11]),
        vector(0xf3, &[0x0f, 0x10]),
        vector(0xf3, &[0x0f, 0x11]),
        vector(0xf2, &[0x0f, 0x10]),
        vector(0xf2, &[0x0f, 0x11]),
        vector(0, &[0x0f, 0x12]),
        vector(0, &[0x0f, 0x13]),
        vector(0x66, &[0x0f, 0x12]),
        vector(0x66, &[0x0f, 0x13]),
        vector(0, &[0x0f, 0x16]),
        vector(0, &[0x0f, 0x17]),
        vector(0x66, &[0x0f, 0x16]),
        vector(0x66, &[0x0f, 0x17]),
        vector(0xf3, &[0x0f, 0x6f]),
        vector(0xf3, &[0x0f, 0x7f]),
        vector(0xf2, &[0x0f, 0xf0]),
        vector(0x66, &[0x0f, 0x6e]),
        vector(0x66, &[0x0f, 0x7e]),
        vector(0xf3, &[0x0f, 0x7e]),
        vector(0x66, &[0x0f, 0xd6]),
        aligned(vector(0, &[0x0f, 0x28])),
        aligned(vector(0, &[0x0f, 0x29])),
        aligned(vector(0x66, &[0x0f, 0x28])),
        aligned(vector(0x66, &[0x0f, 0x29])),
        aligned(vector(0, &[0x0f, 0x2b])),
        aligned(vector(0x66, &[0x0f, 0x2b])),
        aligned(vector(0x66, &[0x0f, 0x6f])),
        aligned(vector(0x66, &[0x0f, 0x7f])),
        aligned(vector(0x66, &[0x0f, 0xe7])),
        aligned(vector(0x66, &[0x0f, 0x38, 0x2a])),
    ]);
    forms
}

/// What is free in an encoding, and the state of before.
#[derive(Debug, Clone)]
struct Choice {
    lock: bool,
    operand_size: bool,
    wide: bool,
    address_size: bool,
    /// A REX prefix that is not needed: it makes SPL of AH.
    rex: bool,
    register: u8,
    base: u8,
    index: Option<(u8, u8)>,
    displacement: Option<i32>,
    constant: u32,
    /// Where in the operands.
    offset: usize,
    gprs: [u64; 16],
    xmm: [u128; 16],
    rflags: u64,
    fill: u64,
    /// RAX holds what is in memory, for CMPXCHG.
    expected: bool,
}

prop_compose! {
    fn choices()(
        (lock, operand_size, wide, address_size, rex, expected) in any::<(bool, bool, bool, bool, bool, bool)>(),
        (register, base) in (0..16u8, (0..16u8).prop_filter("RSP is the stack's", |base| *base != RSP)),
        index in proptest::option::of(((0..16u8).prop_filter("no index", |index| *index != RSP), 0..4u8)),
        displacement in proptest::option::of(prop_oneof![-128..128i32, any::<i32>()]),
        constant in any::<u32>(),
        offset in prop_oneof![256..2 * PAGE - 256, PAGE - 20..PAGE + 4],
        gprs in any::<[u64; 16]>(),
        xmm in any::<[u128; 16]>(),
        rflags in any::<u64>(),
        fill in any::<u64>(),
    ) -> Choice {
        Choice {
            lock, operand_size, wide, address_size, rex, register, base, index, displacement,
            constant, offset, gprs, xmm, rflags: rflags & FLAGS, fill, expected,
        }
    }
}

/// Encodes the instruction, and sets the registers so that it finds its operand.
fn assemble(form: &Form, choice: &mut Choice, operands: u64) -> Vec<u8> {
    let mut code = Vec::new();
    let (base, index) = (
        choice.base,
        choice.index.filter(|index| index.0 != choice.base),
    );
    let mut offset = choice.offset;
    if form.align {
        offset &= !15;
    }
    if choice.address_size {
        code.push(0x67);
    }
    if choice.lock && form.lock {
        code.push(0xf0);
    }
    let operand_size = choice.operand_size && form.sizes;
    if operand_size {
        code.push(0x66);
    }
    if form.prefix != 0 {
        code.push(form.prefix);
    }
    let register = form.digit.unwrap_or(choice.register);
    let mut rex = u8::from(choice.wide) << 3 | register >> 3 << 2 | base >> 3;
    if let Some((index, _)) = index {
        rex |= index >> 3 << 1;
    }
    if rex != 0 || choice.rex {
        code.push(0x40 | rex);
    }
    code.extend(form.opcode);
    let (mode, displacement) = match choice.displacement {
        None if base & 7 != 5 => (0, 0),
        None => (1, 0),
        Some(value) if (-128..128).contains(&value) => (1, value),
        Some(value) => (2, value),
    };
    let modrm = mode << 6 | (register & 7) << 3;
    match index {
        None if base & 7 != 4 => code.push(modrm | base & 7),
        None => code.extend([modrm | 4, 4 << 3 | base & 7]),
        Some((index, scale)) => {
            code.extend([modrm | 4, scale << 6 | (index & 7) << 3 | base & 7]);
        }
    }
    match mode {
        1 => code.push(displacement as u8),
        2 => code.extend(displacement.to_le_bytes()),
        _ => {}
    }
    match form.constant {
        Constant::None => {}
        Constant::Byte => code.push(choice.constant as u8),
        Constant::Operand if operand_size && !choice.wide => {
            code.extend((choice.constant as u16).to_le_bytes());
        }
        Constant::Operand => code.extend(choice.constant.to_le_bytes()),
    }

    // A bit number reaches far: keep it among the operands. As base or index it is an
    // address, with a bit number that nobody can choose.
    let bit_number = matches!(form.opcode, [0x0f, 0xa3 | 0xab | 0xb3 | 0xbb]);
    if bit_number {
        let value = &mut choice.gprs[usize::from(register)];
        *value = (i64::from(choice.constant as i32) % 1024) as u64;
    }
    let scaled = index.map_or(0, |(index, scale)| choice.gprs[usize::from(index)] << scale);
    let target = operands + offset as u64;
    let mut value = target
        .wrapping_sub(displacement as u64)
        .wrapping_sub(scaled);
    if choice.address_size {
        // Whatever is above.
        value = value & 0xffff_ffff | choice.fill & !0xffff_ffff;
    }
    choice.gprs[usize::from(base)] = value;
    code
}

/// Whether the processor can execute it without harm to the test.
fn is_harmless(form: &Form, choice: &Choice) -> bool {
    let high_byte = form.byte && !choice.rex && !choice.wide && choice.base < 8;
    let high_byte = high_byte && choice.index.is_none_or(|(index, _)| index < 8);
    let vector = form.prefix != 0 || matches!(form.opcode, [0x0f, 0x10..=0x2f]);
    let writes_stack = choice.register == RSP && form.digit.is_none() && !vector && !high_byte;
    let bit_number = matches!(form.opcode, [0x0f, 0xa3 | 0xab | 0xb3 | 0xbb]);
    let address = choice.register == choice.base
        || choice
            .index
            .is_some_and(|(index, _)| index == choice.register);
    !(writes_stack || bit_number && address)
}

fn fill(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..2 * PAGE)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Executes it twice and compares.
fn compare(
    native: &mut Native,
    code: &[u8],
    before: Registers,
    world: Vec<u8>,
    undefined: u64,
) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(PAGE, PAGE);
    machine.translation = Translation::Window(native.address());
    machine.gprs = before.gprs;
    machine.xmm = before.xmm;
    machine.rflags = before.rflags;
    machine.rip = 0x40_0000;
    machine.world.clone_from(&world);
    let outcome = emulate(&mut machine, code);
    prop_assert_eq!(outcome, Ok(Outcome::Done), "{:02x?}", code);
    prop_assert_eq!(machine.rip, 0x40_0000 + code.len() as u64);

    let (mut after, mut world) = (before.clone(), world);
    native.run(code, &mut after, &mut world);
    // RSP is the test's own.
    after.gprs[usize::from(RSP)] = before.gprs[usize::from(RSP)];
    prop_assert_eq!(machine.gprs, after.gprs, "registers of {:02x?}", code);
    prop_assert_eq!(machine.xmm, after.xmm, "XMM registers of {:02x?}", code);
    prop_assert_eq!(
        machine.rflags & !undefined,
        after.rflags & !undefined,
        "flags of {:02x?}",
        code
    );
    let differs = machine.world.iter().zip(&world).position(|(a, b)| a != b);
    prop_assert_eq!(differs, None, "memory of {:02x?}", code);
    Ok(())
}

/// Executes random cases of each of these forms.
fn compare_forms(forms: &[Form]) {
    // One mapping for all: the runner's closure must not change anything, so it is a cell.
    let native = RefCell::new(Native::new());
    for form in forms {
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 100,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let result = runner.run(&choices(), |mut choice| {
            prop_assume!(is_harmless(form, &choice));
            let mut native = native.borrow_mut();
            let code = assemble(form, &mut choice, native.address());
            let world = fill(choice.fill);
            let address = choice.base == 0 || choice.index.is_some_and(|(index, _)| index == 0);
            if choice.expected && matches!(form.opcode, [0x0f, 0xb0 | 0xb1]) && !address {
                choice.gprs[RAX] = world[choice.offset..choice.offset + 8]
                    .iter()
                    .rev()
                    .fold(0, |value, byte| value << 8 | u64::from(*byte));
            }
            let before = Registers {
                gprs: choice.gprs,
                xmm: choice.xmm,
                rflags: RFLAGS_OF_PROGRAMS | choice.rflags,
            };
            compare(&mut native, &code, before, world, form.undefined)
        });
        if let Err(error) = result {
            panic!("{form:02x?}: {error}");
        }
    }
}

#[test]
fn instructions_with_one_memory_operand_do_what_the_processor_does() {
    compare_forms(&forms());
}

/// The address size in 64-bit mode changes which part of the registers counts, and what is
/// left of the other.
#[test]
fn string_instructions_do_what_the_processor_does() {
    let native = RefCell::new(Native::new());
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    const OPCODES: &[u8] = &[0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf];
    let strategy = (
        proptest::sample::select(OPCODES),
        proptest::sample::select(&[0, 0xf2, 0xf3][..]),
        any::<[bool; 4]>(),
        (
            1..40u64,
            512..2 * PAGE - 512,
            512..2 * PAGE - 512,
            0..40usize,
        ),
        any::<[u64; 16]>(),
        any::<(u64, u64)>(),
    );
    let result = runner.run(
        &strategy,
        |(opcode, repeat, bits, at, gprs, (flags, seed))| {
            let [operand_size, wide, address_size, alike] = bits;
            let (count, source, target, differs) = at;
            let mut native = native.borrow_mut();
            let mut code = Vec::new();
            if address_size {
                code.push(0x67);
            }
            if operand_size {
                code.push(0x66);
            }
            if repeat != 0 {
                code.push(repeat);
            }
            if wide {
                code.push(0x48);
            }
            code.push(opcode);

            let mut world = fill(seed);
            if alike {
                // So that comparisons last.
                world.fill(seed as u8);
                world[target + differs] ^= 1;
            }
            let above = if address_size { seed & !0xffff_ffff } else { 0 };
            let mut before = Registers {
                gprs,
                xmm: [0; 16],
                rflags: RFLAGS_OF_PROGRAMS | flags & FLAGS,
            };
            before.gprs[RCX] = count | above;
            before.gprs[RSI] = (native.address() + source as u64) | above;
            before.gprs[RDI] = (native.address() + target as u64) | above;
            if alike {
                before.gprs[RAX] = u64::from_ne_bytes([seed as u8; 8]);
            }
            compare(&mut native, &code, before, world, 0)
        },
    );
    if let Err(error) = result {
        panic!("{error}");
    }
}
