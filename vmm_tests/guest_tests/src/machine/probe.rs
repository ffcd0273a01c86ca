//! Instructions that may fault, and what happened.
//!
//! R10 holds a magic number and R11 the address to go on at, so that the exception handler
//! knows a probe without looking at memory (see `entry`). Afterwards R10 is 0, or says
//! which exception came.

#![expect(unsafe_code, reason = "privileged instructions under test")]

use crate::report::Failure;
use core::arch::asm;

/// Marks a probe in R10: "GUESTTRY".
pub const PROBE_MAGIC: u64 = u64::from_le_bytes(*b"GUESTTRY");
/// Set in R10 by the exception handler, beside the vector (bits 0-7) and the error code
/// (bits 32-63).
pub const FAULT_TAKEN: u32 = 1 << 8;

/// #DB.
pub const DB: u8 = 1;
/// #UD.
pub const UD: u8 = 6;
/// #GP.
pub const GP: u8 = 13;

/// An exception that a probe has provoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 if there is none.
    pub error: u32,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::new(format_args!(
            "unexpected exception {} error {:#x}",
            fault.vector, fault.error
        ))
    }
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
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// R8.
    pub r8: u64,
}

/// An instruction that may fault.
pub type Instruction = fn(Registers) -> Result<Registers, Fault>;

/// Defines a function that runs the given instructions.
macro_rules! probed {
    ($($(#[$doc:meta])* $name:ident = $instructions:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(mut r: Registers) -> Result<Registers, Fault> {
            let mut r10 = PROBE_MAGIC;
            // SAFETY: the instructions under test change registers only, or memory that
            // their operands name, which is scratch memory or not this program's, or they
            // fault; R10 and R11 follow the protocol of the exception handler. RBX is kept
            // on the stack, whose top is in R9 meanwhile.
            unsafe {
                asm!(
                    "push rbx",
                    "mov rbx, r9",
                    "mov r9, rsp",
                    "lea r11, [rip + 2f]",
                    $instructions,
                    "xor r10d, r10d",
                    "2:",
                    "mov rsp, r9",
                    "mov r9, rbx",
                    "pop rbx",
                    inout("rax") r.rax,
                    inout("r9") r.rbx,
                    inout("rcx") r.rcx,
                    inout("rdx") r.rdx,
                    inout("rsi") r.rsi,
                    inout("rdi") r.rdi,
                    inout("r8") r.r8,
                    inout("r10") r10,
                    out("r11") _,
                );
            }
            if r10 & u64::from(FAULT_TAKEN) == 0 {
                Ok(r)
            } else {
                Err(Fault { vector: r10 as u8, error: (r10 >> 32) as u32 })
            }
        }
    )*};
}

