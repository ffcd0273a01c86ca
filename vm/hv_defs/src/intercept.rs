//! Intercept messages: why a lower VTL was left (TLFS "Intercepts", "Virtual Processor
//! Execution State", and the reference of each message).
//!
//! Each is the payload of a [`crate::synic::HvMessage`], which VTL2 finds in its VP assist
//! page when it is entered for [`VtlEntryReason::INTERCEPT`].

use crate::vp_context::HvX64SegmentRegister;
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of an instruction that a message has room for.
pub const INSTRUCTION_BYTES: usize = 16;

/// `HV_VTL_ENTRY_REASON`: why a VTL was entered from a lower one.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum VtlEntryReason {
    /// Not entered yet.
    RESERVED = 0,
    /// The lower VTL made a VTL call.
    VTL_CALL = 1,
    /// An interrupt for the VTL is there.
    INTERRUPT = 2,
    /// The lower VTL did what is intercepted.
    INTERCEPT = 3,
}

/// `HV_INTERCEPT_ACCESS_TYPE`: what was tried.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum AccessType {
    /// Reading: memory, RDMSR, IN.
    READ = 0,
    /// Writing: memory, WRMSR, OUT.
    WRITE = 1,
    /// Execution.
    EXECUTE = 2,
}

/// `HV_X64_VP_EXECUTION_STATE`: the mode that the VP was in.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecutionState {
    /// Privilege level.
    #[bits(2)]
    pub cpl: u8,
    /// CR0.PE.
    pub cr0_pe: bool,
    /// CR0.AM.
    pub cr0_am: bool,
    /// EFER.LMA.
    pub efer_lma: bool,
    /// A breakpoint in DR7 is on.
    pub debug_active: bool,
    /// An event was being delivered.
    pub interruption_pending: bool,
    /// The VTL that was left.
    #[bits(4)]
    pub vtl: u8,
    /// In an enclave.
    pub enclave_mode: bool,
    /// The instruction after STI or a load of SS.
    pub interrupt_shadow: bool,
    /// #VE is in progress.
    pub virtualization_fault_active: bool,
    #[bits(2)]
    _reserved: u8,
}

/// Length of the instruction, and the task priority.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LengthAndCr8 {
    /// Bytes; 0 if not known.
    #[bits(4)]
    pub instruction_length: u8,
    /// CR8.
    #[bits(4)]
    pub cr8: u8,
}

/// `HV_X64_INTERCEPT_MESSAGE_HEADER`: what begins each message, and all of those of HLT and
/// of an unrecoverable exception.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptHeader {
    /// The VP.
    pub vp_index: u32,
    /// Length of the instruction, and CR8.
    pub length_and_cr8: LengthAndCr8,
    /// What was tried.
    pub access_type: AccessType,
    /// Mode of the VP.
    pub execution_state: ExecutionState,
    /// CS.
    pub cs: HvX64SegmentRegister,
    /// RIP of the instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// `HV_X64_IO_PORT_ACCESS_INFO`.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoPortAccess {
    /// Bytes: 1, 2 or 4.
    #[bits(3)]
    pub size: u8,
    /// INS or OUTS.
    pub string: bool,
    /// With REP.
    pub rep: bool,
    #[bits(3)]
    _reserved: u8,
}

/// `HV_X64_IO_PORT_INTERCEPT_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoPortIntercept {
    /// Header.
    pub header: InterceptHeader,
    /// First port.
    pub port: u16,
    /// How it was accessed.
    pub access: IoPortAccess,
    /// Bytes in `instruction` that count.
    pub instruction_byte_count: u8,
    /// Zero.
    pub reserved: u32,
    /// RAX.
    pub rax: u64,
    /// The instruction, and perhaps what follows it.
    pub instruction: [u8; INSTRUCTION_BYTES],
    /// DS.
    pub ds: HvX64SegmentRegister,
    /// ES.
    pub es: HvX64SegmentRegister,
    /// RCX.
    pub rcx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
}

/// `HV_X64_MEMORY_ACCESS_INFO`.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryAccess {
    /// The message has the linear address.
    pub gva_valid: bool,
    /// The linear address leads to the physical one.
    pub gva_gpa_valid: bool,
    /// The output of a hypercall is still to be written.
    pub hypercall_output_pending: bool,
    /// Translations are held back.
    pub tlb_locked: bool,
    #[bits(4)]
    _reserved: u8,
}

/// `HV_X64_MEMORY_INTERCEPT_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryIntercept {
    /// Header.
    pub header: InterceptHeader,
    /// Memory type, as in PAT.
    pub cache_type: u32,
    /// Bytes in `instruction` that count.
    pub instruction_byte_count: u8,
    /// What is known of the access.
    pub access: MemoryAccess,
    /// Task priority.
    pub tpr_priority: u8,
    /// Zero.
    pub reserved: u8,
    /// Linear address.
    pub gva: u64,
    /// Physical address.
    pub gpa: u64,
    /// The instruction, and perhaps what follows it.
    pub instruction: [u8; INSTRUCTION_BYTES],
}

/// `HV_X64_MSR_INTERCEPT_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsrIntercept {
    /// Header.
    pub header: InterceptHeader,
    /// The MSR.
    pub msr: u32,
    /// Zero.
    pub reserved: u32,
    /// RDX.
    pub rdx: u64,
    /// RAX.
    pub rax: u64,
}

/// `HV_X64_CPUID_INTERCEPT_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuidIntercept {
    /// Header.
    pub header: InterceptHeader,
    /// RAX, whose lower half is the leaf.
    pub rax: u64,
    /// RCX, whose lower half is the subleaf.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    /// RAX that the hypervisor would answer.
    pub default_rax: u64,
    /// RCX that the hypervisor would answer.
    pub default_rcx: u64,
    /// RDX that the hypervisor would answer.
    pub default_rdx: u64,
    /// RBX that the hypervisor would answer.
    pub default_rbx: u64,
}

/// `HV_X64_INVALID_VP_REGISTER_MESSAGE`: the VP cannot be entered with this register.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InvalidVpRegister {
    /// The VP.
    pub vp_index: u32,
    /// Zero.
    pub reserved: u32,
    /// `HvRegisterName`.
    pub name: u32,
    /// Zero.
    pub reserved2: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<InterceptHeader>() == 40);
    assert!(offset_of!(InterceptHeader, cs) == 8 && offset_of!(InterceptHeader, rip) == 24);
    assert!(size_of::<IoPortIntercept>() == 128);
    assert!(offset_of!(IoPortIntercept, rax) == 48 && offset_of!(IoPortIntercept, ds) == 72);
    assert!(size_of::<MemoryIntercept>() == 80);
    assert!(offset_of!(MemoryIntercept, gva) == 48);
    assert!(size_of::<MsrIntercept>() == 64);
    assert!(size_of::<CpuidIntercept>() == 104);
};
