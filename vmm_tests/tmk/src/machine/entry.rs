//! First instructions of VP 0 and of the other VPs, and of every exception.

#![expect(
    unsafe_code,
    reason = "entry points in assembly, and their way into Rust"
)]

use super::console::Console;
use super::memory;
use super::probe::{FAULT_TAKEN, PROBE_MAGIC, rdmsr, wrmsr};
use core::arch::global_asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use hv_defs::msr::{CrashControl, HV_X64_MSR_CRASH_CTL, HV_X64_MSR_CRASH_P0, HV_X64_MSR_CRASH_P4};

/// P0 of a crash report of the payload about itself: "TMK-DIED".
pub const CRASH_TAG: u64 = u64::from_le_bytes(*b"TMK-DIED");

/// Selectors of the payload's own GDT.
pub mod selector {
    /// Code, supervisor.
    pub const KERNEL_CODE: u16 = 0x08;
    /// Data, supervisor.
    pub const KERNEL_DATA: u16 = 0x10;
    /// Data, user.
    pub const USER_DATA: u16 = 0x18 | 3;
    /// Code, user.
    pub const USER_CODE: u16 = 0x20 | 3;
    /// Task state.
    pub const TASK: u16 = 0x28;
}

/// Vectors that have a handler: all exceptions.
pub const VECTORS: usize = 32;
/// Bytes from one exception stub to the next.
pub const STUB_SIZE: u64 = 16;

/// Registers as the host set them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EntryState {
    /// Offset of the info page from the image base.
    pub rsi: u64,
    /// RBP, R8 to R12, RSP, as in `abi::ENTRY_PATTERNS`.
    pub patterns: [u64; 7],
    /// Flags.
    pub rflags: u64,
}

/// What the processor and the stub put on the stack.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ExceptionFrame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// _start: save what the host set, take the own stack, apply the relocations of the
// position-independent executable (only R_X86_64_RELATIVE exist in a static one), go on
// in Rust. Nothing before that may use an absolute address.
//
// tmk_ap_entry: the starter has put the VP's number on the stack.
//
// tmk_exception_common: if R10 holds the magic, the instruction was a probe: R10 gets
// what happened and execution goes on at R11 (and, from user mode, with the stack in
// R9). Works on every VP, because it needs no memory.
//
// tmk_user_probe(rip): runs code in user mode until it faults; returns what happened.
global_asm!(
    r#"
    .section .text.tmk_start, "ax"
    .global _start
_start:
    cld
    lea rax, [rip + {entry_state}]
    mov [rax], rsi
    mov [rax + 8], rbp
    mov [rax + 16], r8
    mov [rax + 24], r9
    mov [rax + 32], r10
    mov [rax + 40], r11
    mov [rax + 48], r12
    mov [rax + 56], rsp
    lea rsp, [rip + tmk_stack_top]
    pushfq
    pop qword ptr [rax + 64]
    lea rdi, [rip + __ehdr_start]
    lea rsi, [rip + _DYNAMIC]
    xor ecx, ecx
    xor edx, edx
2:  mov rax, [rsi]
    test rax, rax
    jz 5f
    cmp rax, 7
    jne 3f
    mov rcx, [rsi + 8]
3:  cmp rax, 8
    jne 4f
    mov rdx, [rsi + 8]
4:  add rsi, 16
    jmp 2b
5:  add rcx, rdi
    add rdx, rcx
6:  cmp rcx, rdx
    jae 7f
    mov rax, [rcx + 16]
    add rax, rdi
    mov r8, [rcx]
    mov [rdi + r8], rax
    add rcx, 24
    jmp 6b
7:  lea rsi, [rip + {entry_state}]
    xor ebp, ebp
    call {main}
    ud2

    .global tmk_ap_entry
tmk_ap_entry:
    cld
    pop rdi
    xor ebp, ebp
    call {ap_main}
    ud2

    .balign 16
    .global tmk_exception_stubs
tmk_exception_stubs:
    .set tmk_vector, 0
    .rept {vectors}
    .balign 16
    .if ((0x60227d00 >> tmk_vector) & 1) == 0
    .byte 0x6a, 0
    .endif
    .byte 0x6a, tmk_vector
    jmp tmk_exception_common
    .set tmk_vector, tmk_vector + 1
    .endr

tmk_exception_common:
    push rax
    movabs rax, {magic}
    cmp r10, rax
    pop rax
    jne 3f
    mov r10, [rsp + 8]
    shl r10, 32
    or r10, [rsp]
    or r10, {taken}
    test byte ptr [rsp + 24], 3
    jz 2f
    mov qword ptr [rsp + 24], {kernel_code}
    mov [rsp + 40], r9
    mov qword ptr [rsp + 48], {kernel_data}
2:  mov [rsp + 16], r11
    add rsp, 16
    iretq
3:  mov rdi, rsp
    and rsp, -16
    call {unexpected}
    ud2

    .global tmk_user_probe
tmk_user_probe:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov r9, rsp
    lea r11, [rip + 2f]
    movabs r10, {magic}
    push {user_data}
    push r9
    push 2
    push {user_code}
    push rdi
    iretq
2:  mov rax, r10
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .global tmk_user_vmmcall
tmk_user_vmmcall:
    vmmcall
    int3
    .global tmk_user_rdmsr
tmk_user_rdmsr:
    mov ecx, 0x40000002
    rdmsr
    int3

    .section .bss.tmk_stack, "aw", @nobits
    .balign 16
    .skip 65536
tmk_stack_top:
"#,
    entry_state = sym ENTRY_STATE,
    main = sym tmk_main,
    ap_main = sym super::vps::ap_main,
    unexpected = sym unexpected_exception,
    vectors = const VECTORS,
    magic = const PROBE_MAGIC,
    taken = const FAULT_TAKEN,
    kernel_code = const selector::KERNEL_CODE,
    kernel_data = const selector::KERNEL_DATA,
    user_code = const selector::USER_CODE,
    user_data = const selector::USER_DATA,
);

