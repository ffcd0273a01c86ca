//! The host's interrupt table.
//!
//! The host takes no interrupt: IF is clear on every CPU, and GIF too once a CPU runs
//! VPs. An exception is a bug of the host and ends the machine with the registers in the
//! log. The one event that the host expects is the NMI by which a parked CPU is told to
//! look for work: see [`NmiSleeper`].

#![expect(unsafe_code, reason = "interrupt table and the sleep loop in assembly")]

use super::console::log;
use super::{console, exit};
use boot_events::HOST_ERROR_PREFIX;
use core::arch::global_asm;
use spin::Once;
use vsm_host::log_text;
use vsm_host::partition::mailbox::Sleeper;
use vsm_host_defs::ExitReason;
use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::InterruptDescriptorTable;

/// What the stubs leave on the stack.
#[repr(C)]
struct Frame {
    /// r15 … rax, in the order of the pops.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const REGISTER_NAMES: [&str; 15] = [
    "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx",
    "rax",
];

/// Bytes from one stub to the next.
const STUB_SIZE: u64 = 16;

unsafe extern "C" {
    static exception_stubs: u8;
    static nmi_entry: u8;
    fn sleep_until_nmi();
    fn take_pending_nmi();
}

/// Makes this CPU use the host's table.
pub(crate) fn load() {
    static TABLE: Once<InterruptDescriptorTable> = Once::new();
    TABLE
        .call_once(|| {
            let stub =
                |vector: u64| VirtAddr::from_ptr(&raw const exception_stubs) + vector * STUB_SIZE;
            let mut table = InterruptDescriptorTable::new();
            // SAFETY: every address is the entry of a stub below that saves what it uses
            // and expects the frame of its vector (with or without an error code).
            unsafe {
                table.divide_error.set_handler_addr(stub(0));
                table.debug.set_handler_addr(stub(1));
                table
                    .non_maskable_interrupt
                    .set_handler_addr(VirtAddr::from_ptr(&raw const nmi_entry));
                table.breakpoint.set_handler_addr(stub(3));
                table.overflow.set_handler_addr(stub(4));
                table.bound_range_exceeded.set_handler_addr(stub(5));
                table.invalid_opcode.set_handler_addr(stub(6));
                table.device_not_available.set_handler_addr(stub(7));
                table.double_fault.set_handler_addr(stub(8));
                table.invalid_tss.set_handler_addr(stub(10));
                table.segment_not_present.set_handler_addr(stub(11));
                table.stack_segment_fault.set_handler_addr(stub(12));
                table.general_protection_fault.set_handler_addr(stub(13));
                table.page_fault.set_handler_addr(stub(14));
                table.x87_floating_point.set_handler_addr(stub(16));
                table.alignment_check.set_handler_addr(stub(17));
                table.machine_check.set_handler_addr(stub(18));
                table.simd_floating_point.set_handler_addr(stub(19));
                table.vmm_communication_exception.set_handler_addr(stub(29));
                table.security_exception.set_handler_addr(stub(30));
            }
            table
        })
        .load();
}

/// How a CPU without work waits for the NMI that brings some. GIF is clear outside of
/// these functions; SVM must be on.
pub(crate) struct NmiSleeper;

impl Sleeper for NmiSleeper {
    fn sleep(&mut self) {
        // SAFETY: opens NMIs and halts until the handler below ends the loop; changes no
        // register and no memory. IF is clear, so nothing but an NMI is taken.
        unsafe { sleep_until_nmi() }
    }

    fn drain(&mut self) {
        // SAFETY: opens and closes NMIs; the handler changes nothing outside the loop.
        unsafe { take_pending_nmi() }
    }

    fn relax(&mut self) {
        core::hint::spin_loop();
    }
}

#[unsafe(no_mangle)]
extern "C" fn host_exception(frame: &Frame) -> ! {
    exit::claim();
    console::take_by_force();
    log!(
        "{}exception {} (error {:#x}) at rip {:#x} cs {:#x} rflags {:#x} rsp {:#x} cr2 {:#x}",
        log_text(HOST_ERROR_PREFIX),
        frame.vector,
        frame.error,
        frame.rip,
        frame.cs,
        frame.rflags,
        frame.rsp,
        Cr2::read_raw()
    );
    for (names, values) in REGISTER_NAMES.chunks(5).zip(frame.registers.chunks(5)) {
        log!(
            "  {} {:#x} {} {:#x} {} {:#x} {} {:#x} {} {:#x}",
            names[0],
            values[0],
            names[1],
            values[1],
            names[2],
            values[2],
            names[3],
            values[3],
            names[4],
            values[4]
        );
    }
    exit::end(ExitReason::HostError)
}

global_asm!(
    r#"
    .section .text.exceptions, "ax", @progbits
    .code64
    .balign 16
    .globl exception_stubs, nmi_entry, sleep_until_nmi, take_pending_nmi
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    pushq   $0                  // these bring no error code
    .endif
    pushq   $vector
    jmp     exception_common
    .set vector, vector + 1
    .endr

exception_common:
    pushq   %rax
    pushq   %rbx
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    pushq   %rdi
    pushq   %rbp
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    movq    %rsp, %rdi
    andq    $-16, %rsp
    call    host_exception
    ud2

sleep_until_nmi:
    stgi
sleep_loop:
    hlt
    jmp     sleep_loop
sleep_end:
    clgi
    ret

take_pending_nmi:
    stgi
    pause
    clgi
    ret

nmi_entry:
    pushq   %rax
    pushq   %rcx
    movq    16(%rsp), %rax      // where the NMI came
    leaq    sleep_loop(%rip), %rcx
    cmpq    %rcx, %rax
    jb      1f
    leaq    sleep_end(%rip), %rcx
    cmpq    %rcx, %rax
    jae     1f
    movq    %rcx, 16(%rsp)      // leave the loop, also if the CPU was not yet halted
1:  popq    %rcx
    popq    %rax
    iretq
"#,
    options(att_syntax)
);
