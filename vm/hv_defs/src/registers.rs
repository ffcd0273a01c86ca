//! Register names and the name/value pairs of the register hypercalls
//! (TLFS "Virtual Processor Registers").

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HV_REGISTER_NAME`, the subset that VTL2 boot uses.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HvRegisterName {
    /// Index of the VP.
    VP_INDEX = 0x0009_0003,
    /// Place of the VP assist page.
    VP_ASSIST_PAGE = 0x0009_0013,
    /// Place of the register page.
    REG_PAGE = 0x0009_001c,
    /// `vsm::VsmCodePageOffsets`.
    VSM_CODE_PAGE_OFFSETS = 0x000d_0002,
    /// `vsm::VsmVpStatus`.
    VSM_VP_STATUS = 0x000d_0003,
    /// `vsm::VsmPartitionStatus`.
    VSM_PARTITION_STATUS = 0x000d_0004,
    /// `vsm::VsmCapabilities`.
    VSM_CAPABILITIES = 0x000d_0006,
    /// `vsm::VsmPartitionConfig`.
    VSM_PARTITION_CONFIG = 0x000d_0007,
    /// Guest OS identity (aarch64 and x64).
    GUEST_OS_ID = 0x0009_0002,
    /// First guest crash parameter; P1 to P4 follow.
    GUEST_CRASH_P0 = 0x0000_0210,
    /// Guest crash control.
    GUEST_CRASH_CTL = 0x0000_0215,
}

/// `HV_REGISTER_ASSOC`: one element of `SET_VP_REGISTERS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvRegisterAssoc {
    /// `HvRegisterName`.
    pub name: u32,
    /// Must be zero.
    pub pad: [u32; 3],
    /// The value, low part first.
    pub value: [u64; 2],
}

const _: () = assert!(size_of::<HvRegisterAssoc>() == 32);
