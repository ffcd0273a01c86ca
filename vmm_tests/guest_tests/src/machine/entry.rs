//! First instructions of VP 0 and of the other VPs, and of every interrupt.

#![expect(
    unsafe_code,
    reason = "entry points in assembly, and their way into Rust"
)]

use super::console::Console;
use super::probe::{FAULT_TAKEN, PROBE_MAGIC};
use super::{interrupts, power, vps};
use crate::acpi::MAX_PROCESSORS;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

/// Selector of the code segment.
pub const CODE_SELECTOR: u16 = 0x08;
/// Selector of the data segment.
const DATA_SELECTOR: u16 = 0x10;
/// Bytes from one interrupt stub to the next.
pub const STUB_SIZE: u64 = 16;
/// Page in which VPs start: below 640 KiB, and nothing that the loader placed is there.
pub const TRAMPOLINE_PAGE: u8 = 0x80;
/// Bytes of VP 0's stack, on which all tests run.
const FIRST_STACK_SIZE: usize = 64 * 1024;
/// Bytes of the stack of any other VP.
const STACK_SIZE: usize = 16 * 1024;
/// Exceptions that push an error code.
const WITH_ERROR: u32 = 0x6022_7d00;

/// How the kernel was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// By the 64-bit boot protocol: address of the zero page.
    ZeroPage(u64),
    /// By PVH: address of the start info.
    StartInfo(u64),
}

#[repr(C, align(16))]
struct Stack<T>(UnsafeCell<T>);

// SAFETY: each VP uses its own stack only.
unsafe impl<T> Sync for Stack<T> {}

static FIRST_STACK: Stack<[u8; FIRST_STACK_SIZE]> = Stack(UnsafeCell::new([0; FIRST_STACK_SIZE]));
static STACKS: Stack<[[u8; STACK_SIZE]; MAX_PROCESSORS]> =
    Stack(UnsafeCell::new([[0; STACK_SIZE]; MAX_PROCESSORS]));

/// Stack of the VP that starts next.
static NEXT_STACK: AtomicU64 = AtomicU64::new(0);
/// Its number.
static NEXT_INDEX: AtomicU64 = AtomicU64::new(0);

// PVH and the processor's real mode need descriptors and page tables before there is any
// code of ours in long mode, so both are data. All of memory is mapped where it is, in
// pages of 1 GiB; GiB 3 has the devices and is not cached.
global_asm!(
    r#"
    .section .data.boot_tables, "aw"
    .balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .skip 4088
boot_pdpt:
    .set gib, 0
    .rept 512
    .if gib == 3
    .quad (gib << 30) + 0xfb
    .else
    .quad (gib << 30) + 0xe3
    .endif
    .set gib, gib + 1
    .endr
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
boot_gdt_pointer:
    .word 31
    .quad boot_gdt

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start

    .section .text.guest_tests_start, "ax"
    .code32
pvh_start:
    cld
    cli
    mov esi, ebx
    mov ebp, 1
    lgdt [boot_gdt_pointer]
    mov eax, 0x20
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    .byte 0xea
    .long start64
    .word {code}

    .code64
    .global _start
_start:
    cld
    cli
    xor ebp, ebp
start64:
    lgdt [boot_gdt_pointer]
    mov eax, offset boot_pml4
    mov cr3, rax
    mov rdi, offset __bss_start
    mov rcx, offset __bss_end
    sub rcx, rdi
    shr rcx, 3
    xor eax, eax
    rep stosq
    lea rsp, [rip + {stack} + {stack_size}]
    push {code}
    lea rax, [rip + 2f]
    push rax
    retfq
2:  mov eax, {data}
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rdi, rsi
    mov esi, ebp
    xor ebp, ebp
    call {main}
    ud2

ap_start64:
    mov eax, {data}
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [{next_stack}]
    mov rdi, [{next_index}]
    xor ebp, ebp
    call {ap_main}
    ud2

    .balign 16
    .global guest_tests_stubs
guest_tests_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector < 32
    .if (({with_error} >> vector) & 1) == 0
    .byte 0x6a, 0
    .endif
    .else
    .byte 0x6a, 0
    .endif
    .byte 0x68
    .long vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    cmp qword ptr [rsp], 32
    jae 3f
    cmp qword ptr [rsp], 2
    je 3f
    push rax
    movabs rax, {magic}
    cmp r10, rax
    pop rax
    jne 3f
    mov r10, [rsp + 8]
    shl r10, 32
    or r10, [rsp]
    or r10, {taken}
    mov [rsp + 16], r11
    add rsp, 16
    iretq
3:  push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    cld
    lea rdi, [rsp + 72]
    call {on_interrupt}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
"#,
    stack = sym FIRST_STACK,
    stack_size = const FIRST_STACK_SIZE,
    next_stack = sym NEXT_STACK,
    next_index = sym NEXT_INDEX,
    main = sym start,
    ap_main = sym vps::ap_main,
    on_interrupt = sym interrupts::on_interrupt,
    with_error = const WITH_ERROR,
    magic = const PROBE_MAGIC,
    taken = const FAULT_TAKEN,
    code = const CODE_SELECTOR,
    data = const DATA_SELECTOR,
);

// Where other VPs start, in real mode at the begin of a page: from there to long mode in
// one step. Copied there, so only what it names outside of itself has fixed addresses.
global_asm!(
    r#"
    .section .rodata.trampoline, "a"
    .global guest_tests_trampoline
    .global guest_tests_trampoline_end
    .code16
guest_tests_trampoline:
    cli
    cld
    movl $0x20, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    lgdtl %cs:(trampoline_gdt - guest_tests_trampoline)
    movl %cr0, %eax
    andl $0x9fffffff, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    .byte 0x66, 0xea
    .long ap_start64
    .word {code}
trampoline_gdt:
    .word 31
    .long boot_gdt
guest_tests_trampoline_end:
    .code64
"#,
    code = const CODE_SELECTOR,
    options(att_syntax)
);

unsafe extern "C" {
    safe static guest_tests_stubs: [u8; 0];
    safe static guest_tests_trampoline: [u8; 0];
    safe static guest_tests_trampoline_end: [u8; 0];
}

/// Address of the first interrupt stub.
pub fn stubs() -> u64 {
    (&raw const guest_tests_stubs) as u64
}

/// The code to be copied to [`TRAMPOLINE_PAGE`].
pub fn trampoline() -> &'static [u8] {
    let start = &raw const guest_tests_trampoline;
    let length = (&raw const guest_tests_trampoline_end) as usize - start as usize;
    // SAFETY: the bytes between the two labels above, which nobody writes.
    unsafe { core::slice::from_raw_parts(start.cast(), length) }
}

/// Which VP starts next.
pub fn set_next_vp(vp: usize) {
    let top = STACKS.0.get() as u64 + ((vp % MAX_PROCESSORS + 1) * STACK_SIZE) as u64;
    NEXT_STACK.store(top, Ordering::Release);
    NEXT_INDEX.store(vp as u64, Ordering::Release);
}

extern "C" fn start(address: u64, is_pvh: u32) -> ! {
    vps::identify(0);
    interrupts::init();
    interrupts::load();
    vps::protect();
    crate::suites::run(match is_pvh {
        0 => Start::ZeroPage(address),
        _ => Start::StartInfo(address),
    })
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "note {info}");
    power::stop("panic")
}
