//! The host's interrupt table.
//!
//! The host takes no interrupt: IF is clear on every CPU, or GIF once a CPU runs VPs. An
//! exception is a bug of the host and ends the machine with the registers in the log. The
//! one event that the host expects is the NMI by which a CPU is called, out of its sleep
//! or out of a VTL: see [`NmiSleeper`].

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
    let address = |symbol: &u8| VirtAddr::from_ptr(&raw const *symbol);
    let fill = || {
        let mut table = InterruptDescriptorTable::new();
        /// Sets one handler per line of the list.
        macro_rules! stubs {
            ($($vector:literal $name:ident)*) => {
                // SAFETY: every address is the entry of a stub below that saves what it
                // uses and expects the frame of its vector (with or without error code).
                unsafe {
                    $(table.$name.set_handler_addr(address(&exception_stubs) + $vector * STUB_SIZE);)*
                    table.non_maskable_interrupt.set_handler_addr(address(&nmi_entry));
                }
            };
        }
        stubs!(0 divide_error 1 debug 3 breakpoint 4 overflow 5 bound_range_exceeded
            6 invalid_opcode 7 device_not_available 8 double_fault 10 invalid_tss
            11 segment_not_present 12 stack_segment_fault 13 general_protection_fault
            14 page_fault 16 x87_floating_point 17 alignment_check 18 machine_check
            19 simd_floating_point 29 vmm_communication_exception 30 security_exception);
        table
    };
    TABLE.call_once(fill).load();
}

/// How a CPU without work waits for the NMI that brings some. GIF is clear outside of
/// these functions; SVM must be on.
pub(crate) struct NmiSleeper;

impl Sleeper for NmiSleeper {
    fn sleep(&mut self) {
        // SAFETY: opens NMIs and halts until the handler below ends the loop; changes no
        // register and no memory. IF is clear meanwhile, so nothing but an NMI is taken.
        unsafe { sleep_until_nmi() }
    }

    fn drain(&mut self) {
        // SAFETY: opens and closes NMIs, with IF clear; the handler changes nothing outside
        // the loop.
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
    log!(
        "  r15 to r8, rbp, rdi, rsi, rdx, rcx, rbx, rax: {:x?}",
        frame.registers
    );
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
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    pushq   %\register
    .endr
    movq    %rsp, %rdi
    andq    $-16, %rsp
    call    host_exception
    ud2

sleep_until_nmi:
    cli
    stgi
sleep_loop:
    hlt
    jmp     sleep_loop
sleep_end:
    clgi
    sti                         // as `enable_svm` has left it
    ret

take_pending_nmi:
    cli
    stgi
    pause
    clgi
    sti
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