/// Written by `_start`, before any Rust code runs.
static mut ENTRY_STATE: EntryState = EntryState {
    rsi: 0,
    patterns: [0; 7],
    rflags: 0,
};

unsafe extern "C" {
    safe static tmk_exception_stubs: [u8; 0];
    safe static tmk_user_vmmcall: [u8; 0];
    safe static tmk_user_rdmsr: [u8; 0];
    fn tmk_ap_entry();
    safe fn tmk_user_probe(rip: u64) -> u64;
}

/// Code that runs in user mode until it faults.
#[derive(Debug, Clone, Copy)]
pub enum UserCode {
    /// VMMCALL, then INT3.
    Vmmcall,
    /// RDMSR of the VP index, then INT3.
    Rdmsr,
}

/// Address of the first exception stub.
pub fn exception_stubs() -> u64 {
    (&raw const tmk_exception_stubs) as u64
}

/// Where the other VPs start.
pub fn ap_entry() -> u64 {
    tmk_ap_entry as *const () as u64
}

/// Runs `code` in user mode and returns what ended it, in the form of R10 (see
/// [`super::probe`]).
pub fn run_in_user_mode(code: UserCode) -> u64 {
    tmk_user_probe(match code {
        UserCode::Vmmcall => (&raw const tmk_user_vmmcall) as u64,
        UserCode::Rdmsr => (&raw const tmk_user_rdmsr) as u64,
    })
}

extern "C" fn tmk_main(image_base: u64, state: *const EntryState) -> ! {
    // SAFETY: `_start` passes the address of ENTRY_STATE, which nobody writes any more.
    let state = unsafe { *state };
    crate::suites::run(image_base, &state)
}

extern "C" fn unexpected_exception(frame: *const ExceptionFrame) -> ! {
    // SAFETY: the stub passes the stack pointer, where the frame lies.
    let frame = unsafe { *frame };
    let ExceptionFrame {
        vector,
        error,
        rip,
        rsp,
        ..
    } = frame;
    let _ = writeln!(
        Console,
        "tmk: fatal: exception {vector} error {error:#x} at {rip:#x} (rsp {rsp:#x})"
    );
    report_crash(
        [CRASH_TAG, vector, error, 0, 0],
        Some("unexpected exception"),
    )
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "tmk: fatal: {info}");
    report_crash([CRASH_TAG, 0, 0, 0, 0], Some("panic"))
}

/// Tells the host through the crash MSRs that the payload has died, then stops. With a
/// message, P3 and P4 point to it.
pub fn report_crash(mut parameters: [u64; 5], message: Option<&str>) -> ! {
    let mut control = CrashControl::new().with_crash_notify(true);
    if let Some(message) = message {
        // The message must be in one physical run: static text or scratch is.
        parameters[3] = message.as_ptr() as u64;
        parameters[4] = message.len() as u64;
        control.set_crash_message(true);
    }
    for (msr, value) in (HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4).zip(parameters) {
        // The host may not offer the MSRs; the triple fault below is seen in any case.
        let _ = wrmsr(msr, value);
    }
    let _ = wrmsr(HV_X64_MSR_CRASH_CTL, control.into_bits());
    // A host that goes on after the report is told by a triple fault.
    let _ = rdmsr(HV_X64_MSR_CRASH_CTL);
    memory::triple_fault()
}
