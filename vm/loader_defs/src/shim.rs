//! `ShimParamsRaw`: the page through which the image tells the boot shim where things are.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Isolation technology that the image was built for.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SupportedIsolationType {
    /// Virtualization-based security, or no isolation at all.
    VBS = 1,
    /// AMD SEV-SNP.
    SNP = 2,
    /// Intel TDX.
    TDX = 3,
}

/// One page, zero-filled after this structure. All `*_offset`, `*_start` and `*_end`
/// fields are byte offsets from the shim's image base and may be negative; all sizes
/// are bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ShimParamsRaw {
    /// 64-bit entry point of the kernel.
    pub kernel_entry_offset: i64,
    /// `paravisor::ParavisorCommandLine`.
    pub cmdline_offset: i64,
    /// The initrd.
    pub initrd_offset: i64,
    /// Size of the initrd.
    pub initrd_size: u64,
    /// CRC-32 (IEEE) of the initrd.
    pub initrd_crc: u32,
    /// `SupportedIsolationType`.
    pub supported_isolation_type: u32,
    /// Start of the VTL2 memory that the image was built for.
    pub memory_start_offset: i64,
    /// Size of the VTL2 memory that the image was built for.
    pub memory_size: u64,
    /// The parameter region, see `paravisor`.
    pub parameter_region_offset: i64,
    /// Size of the parameter region.
    pub parameter_region_size: u64,
    /// Pages reserved for the platform.
    pub vtl2_reserved_region_offset: i64,
    /// Size of the reserved pages.
    pub vtl2_reserved_region_size: u64,
    /// Sidecar image, size 0 if there is none.
    pub sidecar_offset: i64,
    /// Size of the sidecar image.
    pub sidecar_size: u64,
    /// Entry point of the sidecar image.
    pub sidecar_entry_offset: i64,
    /// Start of the populated area.
    pub used_start: i64,
    /// End of the populated area, page tables included.
    pub used_end: i64,
    /// Bounce buffer.
    pub bounce_buffer_start: i64,
    /// Size of the bounce buffer, 0 if there is none.
    pub bounce_buffer_size: u64,
    /// In-memory log, `string_page_buf` format.
    pub log_buffer_start: i64,
    /// Size of the log.
    pub log_buffer_size: u64,
    /// Heap of the shim.
    pub heap_start_offset: i64,
    /// Size of the heap.
    pub heap_size: u64,
    /// State that survives servicing.
    pub persisted_state_region_offset: i64,
    /// Size of the persisted state region.
    pub persisted_state_region_size: u64,
}

const _: () = assert!(size_of::<ShimParamsRaw>() == 192);
