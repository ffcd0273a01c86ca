//! What each byte of VTL2 is used for.

use open_enum::open_enum;

/// Value of the `openhcl,memory-type` property in the device tree for Linux.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum MemoryVtlType {
    /// RAM of the guest.
    VTL0 = 0,
    /// RAM that Linux in VTL2 may use.
    VTL2_RAM = 1,
    /// Parameters and measured configuration.
    VTL2_CONFIG = 2,
    /// Sidecar kernel image.
    SIDECAR_IMAGE = 3,
    /// Memory of a sidecar node.
    SIDECAR_NODE = 4,
    /// Device memory of the guest.
    VTL0_MMIO = 5,
    /// Device memory of VTL2.
    VTL2_MMIO = 6,
    /// Reserved for the platform.
    VTL2_RESERVED = 7,
    /// DMA memory that survives servicing.
    VTL2_GPA_POOL = 8,
    /// Page tables that APs of TDX start with.
    TDX_PAGE_TABLES = 9,
    /// The boot shim's log.
    BOOTSHIM_LOG_BUFFER = 10,
    /// Header of the persisted state.
    PERSISTED_STATE_HEADER = 11,
    /// Payload of the persisted state.
    PERSISTED_STATE_PROTOBUF = 12,
}
