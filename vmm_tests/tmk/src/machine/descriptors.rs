//! Descriptor tables: GDT with user segments, task state with the stacks for
//! exceptions, IDT.

#![expect(
    unsafe_code,
    reason = "descriptor tables are loaded and referenced by address"
)]

use super::entry::{STUB_SIZE, VECTORS, exception_stubs, selector};
use core::arch::asm;
use core::cell::UnsafeCell;
use hv_defs::vp_context::HvX64TableRegister;

/// Bytes of a stack for exceptions.
const STACK_SIZE: usize = 16 * 1024;
/// Vector of the double fault, which gets a stack of its own.
const DOUBLE_FAULT: usize = 8;
/// 64-bit code segment, supervisor.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Data segment, supervisor.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// Privilege level 3 in a descriptor.
const USER: u64 = 3 << 45;

#[repr(C, align(16))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: written by VP 0 before any other VP runs, afterwards only by the processor.
unsafe impl<T> Sync for Shared<T> {}

static GDT: Shared<[u64; 7]> = Shared(UnsafeCell::new([0; 7]));
static IDT: Shared<[[u64; 2]; VECTORS]> = Shared(UnsafeCell::new([[0; 2]; VECTORS]));
static TASK: Shared<[u32; 26]> = Shared(UnsafeCell::new([0; 26]));
static STACKS: Shared<[[u8; STACK_SIZE]; 2]> = Shared(UnsafeCell::new([[0; STACK_SIZE]; 2]));

/// Operand of LGDT, LIDT, SGDT.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// GDTR and IDTR for another VP.
pub fn table_registers() -> (HvX64TableRegister, HvX64TableRegister) {
    let register = |base: u64, bytes: usize| HvX64TableRegister {
        pad: [0; 3],
        limit: bytes as u16 - 1,
        base,
    };
    (
        register(GDT.0.get() as u64, size_of::<[u64; 7]>()),
        register(IDT.0.get() as u64, size_of::<[[u64; 2]; VECTORS]>()),
    )
}

/// Base and limit of the GDT in use.
pub fn gdtr() -> (u64, u16) {
    let mut pointer = Pointer::default();
    // SAFETY: stores ten bytes into the variable.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut pointer, options(nostack)) };
    (pointer.base, pointer.limit)
}

/// CS, DS and SS in use.
pub fn selectors() -> (u16, u16, u16) {
    let (cs, ds, ss): (u16, u16, u16);
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "mov {0:x}, cs", "mov {1:x}, ds", "mov {2:x}, ss",
            out(reg) cs, out(reg) ds, out(reg) ss, options(nomem, nostack)
        );
    }
    (cs, ds, ss)
}

/// Fills the tables and loads them on this VP.
pub fn load() {
    let stack_top = |index: usize| STACKS.0.get() as u64 + ((index + 1) * STACK_SIZE) as u64;
    let task = TASK.0.get() as u64;
    let mut words = [0u32; 26];
    // RSP0 for exceptions from user mode; IST1 for the double fault.
    for (word, value) in [(1, stack_top(0)), (9, stack_top(1))] {
        words[word] = value as u32;
        words[word + 1] = (value >> 32) as u32;
    }
    let gdt = [
        0,
        CODE,
        DATA,
        DATA | USER,
        CODE | USER,
        0x0000_8900_0000_0067 | ((task & 0xff_ffff) << 16) | ((task >> 24 & 0xff) << 56),
        task >> 32,
    ];
    let mut idt = [[0u64; 2]; VECTORS];
    for (vector, gate) in idt.iter_mut().enumerate() {
        let handler = exception_stubs() + vector as u64 * STUB_SIZE;
        let stack = u64::from(vector == DOUBLE_FAULT);
        *gate = [
            (handler & 0xffff)
                | (u64::from(selector::KERNEL_CODE) << 16)
                | (stack << 32)
                | (0x8e00 << 32)
                | ((handler >> 16 & 0xffff) << 48),
            handler >> 32,
        ];
    }
    let (gdtr, idtr) = table_registers();
    let pointer = |register: HvX64TableRegister| Pointer {
        limit: register.limit,
        base: register.base,
    };
    let (gdtr, idtr) = (pointer(gdtr), pointer(idtr));
    // SAFETY: only VP 0 runs and the tables are not in use yet; they are complete before
    // they are loaded. The new selectors describe the same flat segments as the old.
    unsafe {
        TASK.0.get().write(words);
        GDT.0.get().write(gdt);
        IDT.0.get().write(idt);
        asm!(
            "lgdt [{gdtr}]",
            "lidt [{idtr}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            "ltr {task:x}",
            gdtr = in(reg) &raw const gdtr,
            idtr = in(reg) &raw const idtr,
            code = const selector::KERNEL_CODE,
            data = in(reg) u64::from(selector::KERNEL_DATA),
            task = in(reg) u64::from(selector::TASK),
            scratch = out(reg) _,
        );
    }
}
