//! Hypercall codes, the control and result words, and input structures
//! (TLFS chapter 3 "Hypercall Interface" and the reference of each call).

use crate::vp_context::HvInitialVpContext;
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Hypercall codes used between this project's host and VTL2.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum HypercallCode {
    /// Send an interrupt to VPs 0 to 63.
    SEND_SYNTHETIC_CLUSTER_IPI = 0x000b,
    /// Change what a lower VTL may do with GPA pages.
    MODIFY_VTL_PROTECTION_MASK = 0x000c,
    /// Enable a VTL on a VP and give its initial context.
    ENABLE_VP_VTL = 0x000f,
    /// Enter a higher VTL (through the hypercall page).
    VTL_CALL = 0x0011,
    /// Return to the lower VTL (through the hypercall page).
    VTL_RETURN = 0x0012,
    /// Send an interrupt to any VPs.
    SEND_SYNTHETIC_CLUSTER_IPI_EX = 0x0015,
    /// Choose what of a lower VTL is intercepted.
    INSTALL_INTERCEPT = 0x004d,
    /// Read VP registers.
    GET_VP_REGISTERS = 0x0050,
    /// Write VP registers.
    SET_VP_REGISTERS = 0x0051,
    /// Walk the page tables of a VP.
    TRANSLATE_VIRTUAL_ADDRESS = 0x0052,
    /// Post a SynIC message.
    POST_MESSAGE = 0x005c,
    /// Signal a SynIC event.
    SIGNAL_EVENT = 0x005d,
    /// Send a device's interrupt elsewhere.
    RETARGET_DEVICE_INTERRUPT = 0x007e,
    /// Put the machine into an ACPI sleep state; S5 powers it off.
    ENTER_SLEEP_STATE = 0x0084,
    /// Assert an interrupt of a lower VTL.
    ASSERT_VIRTUAL_INTERRUPT = 0x0094,
    /// Start a VP whose VTL has a context.
    START_VIRTUAL_PROCESSOR = 0x0099,
    /// Translate local APIC ids to VP indices.
    GET_VP_INDEX_FROM_APIC_ID = 0x009a,
    /// Set an event flag of a VP and VTL, without a connection.
    SIGNAL_EVENT_DIRECT = 0x00c0,
    /// Write a message into a slot of a VP and VTL, without a connection.
    POST_MESSAGE_DIRECT = 0x00c1,
}

/// `HV_STATUS`, returned in bits 0 to 15 of the result word.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum HvStatus {
    /// Done.
    SUCCESS = 0x0000,
    /// No such hypercall.
    INVALID_HYPERCALL_CODE = 0x0002,
    /// The control word is malformed.
    INVALID_HYPERCALL_INPUT = 0x0003,
    /// A GPA is misaligned or a parameter block crosses a page.
    INVALID_ALIGNMENT = 0x0004,
    /// A parameter has no valid meaning.
    INVALID_PARAMETER = 0x0005,
    /// The caller may not do this.
    ACCESS_DENIED = 0x0006,
    /// The partition is in the wrong state.
    INVALID_PARTITION_STATE = 0x0007,
    /// The operation is not permitted now.
    OPERATION_DENIED = 0x0008,
    /// Out of memory for the operation.
    INSUFFICIENT_MEMORY = 0x000b,
    /// No such partition.
    INVALID_PARTITION_ID = 0x000d,
    /// No such virtual processor.
    INVALID_VP_INDEX = 0x000e,
    /// The port is gone or of another kind.
    INVALID_PORT_ID = 0x0011,
    /// No such connection.
    INVALID_CONNECTION_ID = 0x0012,
    /// No message buffer is free.
    INSUFFICIENT_BUFFERS = 0x0013,
    /// The VP is in the wrong state.
    INVALID_VP_STATE = 0x0015,
    /// The SynIC, or what is needed of it, is off.
    INVALID_SYNIC_STATE = 0x0018,
    /// The message slot is in use.
    OBJECT_IN_USE = 0x0019,
    /// A register value is not acceptable.
    INVALID_REGISTER_VALUE = 0x0050,
    /// The VTL has already been enabled.
    VTL_ALREADY_ENABLED = 0x0086,
}