probed! {
    /// RDMSR.
    rdmsr_instruction = "rdmsr";
    /// WRMSR.
    wrmsr_instruction = "wrmsr";
    /// CPUID.
    cpuid_instruction = "cpuid";
    /// VMMCALL, how AMD processors call a hypervisor.
    vmmcall = ".byte 0x0f, 0x01, 0xd9";
    /// VMCALL, how Intel processors do.
    vmcall = ".byte 0x0f, 0x01, 0xc1";
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
    /// VMXON with the operand at RBX.
    vmxon = "vmxon qword ptr [rbx]";
    /// RSM.
    rsm = "rsm";
    /// XSETBV.
    xsetbv = "xsetbv";
    /// Sets all breakpoints: DR0 to DR3 to RAX to RDX, then DR7 to RDI.
    set_breakpoints = "mov dr0, rax; mov dr1, rbx; mov dr2, rcx; mov dr3, rdx; mov dr7, rdi";
    /// Reads DR7 into RAX, DR6 into RBX, DR0 to RCX, DR3 to RDX.
    debug_registers = "mov rax, dr7; mov rbx, dr6; mov rcx, dr0; mov rdx, dr3";
    /// Sets DR7 to RAX.
    set_dr7 = "mov dr7, rax";
    /// Sets DR7 to RAX by its other name.
    set_dr5 = "mov dr5, rax";
    /// Sets DR6 to RAX.
    set_dr6 = "mov dr6, rax";
    /// Sets DR3 to RAX.
    set_dr3 = "mov dr3, rax";
    /// Reads CR4 into RAX.
    cr4 = "mov rax, cr4";
    /// Sets CR4 to RAX.
    set_cr4 = "mov cr4, rax";
    /// INT3, to see that probes work at all.
    int3 = "int3";
    /// Reads a byte at RBX.
    load8 = "movzx eax, byte ptr [rbx]";
    /// Reads two bytes at RBX.
    load16 = "movzx eax, word ptr [rbx]";
    /// Reads four bytes at RBX.
    load32 = "mov eax, [rbx]";
    /// Reads eight bytes at RBX.
    load64 = "mov rax, [rbx]";
    /// Reads four bytes at RBX with sign.
    load_signed = "movsxd rax, dword ptr [rbx]";
    /// Writes a byte at RBX.
    store8 = "mov [rbx], al";
    /// Writes two bytes at RBX.
    store16 = "mov [rbx], ax";
    /// Writes four bytes at RBX.
    store32 = "mov [rbx], eax";
    /// Writes eight bytes at RBX.
    store64 = "mov [rbx], rax";
    /// Writes a constant of four bytes at RBX.
    store_constant = "mov dword ptr [rbx], 0x12345678";
    /// AND with four bytes at RBX.
    and32 = "and [rbx], eax";
    /// OR with four bytes at RBX.
    or32 = "or [rbx], eax";
    /// XOR of EAX with the four bytes at RBX.
    xor32_load = "xor eax, [rbx]";
    /// Exchange with four bytes at RBX.
    xchg32 = "xchg [rbx], eax";
    /// Flags of four bytes at RBX and EAX: AL is 1 if any bit is common.
    test32 = "test [rbx], eax; setnz al; movzx eax, al";
    /// Comparison of four bytes at RBX with EAX: AL is 1 if equal.
    cmp32 = "cmp [rbx], eax; sete al; movzx eax, al";
    /// Bit test of four bytes at RBX.
    bt32 = "bt dword ptr [rbx], 16; setc al; movzx eax, al";
    /// Copies RCX double words from RSI to RDI.
    rep_movsd = "rep movsd";
    /// Fills RCX double words at RDI with EAX.
    rep_stosd = "rep stosd";
    /// CALL of the address in RBX.
    call = "call rbx";
    /// IN AL, DX.
    in8 = "in al, dx";
    /// IN AX, DX.
    in16 = "in ax, dx";
    /// IN EAX, DX.
    in32 = "in eax, dx";
    /// OUT DX, AL.
    out8 = "out dx, al";
    /// OUT DX, AX.
    out16 = "out dx, ax";
    /// OUT DX, EAX.
    out32 = "out dx, eax";
    /// IN AL with the port in the instruction: CMOS data.
    in8_immediate = "in al, 0x71";
    /// OUT with the port in the instruction: CMOS index.
    out8_immediate = "out 0x70, al";
    /// REP OUTSB from RSI.
    rep_outsb = "rep outsb";
    /// REP OUTSD from RSI.
    rep_outsd = "rep outsd";
    /// REP INSB to RDI.
    rep_insb = "rep insb";
    /// REP INSW to RDI.
    rep_insw = "rep insw";
    /// REP INSD to RDI.
    rep_insd = "rep insd";
    /// INSB to RDI, backwards.
    insb_backwards = "std; insb; cld";
}

/// Reads an MSR.
pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    let r = rdmsr_instruction(Registers {
        rcx: msr.into(),
        ..Default::default()
    })?;
    Ok((r.rax & 0xffff_ffff) | (r.rdx << 32))
}

/// Writes an MSR.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    wrmsr_instruction(Registers {
        rcx: msr.into(),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        ..Default::default()
    })?;
    Ok(())
}

/// CPUID leaf `leaf`, subleaf 0: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    cpuid_subleaf(leaf, 0)
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid_subleaf(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = cpuid_instruction(Registers {
        rax: leaf.into(),
        rcx: subleaf.into(),
        ..Default::default()
    });
    // CPUID cannot fault here; if it does, nothing is what it should be.
    r.map_or([0; 4], |r| {
        [r.rax as u32, r.rbx as u32, r.rcx as u32, r.rdx as u32]
    })
}
