//! Instructions that may fault, and what happened.
//!
//! R10 holds a magic number and R11 the address to go on at, so the exception handler
//! knows a probe without looking at memory (see `entry`). Afterwards R10 is 0, or says
//! which exception came.

#![expect(unsafe_code, reason = "privileged instructions under test")]

use super::entry::{self, UserCode};
use core::arch::asm;

/// Marks a probe in R10: "TMKPROBE".
pub const PROBE_MAGIC: u64 = u64::from_le_bytes(*b"TMKPROBE");
/// Set in R10 by the exception handler, beside the vector (bits 0-7) and the error code
/// (bits 32-63).
pub const FAULT_TAKEN: u32 = 1 << 8;

/// #UD.
pub const VECTOR_UD: u8 = 6;
/// #GP.
pub const VECTOR_GP: u8 = 13;

/// An exception that a probe provoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 if there is none.
    pub error: u32,
}

/// Registers before and after a probed instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// R8.
    pub r8: u64,
    /// 0 before; 1 after, if the instruction behind was reached intact.
    pub marker: u64,
}

fn outcome<T>(r10: u64, value: T) -> Result<T, Fault> {
    if r10 & u64::from(FAULT_TAKEN) == 0 {
        Ok(value)
    } else {
        Err(Fault {
            vector: r10 as u8,
            error: (r10 >> 32) as u32,
        })
    }
}

/// Defines a function that runs the given instruction bytes. Behind them stands an
/// instruction that sets the marker: if the host resumes one byte too early or too late,
/// the marker is not set or a fault comes.
macro_rules! probed {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(mut r: Registers) -> Result<Registers, Fault> {
            let mut r10 = PROBE_MAGIC;
            // SAFETY: the instructions under test change registers only, or memory that
            // their operands name, which are the caller's scratch pages, or they fault;
            // R10 and R11 follow the protocol of the exception handler. RBX is saved on
            // the stack, which a fault leaves as it was.
            unsafe {
                asm!(
                    "push rbx",
                    "mov rbx, rsi",
                    "lea r11, [rip + 2f]",
                    $instruction,
                    "mov r9, 1",
                    "xor r10d, r10d",
                    "2:",
                    "mov rsi, rbx",
                    "pop rbx",
                    inout("rax") r.rax,
                    inout("rsi") r.rbx,
                    inout("rcx") r.rcx,
                    inout("rdx") r.rdx,
                    inout("r8") r.r8,
                    inout("r9") r.marker,
                    inout("r10") r10,
                    out("r11") _,
                    out("rdi") _,
                );
            }
            outcome(r10, r)
        }
    )*};
}

probed! {
    /// CPUID.
    cpuid = ".byte 0x0f, 0xa2";
    /// CPUID behind an operand-size prefix.
    cpuid_66 = ".byte 0x66, 0x0f, 0xa2";
    /// CPUID behind a REX prefix.
    cpuid_rex = ".byte 0x48, 0x0f, 0xa2";
    /// CPUID behind a segment and a repeat prefix.
    cpuid_2e_f3 = ".byte 0x2e, 0xf3, 0x0f, 0xa2";
    /// CPUID behind as many prefixes as an instruction may have.
    cpuid_longest = ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x0f,0xa2";
    /// RDMSR.
    rdmsr_plain = ".byte 0x0f, 0x32";
    /// RDMSR behind a REX prefix.
    rdmsr_rex = ".byte 0x48, 0x0f, 0x32";
    /// RDMSR behind an operand-size prefix.
    rdmsr_66 = ".byte 0x66, 0x0f, 0x32";
    /// WRMSR.
    wrmsr_plain = ".byte 0x0f, 0x30";
    /// WRMSR behind a segment prefix and REX.
    wrmsr_2e_rex = ".byte 0x2e, 0x48, 0x0f, 0x30";
    /// VMMCALL.
    vmmcall = ".byte 0x0f, 0x01, 0xd9";
    /// VMMCALL behind an operand-size prefix.
    vmmcall_66 = ".byte 0x66, 0x0f, 0x01, 0xd9";
    /// VMMCALL behind a REX prefix.
    vmmcall_rex = ".byte 0x48, 0x0f, 0x01, 0xd9";
    /// VMRUN.
    vmrun = ".byte 0x0f, 0x01, 0xd8";
    /// VMLOAD.
    vmload = ".byte 0x0f, 0x01, 0xda";
    /// VMSAVE.
    vmsave = ".byte 0x0f, 0x01, 0xdb";
    /// STGI.
    stgi = ".byte 0x0f, 0x01, 0xdc";
    /// CLGI.
    clgi = ".byte 0x0f, 0x01, 0xdd";
    /// SKINIT.
    skinit = ".byte 0x0f, 0x01, 0xde";
    /// INVLPGA.
    invlpga = ".byte 0x0f, 0x01, 0xdf";
    /// XGETBV.
    xgetbv = ".byte 0x0f, 0x01, 0xd0";
    /// XSETBV.
    xsetbv = ".byte 0x0f, 0x01, 0xd1";
    /// RDTSCP.
    rdtscp = ".byte 0x0f, 0x01, 0xf9";
    /// IN AL, DX.
    in_al = "in al, dx";
    /// IN AX, DX.
    in_ax = "in ax, dx";
    /// IN EAX, DX.
    in_eax = "in eax, dx";
    /// OUT DX, AL.
    out_al = "out dx, al";
    /// OUT DX, AX.
    out_ax = "out dx, ax";
    /// OUT DX, EAX.
    out_eax = "out dx, eax";
    /// REP OUTSB from the address in RBX.
    rep_outsb = "xchg rsi, rbx; rep outsb; xchg rsi, rbx";
    /// REP INSB to the address in RBX.
    rep_insb = "mov rdi, rbx; rep insb";
    /// CALL of the address in RBX, which is scratch memory with code.
    call_rbx = "call rbx";
    /// INT3, to see that probes work at all.
    int3 = "int3";
}

/// Reads an MSR.
pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    let r = rdmsr_plain(Registers {
        rcx: msr.into(),
        ..Default::default()
    })?;
    Ok((r.rax & 0xffff_ffff) | (r.rdx << 32))
}

/// Writes an MSR.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    wrmsr_plain(Registers {
        rcx: msr.into(),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        ..Default::default()
    })?;
    Ok(())
}

/// EFER.
pub const MSR_EFER: u32 = 0xc000_0080;

/// CPUID leaf `leaf`, subleaf 0: EAX, EBX, ECX, EDX.
pub fn cpuid_leaf(leaf: u32) -> Result<[u32; 4], Fault> {
    cpuid_subleaf(leaf, 0)
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid_subleaf(leaf: u32, subleaf: u32) -> Result<[u32; 4], Fault> {
    let r = cpuid(Registers {
        rax: leaf.into(),
        rcx: subleaf.into(),
        ..Default::default()
    })?;
    Ok([r.rax as u32, r.rbx as u32, r.rcx as u32, r.rdx as u32])
}

/// Runs code in user mode and returns the fault that ended it.
pub fn user_fault(code: UserCode) -> Option<Fault> {
    outcome(entry::run_in_user_mode(code), ()).err()
}