/// The hypercall input value (RCX in 64-bit mode).
#[bitfield(u64)]
pub struct HypercallControl {
    /// `HypercallCode`.
    pub code: u16,
    /// Parameters are in registers, not in memory.
    pub fast: bool,
    /// Size of the variable header in 8-byte units.
    #[bits(9)]
    pub variable_header_size: u16,
    #[bits(5)]
    _reserved1: u8,
    /// Handled by the L0 hypervisor.
    pub nested: bool,
    /// Repetitions in total; 0 for a simple call.
    #[bits(12)]
    pub rep_count: u16,
    #[bits(4)]
    _reserved2: u8,
    /// Repetition to start with.
    #[bits(12)]
    pub rep_start: u16,
    #[bits(4)]
    _reserved3: u8,
}

impl HypercallControl {
    /// True if every bit that the TLFS reserves is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        const RESERVED: u64 = (0x1f << 26) | (0xf << 44) | (0xf << 60);
        self.into_bits() & RESERVED == 0
    }
}

/// The hypercall result value (RAX).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct HypercallResult {
    /// `HvStatus`.
    pub status: u16,
    _reserved1: u16,
    /// Repetitions completed.
    #[bits(12)]
    pub reps_completed: u16,
    #[bits(20)]
    _reserved2: u32,
}

/// `HV_INPUT_VTL`: which VTL a call aims at.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvInputVtl {
    /// The VTL, if `use_target_vtl`.
    #[bits(4)]
    pub target_vtl: u8,
    /// Use `target_vtl`; otherwise the caller's own VTL is meant.
    pub use_target_vtl: bool,
    #[bits(3)]
    reserved: u8,
}

/// Header of `GET_VP_REGISTERS` (followed by u32 names) and `SET_VP_REGISTERS`
/// (followed by `HvRegisterAssoc`).
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetSetVpRegisters {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// VP; `HV_VP_INDEX_SELF` or an index.
    pub vp_index: u32,
    /// VTL whose registers are meant.
    pub target_vtl: HvInputVtl,
    /// Must be zero.
    pub rsvd: [u8; 3],
}

/// Input of `ENABLE_VP_VTL` and `START_VIRTUAL_PROCESSOR`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EnableVpVtl {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// VP to enable or start.
    pub vp_index: u32,
    /// VTL to enable or start in (a plain VTL number, no `use_target_vtl` bit).
    pub target_vtl: u8,
    /// Must be zero.
    pub rsvd: [u8; 3],
    /// Where the VP begins.
    pub vp_context: HvInitialVpContext,
}

/// Header of `GET_VP_INDEX_FROM_APIC_ID`, followed by u32 APIC ids; the output is a
/// list of u32 VP indices.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpIndexFromApicId {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// VTL in which the ids are looked up.
    pub target_vtl: HvInputVtl,
    /// Must be zero.
    pub rsvd: [u8; 7],
}

/// `HV_MAP_GPA_FLAGS`: what a lower VTL may do with a page.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvMapGpaFlags {
    /// Reading.
    pub readable: bool,
    /// Writing.
    pub writable: bool,
    /// Execution in kernel mode.
    pub kernel_executable: bool,
    /// Execution in user mode.
    pub user_executable: bool,
    #[bits(28)]
    _reserved: u32,
}

impl HvMapGpaFlags {
    /// Everything.
    pub const ALL: Self = Self::from_bits(0xf);

    /// True if every bit that is not above is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.into_bits() & !Self::ALL.into_bits() == 0
    }
}

/// Header of `MODIFY_VTL_PROTECTION_MASK`, followed by u64 GPA page numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ModifyVtlProtectionMask {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// What the VTL may do with the pages from now on.
    pub map_flags: HvMapGpaFlags,
    /// The VTL that is restricted.
    pub target_vtl: HvInputVtl,
    /// Must be zero.
    pub rsvd: [u8; 3],
}

/// Input of `ENTER_SLEEP_STATE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EnterSleepState {
    /// ACPI sleep state, 1 to 5.
    pub sleep_state: u32,
}

/// `HV_TRANSLATE_GVA_CONTROL_FLAGS`: how a page table is walked.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateFlags {
    /// Reading must be possible.
    pub validate_read: bool,
    /// Writing must be possible.
    pub validate_write: bool,
    /// Execution must be possible.
    pub validate_execute: bool,
    /// Supervisor and user pages alike; no SMEP, no SMAP.
    pub privilege_exempt: bool,
    /// Set accessed and dirty bits.
    pub set_page_table_bits: bool,
    /// Keep the translation while the VP does not run.
    pub tlb_flush_inhibit: bool,
    /// As if in supervisor mode, whatever the mode is.
    pub supervisor_access: bool,
    /// As if in user mode, whatever the mode is.
    pub user_access: bool,
    /// SMAP counts even if RFLAGS.AC is set.
    pub enforce_smap: bool,
    /// SMAP does not count even if RFLAGS.AC is clear.
    pub override_smap: bool,
    #[bits(46)]
    reserved: u64,
    /// Whose page tables: a [`HvInputVtl`].
    pub input_vtl: u8,
}

