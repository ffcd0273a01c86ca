//! What the packer of the image tells the payload: one page, found through RSI.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Magic of [`TmkInfo`]: "TMK-INFO".
pub const TMK_INFO_MAGIC: u64 = u64::from_le_bytes(*b"TMK-INFO");

/// The byte that fills every parameter area in the file, so that one can see what the
/// host wrote and what it left alone.
pub const AREA_FILL: u8 = 0xa5;

/// What the VP context puts into registers that mean nothing to the payload: RBP, R8,
/// R9, R10, R11, R12, RSP. The host must set all of them.
pub const ENTRY_PATTERNS: [u64; 7] = [
    0x7474_7474_0000_0005,
    0x7474_7474_0000_0008,
    0x7474_7474_0000_0009,
    0x7474_7474_0000_000a,
    0x7474_7474_0000_000b,
    0x7474_7474_0000_000c,
    0x7474_7474_0000_0004,
];

/// Text of the crash report of the suite `crash_message`.
pub const CRASH_TEXT: &str = "tmk crashes on purpose: all is well";

/// What the suite `ports` tries to write into the host's log.
pub const FORGERY: &str = "TMK-FORGED-THIS";

/// Selector of the code segment in the image's GDT. Other than the usual 0x10 on
/// purpose: the host must take what the VP context says.
pub const IMAGE_CODE_SELECTOR: u16 = 0x18;
/// Selector of the data segment in the image's GDT.
pub const IMAGE_DATA_SELECTOR: u16 = 0x20;
/// Entries of the image's GDT.
pub const IMAGE_GDT_ENTRIES: usize = 5;

/// The kinds of parameters, in the order of [`TmkInfo::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ParameterKind {
    /// Number of VPs, u32.
    VpCount,
    /// ACPI SRAT.
    Srat,
    /// ACPI MADT.
    Madt,
    /// ACPI SLIT.
    Slit,
    /// ACPI PPTT.
    Pptt,
    /// Two MMIO ranges.
    MmioRanges,
    /// Memory map.
    MemoryMap,
    /// NUL-terminated text.
    CommandLine,
    /// Device tree.
    DeviceTree,
}

impl ParameterKind {
    /// All kinds.
    pub const ALL: [Self; PARAMETER_KINDS] = [
        Self::VpCount,
        Self::Srat,
        Self::Madt,
        Self::Slit,
        Self::Pptt,
        Self::MmioRanges,
        Self::MemoryMap,
        Self::CommandLine,
        Self::DeviceTree,
    ];
}

/// Number of [`ParameterKind`]s.
pub const PARAMETER_KINDS: usize = 9;

/// Where one parameter lies.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ParameterPlace {
    /// Bytes from the payload's image base to the place of deposit.
    pub offset: u64,
    /// Bytes up to the next parameter or the end of the area.
    pub size: u64,
}

/// The page that RSI points to, as an offset from the payload's image base.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TmkInfo {
    /// [`TMK_INFO_MAGIC`].
    pub magic: u64,
    /// GPA of the image base as built.
    pub built_base: u64,
    /// 1 if the host may move the image.
    pub relocatable: u64,
    /// Bytes from the start of the VTL2 range to the image base.
    pub base_in_range: u64,
    /// Bytes of the VTL2 range as built (and mapped by the image's page tables).
    pub range_size: u64,
    /// Bytes from the image base to the page tables.
    pub page_tables_offset: u64,
    /// Bytes from the image base to a page that the file gives as zero page.
    pub zero_page_offset: u64,
    /// Where the parameters are.
    pub parameters: [ParameterPlace; PARAMETER_KINDS],
}

const _: () = assert!(size_of::<TmkInfo>() as u64 <= PAGE_SIZE);
const _: () = assert!(ParameterKind::DeviceTree as usize + 1 == PARAMETER_KINDS);
