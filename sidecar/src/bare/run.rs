//! The return to VTL0, and what it comes back with.

use super::calls;
use super::cpu::Cpu;
use super::interrupts;
use core::arch::asm;
use core::arch::global_asm;
use core::mem::offset_of;
use hv_defs::intercept::VtlEntryReason;
use hv_defs::vsm::HvVpAssistPage;
use sidecar::map;
use sidecar_defs::CommandPage;
use sidecar_defs::command::CpuContext;
use sidecar_defs::handshake;

// RDI: the context. All registers but RSP are VTL0's in between; RAX and RCX get there by the
// VP assist page. The code of the hypervisor takes RCX = 0.
global_asm!(
    ".pushsection .text",
    "sidecar_enter_vtl0:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov rax, [rdi + {gp} + 8 * 4]",
    "mov cr2, rax",
    "mov rdx, [rdi + {gp} + 8 * 2]",
    "mov rbx, [rdi + {gp} + 8 * 3]",
    "mov rbp, [rdi + {gp} + 8 * 5]",
    "mov rsi, [rdi + {gp} + 8 * 6]",
    "mov r8, [rdi + {gp} + 8 * 8]",
    "mov r9, [rdi + {gp} + 8 * 9]",
    "mov r10, [rdi + {gp} + 8 * 10]",
    "mov r11, [rdi + {gp} + 8 * 11]",
    "mov r12, [rdi + {gp} + 8 * 12]",
    "mov r13, [rdi + {gp} + 8 * 13]",
    "mov r14, [rdi + {gp} + 8 * 14]",
    "mov r15, [rdi + {gp} + 8 * 15]",
    "mov rdi, [rdi + {gp} + 8 * 7]",
    "xor ecx, ecx",
    "call [rip + {vtl_return}]",
    "push rdi",
    "mov rdi, [rsp + 8]",
    "mov [rdi + {gp} + 8 * 0], rax",
    "mov [rdi + {gp} + 8 * 1], rcx",
    "mov [rdi + {gp} + 8 * 2], rdx",
    "mov [rdi + {gp} + 8 * 3], rbx",
    "mov [rdi + {gp} + 8 * 5], rbp",
    "mov [rdi + {gp} + 8 * 6], rsi",
    "mov [rdi + {gp} + 8 * 8], r8",
    "mov [rdi + {gp} + 8 * 9], r9",
    "mov [rdi + {gp} + 8 * 10], r10",
    "mov [rdi + {gp} + 8 * 11], r11",
    "mov [rdi + {gp} + 8 * 12], r12",
    "mov [rdi + {gp} + 8 * 13], r13",
    "mov [rdi + {gp} + 8 * 14], r14",
    "mov [rdi + {gp} + 8 * 15], r15",
    "mov rax, cr2",
    "mov [rdi + {gp} + 8 * 4], rax",
    "pop rax",
    "mov [rdi + {gp} + 8 * 7], rax",
    "cld",
    "pop rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    gp = const offset_of!(CpuContext, gp),
    vtl_return = sym calls::VTL_RETURN,
);

unsafe extern "C" {
    fn sidecar_enter_vtl0(context: *mut CpuContext);
}

/// Runs VTL0 until it is intercepted (true) or the CPU is told to stop (false).
pub(super) fn run_vp(cpu: &mut Cpu, page: &mut CommandPage) -> Result<bool, VtlEntryReason> {
    let context = &mut page.cpu_context;
    let assist: *mut HvVpAssistPage = core::ptr::with_exposed_provenance_mut(map::ASSIST as usize);
    // SAFETY: the area is aligned, and any content is accepted but reserved bits of MXCSR,
    // which the worker does not set; this kernel does not use the state.
    unsafe { asm!("fxrstor64 [{}]", in(reg) context.fx.as_ptr(), options(nostack)) };
    let result = loop {
        if handshake::must_stop(cpu.status()) {
            break Ok(false);
        }
        // SAFETY: the page is mapped, and the hypervisor uses it only while VTL0 runs. The
        // call preserves what the ABI demands.
        let reason = unsafe {
            (&raw mut (*assist).vtl_ret_x64_rax).write_volatile(context.gp[0]);
            (&raw mut (*assist).vtl_ret_x64_rcx).write_volatile(context.gp[1]);
            sidecar_enter_vtl0(context);
            (&raw const (*assist).vtl_entry_reason).read_volatile()
        };
        match reason {
            // It is the worker's, most likely, which has something to say.
            VtlEntryReason::INTERRUPT => interrupts::take(),
            VtlEntryReason::INTERCEPT => {
                // SAFETY: as above; every content is valid.
                page.intercept =
                    unsafe { (&raw const (*assist).intercept_message).read_volatile() };
                break Ok(true);
            }
            other => break Err(other),
        }
    };
    // SAFETY: the area is aligned, writable and large enough.
    unsafe { asm!("fxsave64 [{}]", in(reg) page.cpu_context.fx.as_mut_ptr(), options(nostack)) };
    result
}
