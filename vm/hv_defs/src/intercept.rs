//! Intercept messages: why a lower VTL was left (TLFS "Intercepts", "Virtual Processor
//! Execution State", and the reference of each message).
//!
//! Each is the payload of a [`crate::synic::HvMessage`], which VTL2 finds in its VP assist
//! page when it is entered for [`VtlEntryReason::INTERCEPT`]. What is intercepted VTL2 says
//! with [`InstallIntercept`].

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

/// `HV_INTERCEPT_TYPE`: what can be intercepted by request.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum InterceptType {
    /// A port; reading and writing. The parameter is its number.
    X64_IO_PORT = 0x00,
    /// Each MSR that the hypervisor does not serve itself; reading and writing.
    X64_MSR = 0x01,
    /// A leaf of CPUID; execution. The parameter is its number.
    X64_CPUID = 0x02,
    /// An exception; execution. The parameter is its vector.
    EXCEPTION = 0x03,
    /// Hypercalls that the hypervisor does not serve itself; execution.
    HYPERCALL = 0x08,
    /// One MSR; reading and writing. The parameter is its number.
    X64_MSR_INDEX = 0x0c,
    /// Messages and events to connections that the hypervisor does not know; execution.
    UNKNOWN_SYNIC_CONNECTION = 0x0d,
    /// End of a level-triggered interrupt; writing.
    X64_APIC_EOI = 0x0e,
    /// Retargeting of a device's interrupt that the hypervisor does not know; execution.
    RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID = 0x0f,
    /// A range of ports; reading and writing. The parameter has the first in its bits 0 to
    /// 15 and the last in its bits 16 to 31.
    X64_IO_PORT_RANGE = 0x11,
}

/// `HV_INTERCEPT_ACCESS_TYPE_MASK`: which accesses; none of them takes an intercept back.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AccessMask {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Execution.
    pub execute: bool,
    #[bits(29)]
    reserved: u32,
}

impl AccessMask {
    /// True if every bit that the TLFS reserves is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// Input of `INSTALL_INTERCEPT`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InstallIntercept {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// Accesses.
    pub access: AccessMask,
    /// What.
    pub intercept_type: InterceptType,
    /// See [`InterceptType`]; else zero.
    pub parameter: u64,
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

/// `HV_X64_HYPERCALL_INTERCEPT_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallIntercept {
    /// Header.
    pub header: InterceptHeader,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX: the control word.
    pub rcx: u64,
    /// RDX: address of the input, or the first half of it.
    pub rdx: u64,
    /// R8: address of the output, or the second half of the input.
    pub r8: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// XMM0 to XMM5.
    pub xmm: [[u64; 2]; 6],
    /// Bit 0: the partition is isolated.
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

/// `HV_X64_APIC_EOI_MESSAGE`; it has no header.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ApicEoi {
    /// The VP.
    pub vp_index: u32,
    /// Vector of the interrupt that has ended.
    pub vector: u32,
}

/// `HV_X64_INTERRUPTION_DELIVERABLE_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptionDeliverable {
    /// Header.
    pub header: InterceptHeader,
    /// [`crate::registers::InterruptionType`].
    pub deliverable_type: u32,
    /// Zero.
    pub reserved: u32,
}

/// `HV_X64_SYNIC_SINT_DELIVERABLE_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SintDeliverable {
    /// Header.
    pub header: InterceptHeader,
    /// Sources that can take a message, as a bit set.
    pub deliverable_sints: u16,
    /// Zero.
    pub reserved: [u16; 3],
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
    assert!(size_of::<HypercallIntercept>() == 208);
    assert!(offset_of!(HypercallIntercept, xmm) == 96);
    assert!(size_of::<ApicEoi>() == 8);
    assert!(size_of::<InterruptionDeliverable>() == 48);
    assert!(size_of::<SintDeliverable>() == 48);
    assert!(size_of::<InstallIntercept>() == 24);
};