impl TranslateFlags {
    /// True if every bit that is not above is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// Input of `TRANSLATE_VIRTUAL_ADDRESS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateVirtualAddress {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// VP; `HV_VP_INDEX_SELF` or an index.
    pub vp_index: u32,
    /// Must be zero.
    pub rsvd: u32,
    /// How.
    pub flags: TranslateFlags,
    /// Page number of the linear address.
    pub gva_page: u64,
}

/// `HV_TRANSLATE_GVA_RESULT_CODE`.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum TranslateResult {
    /// There is a translation.
    SUCCESS = 0,
    /// An entry is not present.
    PAGE_NOT_PRESENT = 1,
    /// The page does not permit the access.
    PRIVILEGE_VIOLATION = 2,
    /// An entry has bits that are reserved.
    INVALID_PAGE_TABLE_FLAGS = 3,
    /// A table, or the page, is not memory.
    GPA_UNMAPPED = 4,
    /// A table, or the page, may not be read.
    GPA_NO_READ_ACCESS = 5,
    /// A table, or the page, may not be written.
    GPA_NO_WRITE_ACCESS = 6,
    /// An overlay page is in the way.
    GPA_ILLEGAL_OVERLAY_ACCESS = 7,
    /// A higher VTL intercepts the access.
    INTERCEPT = 8,
}

/// Output of `TRANSLATE_VIRTUAL_ADDRESS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateVirtualAddressOutput {
    /// How it went.
    pub result: TranslateResult,
    /// Memory type of the page, as in PAT.
    pub cache_type: u8,
    /// 1: the page is an overlay.
    pub overlay_page: u8,
    /// Zero.
    pub rsvd: [u8; 2],
    /// Page number of the physical address.
    pub gpa_page: u64,
}

/// Input of `SEND_SYNTHETIC_CLUSTER_IPI`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SendClusterIpi {
    /// Vector.
    pub vector: u32,
    /// VTL that is interrupted.
    pub target_vtl: HvInputVtl,
    /// Must be zero.
    pub rsvd: [u8; 3],
    /// A bit for each VP from 0 on.
    pub processors: u64,
}

/// Input of `SEND_SYNTHETIC_CLUSTER_IPI_EX`, followed by a u64 for each bank of
/// `valid_banks`, in ascending order; their number is the size of the variable header.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SendClusterIpiEx {
    /// Vector.
    pub vector: u32,
    /// VTL that is interrupted.
    pub target_vtl: HvInputVtl,
    /// Must be zero.
    pub rsvd: [u8; 3],
    /// [`HV_VP_SET_SPARSE`] or [`HV_VP_SET_ALL`].
    pub format: u64,
    /// A bit for each bank of 64 VPs that follows.
    pub valid_banks: u64,
}

/// `HV_GENERIC_SET_SPARSE_4K`: banks of 64 VPs.
pub const HV_VP_SET_SPARSE: u64 = 0;
/// `HV_GENERIC_SET_ALL`: all VPs, without banks.
pub const HV_VP_SET_ALL: u64 = 1;

/// `EnterSleepState::sleep_state` for power-off.
pub const HV_SLEEP_STATE_S5: u32 = 5;

const _: () = assert!(size_of::<GetSetVpRegisters>() == 16);
const _: () = assert!(size_of::<EnableVpVtl>() == 240);
const _: () = assert!(size_of::<GetVpIndexFromApicId>() == 16);
const _: () = assert!(size_of::<ModifyVtlProtectionMask>() == 16);
const _: () = assert!(size_of::<SendClusterIpi>() == 16);
const _: () = assert!(size_of::<SendClusterIpiEx>() == 24);
const _: () = assert!(size_of::<TranslateVirtualAddress>() == 32);
const _: () = assert!(size_of::<TranslateVirtualAddressOutput>() == 16);
const _: () = assert!(
    TranslateFlags::new().with_override_smap(true).into_bits() == 1 << 9
        && TranslateFlags::new().with_input_vtl(1).into_bits() == 1 << 56
);
