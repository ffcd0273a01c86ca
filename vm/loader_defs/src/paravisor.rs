//! The parameter region, the measured configuration and the measured command line.

use crate::PAGE_SIZE;
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First page of the host's ACPI SLIT in the parameter region.
pub const PARAVISOR_CONFIG_SLIT_PAGE_INDEX: u64 = 0;
/// Pages of the SLIT.
pub const PARAVISOR_CONFIG_SLIT_SIZE_PAGES: u64 = 20;
/// First page of the host's ACPI PPTT.
pub const PARAVISOR_CONFIG_PPTT_PAGE_INDEX: u64 = 20;
/// Pages of the PPTT.
pub const PARAVISOR_CONFIG_PPTT_SIZE_PAGES: u64 = 20;
/// First page of the host's device tree.
pub const PARAVISOR_CONFIG_DEVICE_TREE_PAGE_INDEX: u64 = 40;
/// Pages of the host's device tree (256 KiB).
pub const PARAVISOR_CONFIG_DEVICE_TREE_SIZE_PAGES: u64 = 64;
/// Page of the list of imported regions.
pub const PARAVISOR_MEASURED_IMPORTED_REGIONS_PAGE_INDEX: u64 = 104;
/// Page of `ParavisorMeasuredVtl2Config`.
pub const PARAVISOR_MEASURED_VTL2_CONFIG_PAGE_INDEX: u64 = 105;
/// First page of the expected page hashes (diagnostics of isolated VMs).
pub const PARAVISOR_PAGE_HASHES_PAGE_INDEX: u64 = 106;
/// Pages of the expected page hashes.
pub const PARAVISOR_PAGE_HASHES_SIZE_PAGES: u64 = 256;
/// Pages of the whole parameter region.
pub const PARAVISOR_PARAMETER_REGION_PAGES: u64 = 362;
/// Pages that only some platforms use (VMSA, CPUID, secrets).
pub const PARAVISOR_RESERVED_PAGES: u64 = 4;
/// Pages of the boot shim's in-memory log.
pub const PARAVISOR_LOG_BUFFER_PAGES: u64 = 2;
/// Pages of the boot shim's heap.
pub const PARAVISOR_HEAP_PAGES: u64 = 16;
/// Size in bytes of the persisted state region at the start of the image.
pub const PARAVISOR_PERSISTED_STATE_REGION_SIZE: u64 = 2 * 1024 * 1024;
/// Pages of it that are kept (header and payload); the rest is RAM.
pub const PARAVISOR_PERSISTED_STATE_PAGES: u64 = 20;
/// Where the image is loaded if nothing else is said.
pub const PARAVISOR_DEFAULT_MEMORY_BASE_ADDRESS: u64 = 128 * 1024 * 1024;
/// GPA page of `ParavisorMeasuredVtl0Config` on x86_64.
pub const PARAVISOR_VTL0_MEASURED_CONFIG_PAGE_X64: u64 = 0;

/// Who may add to the kernel's command line.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CommandLinePolicy {
    /// Only the measured text counts.
    STATIC = 0,
    /// The host's `/chosen/bootargs` are appended, if the host is trusted.
    APPEND_CHOSEN = 1,
}

/// Capacity in bytes of the measured command line.
pub const COMMAND_LINE_CAPACITY: usize = 4092;

/// The measured command line, exactly one page.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParavisorCommandLine {
    /// `CommandLinePolicy`.
    pub policy: u16,
    /// Bytes of `text` in use.
    pub length: u16,
    /// UTF-8 text.
    pub text: [u8; COMMAND_LINE_CAPACITY],
}

/// Header of the imported-regions page; `ImportedRegionDescriptor`s follow, ended by
/// one whose page count is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ImportedRegionsPageHeader {
    /// SHA-384 over the pages that were imported shared; zero if there are none.
    pub sha384_hash: [u8; 48],
}

/// A run of pages that is present at launch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ImportedRegionDescriptor {
    /// First GPA page, as built (before relocation).
    pub base_page_number: u64,
    /// Number of pages.
    pub page_count: u64,
    /// 1 if the platform has accepted the pages.
    pub accepted: u8,
    /// Zero.
    pub padding: [u8; 7],
}

/// Magic of `ParavisorMeasuredVtl2Config`: "OHCLVTL2".
pub const MEASURED_VTL2_MAGIC: u64 = 0x4f48_434c_5654_4c32;
/// Magic of `ParavisorMeasuredVtl0Config`: "OHCLVTL0".
pub const MEASURED_VTL0_MAGIC: u64 = 0x4f48_434c_5654_4c30;

/// Measured configuration of VTL2; product policy bytes follow.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParavisorMeasuredVtl2Config {
    /// `MEASURED_VTL2_MAGIC`.
    pub magic: u64,
    /// Bit that marks shared memory, 0 if there is none.
    pub vtom_offset_bit: u8,
    /// Zero.
    pub padding: [u8; 7],
    /// Bytes of product policy that follow.
    pub product_policy_size: u32,
    /// Zero.
    pub reserved: u32,
}

/// What the image carries for VTL0.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SupportedVtl0LoadInfo {
    /// UEFI firmware.
    pub uefi: bool,
    /// PC/AT BIOS.
    pub pcat: bool,
    /// A Linux kernel.
    pub linux_direct: bool,
    #[bits(61)]
    reserved: u64,
}

/// A run of GPA pages.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PageRegionDescriptor {
    /// First GPA page.
    pub base_page_number: u64,
    /// Number of pages, 0 if there are none.
    pub page_count: u64,
}

/// Measured configuration of VTL0, at GPA page `PARAVISOR_VTL0_MEASURED_CONFIG_PAGE_X64`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParavisorMeasuredVtl0Config {
    /// `MEASURED_VTL0_MAGIC`.
    pub magic: u64,
    /// Which of the following are meant.
    pub supported_vtl0: SupportedVtl0LoadInfo,
    /// UEFI firmware.
    pub uefi_firmware: PageRegionDescriptor,
    /// Register list that the firmware starts with.
    pub uefi_vp_context: PageRegionDescriptor,
    /// Linux kernel.
    pub linux_kernel: PageRegionDescriptor,
    /// Entry GPA of the Linux kernel.
    pub linux_kernel_entry: u64,
    /// Initrd.
    pub linux_initrd: PageRegionDescriptor,
    /// Size of the initrd in bytes.
    pub linux_initrd_size: u64,
    /// Command line.
    pub linux_command_line: PageRegionDescriptor,
}

const _: () = assert!(size_of::<ParavisorCommandLine>() as u64 == PAGE_SIZE);
const _: () = assert!(size_of::<ImportedRegionDescriptor>() == 24);
const _: () = assert!(size_of::<ParavisorMeasuredVtl2Config>() == 24);
const _: () = assert!(
    PARAVISOR_PAGE_HASHES_PAGE_INDEX + PARAVISOR_PAGE_HASHES_SIZE_PAGES
        == PARAVISOR_PARAMETER_REGION_PAGES
);
