//! Virtual Secure Mode registers and the VP assist page (TLFS chapter 15 and
//! "Virtual Processor Assist Page").

use crate::intercept::VtlEntryReason;
use crate::synic::HvMessage;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where VTL call and return live in the hypercall page, in bytes from its start.
#[bitfield(u64)]
pub struct VsmCodePageOffsets {
    /// VTL call.
    #[bits(12)]
    pub call: u16,
    /// VTL return.
    #[bits(12)]
    pub ret: u16,
    #[bits(40)]
    _reserved: u64,
}

/// State of VTLs on a VP.
#[bitfield(u64)]
pub struct VsmVpStatus {
    /// The VTL that asks.
    #[bits(4)]
    pub active_vtl: u8,
    /// Mode-based execution control is on.
    pub active_mbec: bool,
    #[bits(11)]
    _reserved1: u16,
    /// Bit set of enabled VTLs.
    pub enabled_vtl_set: u16,
    _reserved2: u32,
}

/// State of VTLs of the partition.
#[bitfield(u64)]
pub struct VsmPartitionStatus {
    /// Bit set of enabled VTLs.
    pub enabled_vtl_set: u16,
    /// Highest VTL.
    #[bits(4)]
    pub maximum_vtl: u8,
    #[bits(44)]
    _reserved: u64,
}

/// What the host offers to VTL2.
#[bitfield(u64)]
pub struct VsmCapabilities {
    /// DR6 is shared between VTLs.
    pub dr6_shared: bool,
    #[bits(16)]
    pub mbec_vtl_mask: u16,
    /// A higher VTL can keep a lower one from starting.
    pub deny_lower_vtl_startup: bool,
    #[bits(9)]
    _reserved1: u16,
    /// Intercept messages arrive in the VP assist page.
    pub intercept_page_available: bool,
    /// Actions can be queued for VTL return.
    pub return_action_available: bool,
    /// VTL0's memory is mapped a second time, above the top.
    pub vtl0_alias_map_available: bool,
    #[bits(34)]
    _reserved2: u64,
}

/// How the host treats the lower VTLs; VTL2 writes it.
#[bitfield(u64)]
pub struct VsmPartitionConfig {
    /// VTL protection is on (cannot be taken back).
    pub enable_vtl_protection: bool,
    /// Protection of pages by default.
    #[bits(4)]
    pub default_vtl_protection_mask: u8,
    /// Memory is zeroed on reset.
    pub zero_memory_on_reset: bool,
    /// A lower VTL cannot start VPs.
    pub deny_lower_vtl_startup: bool,
    /// Acceptance of pages is told (isolated partitions).
    pub intercept_acceptance: bool,
    /// A lower VTL that turns protection on is told.
    pub intercept_enable_vtl_protection: bool,
    /// The start of a VP by a lower VTL is told.
    pub intercept_vp_startup: bool,
    /// CPUID leaves that the host does not know are told.
    pub intercept_cpuid_unimplemented: bool,
    /// Triple faults are told.
    pub intercept_unrecoverable_exception: bool,
    /// Intercepts arrive in the VP assist page.
    pub intercept_page: bool,
    /// A change of the reference time is told.
    pub intercept_restore_partition_time: bool,
    /// Accesses to pages that are not there are told.
    pub intercept_not_present: bool,
    /// A reset by the lower VTL is told.
    pub intercept_system_reset: bool,
    #[bits(48)]
    _reserved: u64,
}

/// `HV_VP_ASSIST_PAGE` of x64, as far as VTL2 uses it.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvVpAssistPage {
    /// APIC assist.
    pub apic_assist: u32,
    /// Reserved.
    pub reserved: u32,
    /// Why VTL2 was entered.
    pub vtl_entry_reason: VtlEntryReason,
    /// Reserved.
    pub vtl_reserved: u32,
    /// RAX that VTL0 gets on return.
    pub vtl_ret_x64_rax: u64,
    /// RCX that VTL0 gets on return.
    pub vtl_ret_x64_rcx: u64,
    /// For nested virtualization.
    pub nested: [u64; 10],
    /// Valid if entered for an intercept.
    pub intercept_message: HvMessage,
}

const _: () = assert!(
    core::mem::offset_of!(HvVpAssistPage, intercept_message) == 112
        && size_of::<HvVpAssistPage>() == 368
);
const _: () = assert!(
    VsmCapabilities::new()
        .with_intercept_page_available(true)
        .into_bits()
        == 1 << 27
        && VsmCapabilities::new()
            .with_vtl0_alias_map_available(true)
            .into_bits()
            == 1 << 29
        && VsmPartitionConfig::new()
            .with_zero_memory_on_reset(true)
            .into_bits()
            == 1 << 5
        && VsmPartitionConfig::new()
            .with_intercept_system_reset(true)
            .into_bits()
            == 1 << 15
);
