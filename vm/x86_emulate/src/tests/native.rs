//! Executes an instruction on the processor that runs the test.

#![expect(
    unsafe_code,
    reason = "the processor itself is what the emulator is compared with"
)]

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::arch::naked_asm;
use std::ffi::c_void;
use std::mem::offset_of;

/// Two pages for the operands, one for the instruction.
const OPERANDS: usize = 2 * 4096;
const ALL: usize = OPERANDS + 4096;
/// `MAP_32BIT`: so that 32-bit addresses reach it.
const LOW: MapFlags = MapFlags::from_bits_retain(0x40);

/// What an instruction finds and leaves.
#[repr(C)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) gprs: [u64; 16],
    pub(super) xmm: [u128; 16],
    pub(super) rflags: u64,
}

/// Memory for an instruction and its operands.
pub(super) struct Native {
    base: *mut c_void,
}

impl Native {
    pub(super) fn new() -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: a new mapping, that nobody else knows.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                ALL,
                protection,
                MapFlags::PRIVATE | LOW,
            )
        };
        Self {
            base: base.expect("memory for code"),
        }
    }

    /// Where the operands are; below 4 GiB.
    pub(super) fn address(&self) -> u64 {
        self.base as u64
    }

    /// Executes the instruction on these registers and operands. The caller promises that
    /// it touches no memory but the operands, leaves RSP alone, and does not fault.
    pub(super) fn run(&mut self, instruction: &[u8], registers: &mut Registers, world: &mut [u8]) {
        assert_eq!(world.len(), OPERANDS);
        assert!(instruction.len() < 16);
        const RETURN: u8 = 0xc3;
        // SAFETY: the mapping has this size, and only `self` uses it. The code is the
        // instruction, which the caller vouches for, and a return.
        unsafe {
            let operands = self.base.cast::<u8>();
            let code = operands.add(OPERANDS);
            operands.copy_from_nonoverlapping(world.as_ptr(), OPERANDS);
            code.copy_from_nonoverlapping(instruction.as_ptr(), instruction.len());
            code.add(instruction.len()).write(RETURN);
            execute(registers, code);
            operands.copy_to_nonoverlapping(world.as_mut_ptr(), OPERANDS);
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody uses any more.
        let result = unsafe { munmap(self.base, ALL) };
        debug_assert!(result.is_ok());
    }
}

/// Loads all registers but RSP, calls `code`, and stores them.
#[unsafe(naked)]
unsafe extern "sysv64" fn execute(registers: *mut Registers, code: *const u8) {
    naked_asm!(
        "push rbx; push rbp; push r12; push r13; push r14; push r15",
        "push rdi; push rsi",
        "movups xmm0, [rdi + {xmm}]; movups xmm1, [rdi + {xmm} + 16]",
        "movups xmm2, [rdi + {xmm} + 32]; movups xmm3, [rdi + {xmm} + 48]",
        "movups xmm4, [rdi + {xmm} + 64]; movups xmm5, [rdi + {xmm} + 80]",
        "movups xmm6, [rdi + {xmm} + 96]; movups xmm7, [rdi + {xmm} + 112]",
        "movups xmm8, [rdi + {xmm} + 128]; movups xmm9, [rdi + {xmm} + 144]",
        "movups xmm10, [rdi + {xmm} + 160]; movups xmm11, [rdi + {xmm} + 176]",
        "movups xmm12, [rdi + {xmm} + 192]; movups xmm13, [rdi + {xmm} + 208]",
        "movups xmm14, [rdi + {xmm} + 224]; movups xmm15, [rdi + {xmm} + 240]",
        "push qword ptr [rdi + {rflags}]; popfq",
        "mov rax, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]; mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]; mov r9, [rdi + 72]; mov r10, [rdi + 80]; mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]; mov r13, [rdi + 104]; mov r14, [rdi + 112]; mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "call [rsp]",
        // Neither XCHG nor MOV nor PUSH changes a flag.
        "xchg rdi, [rsp + 8]",
        "mov [rdi], rax; mov [rdi + 8], rcx; mov [rdi + 16], rdx; mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp; mov [rdi + 48], rsi",
        "mov [rdi + 64], r8; mov [rdi + 72], r9; mov [rdi + 80], r10; mov [rdi + 88], r11",
        "mov [rdi + 96], r12; mov [rdi + 104], r13; mov [rdi + 112], r14; mov [rdi + 120], r15",
        "pushfq; pop [rdi + {rflags}]",
        "cld",
        "mov rax, [rsp + 8]; mov [rdi + 56], rax",
        "movups [rdi + {xmm}], xmm0; movups [rdi + {xmm} + 16], xmm1",
        "movups [rdi + {xmm} + 32], xmm2; movups [rdi + {xmm} + 48], xmm3",
        "movups [rdi + {xmm} + 64], xmm4; movups [rdi + {xmm} + 80], xmm5",
        "movups [rdi + {xmm} + 96], xmm6; movups [rdi + {xmm} + 112], xmm7",
        "movups [rdi + {xmm} + 128], xmm8; movups [rdi + {xmm} + 144], xmm9",
        "movups [rdi + {xmm} + 160], xmm10; movups [rdi + {xmm} + 176], xmm11",
        "movups [rdi + {xmm} + 192], xmm12; movups [rdi + {xmm} + 208], xmm13",
        "movups [rdi + {xmm} + 224], xmm14; movups [rdi + {xmm} + 240], xmm15",
        "add rsp, 16",
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
        "ret",
        xmm = const offset_of!(Registers, xmm),
        rflags = const offset_of!(Registers, rflags),
    )
}
