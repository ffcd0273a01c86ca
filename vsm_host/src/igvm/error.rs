//! Why a file is refused: where, what, what was found, what was expected.

use crate::platform::MemoryRange;
use core::fmt;
use hv_defs::registers::HvRegisterName;
use igvm_defs::IgvmVariableHeaderType as HeaderType;
use thiserror::Error;

/// Why an IGVM file cannot be loaded on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{place}: {reason}, found {found}, expected {expected}")]
pub struct ImageError {
    /// Which part of the file.
    pub place: Place,
    /// What is wrong.
    pub reason: Reason,
    /// What is there.
    pub found: Detail,
    /// What should be there.
    pub expected: Detail,
}

/// A part of the file. Headers of each section are counted from 0, those of other
/// platforms included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The fixed header.
    FixedHeader,
    /// The file as a whole.
    File,
    /// A platform header.
    Platform(u32, HeaderType),
    /// An initialization header.
    Initialization(u32, HeaderType),
    /// A directive.
    Directive(u32, HeaderType),
    /// Not the file but the machine or the host's options.
    Machine,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum Reason {
    #[error("the file ends too early")]
    Truncated,
    #[error("magic number")]
    Magic,
    #[error("format version")]
    FormatVersion,
    #[error("architecture")]
    Architecture,
    #[error("page size")]
    PageSize,
    #[error("offset of the variable headers")]
    HeaderOffset,
    #[error("size of the variable headers")]
    HeaderSize,
    #[error("file size")]
    FileSize,
    #[error("CRC-32 of the headers")]
    Checksum,
    #[error("length of the header")]
    HeaderLength,
    #[error("padding behind the header")]
    Padding,
    #[error("header out of order")]
    Order,
    #[error("header type that the host does not know and may not skip")]
    UnknownHeader,
    #[error("header that this platform does not have")]
    Unsupported,
    #[error("reserved field")]
    Reserved,
    #[error("compatibility mask")]
    CompatibilityMask,
    #[error("no platform of the file is one that the host offers")]
    NoPlatform,
    #[error("platform given a second time")]
    PlatformRepeated,
    #[error("platform version")]
    PlatformVersion,
    #[error("highest VTL")]
    HighestVtl,
    #[error("shared GPA boundary")]
    SharedBoundary,
    #[error("{0}")]
    Field(&'static str),
    #[error("{0} is not aligned")]
    Unaligned(&'static str),
    #[error("{0} leaves the address space")]
    AddressSpace(&'static str),
    #[error("too many {0}")]
    TooMany(&'static str),
    #[error("file data")]
    FileData,
    #[error("page data type")]
    PageDataType,
    #[error("overlap")]
    Overlap,
    #[error("memory that is not RAM")]
    NotRam,
    #[error("memory of the host")]
    HostMemory,
    #[error("memory that is in use while the image is loaded")]
    Busy,
    #[error("parameter area declared a second time")]
    AreaRepeated,
    #[error("parameter area that is not declared")]
    AreaUnknown,
    #[error("parameter area that is already inserted")]
    AreaInserted,
    #[error("parameter does not fit into its area")]
    ParameterSize,
    #[error("parameter insert inside the page tables")]
    InsertInPageTables,
    #[error("VP context")]
    VpContext,
    #[error("register {0:?}")]
    Register(HvRegisterName),
    #[error("VTL2 memory")]
    Vtl2Memory,
    #[error("no place for the image")]
    NoPlace,
    #[error("page tables: {0}")]
    PageTables(&'static str),
    #[error("host device tree")]
    DeviceTree,
    #[error("number of VPs")]
    NoVp,
}

/// A value in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A number.
    Number(u64),
    /// A number or address, hexadecimal.
    Hex(u64),
    /// Some bytes.
    Bytes(u64),
    /// A lower limit, hexadecimal.
    AtLeast(u64),
    /// An upper limit, hexadecimal.
    AtMost(u64),
    /// An alignment.
    MultipleOf(u64),
    /// Addresses or file offsets.
    Range(MemoryRange),
    /// Something inside of a range.
    Within(MemoryRange),
    /// Another header and the memory that is its.
    HeaderAt(Place, MemoryRange),
    /// Words.
    Text(&'static str),
}

impl Reason {
    /// Completes the error.
    pub(crate) fn at(self, place: Place, found: Detail, expected: Detail) -> ImageError {
        ImageError {
            place,
            reason: self,
            found,
            expected,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (section, index, kind) = match *self {
            Self::FixedHeader => return f.write_str("fixed header"),
            Self::File => return f.write_str("file"),
            Self::Machine => return f.write_str("machine"),
            Self::Platform(index, kind) => ("platform header", index, kind),
            Self::Initialization(index, kind) => ("initialization header", index, kind),
            Self::Directive(index, kind) => ("directive", index, kind),
        };
        write!(f, "{section} {index} ({})", Name(kind))
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Hex(n) => write!(f, "{n:#x}"),
            Self::Bytes(n) => write!(f, "{n} bytes"),
            Self::AtLeast(n) => write!(f, "at least {n:#x}"),
            Self::AtMost(n) => write!(f, "at most {n:#x}"),
            Self::MultipleOf(n) => write!(f, "a multiple of {n:#x}"),
            Self::Range(range) => write!(f, "{range}"),
            Self::Within(range) => write!(f, "something within {range}"),
            Self::HeaderAt(place, range) => write!(f, "nothing of {range}, which {place} has"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Prints the name of a header type, or its number.
struct Name(HeaderType);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            HeaderType::IGVM_VHT_SUPPORTED_PLATFORM => "SupportedPlatform",
            HeaderType::IGVM_VHT_GUEST_POLICY => "GuestPolicy",
            HeaderType::IGVM_VHT_RELOCATABLE_REGION => "RelocatableRegion",
            HeaderType::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION => "PageTableRelocationRegion",
            HeaderType::IGVM_VHT_CCA_POLICY => "CcaPolicy",
            HeaderType::IGVM_VHT_VERSION_STRING => "VersionString",
            HeaderType::IGVM_VHT_PARAMETER_AREA => "ParameterArea",
            HeaderType::IGVM_VHT_PAGE_DATA => "PageData",
            HeaderType::IGVM_VHT_PARAMETER_INSERT => "ParameterInsert",
            HeaderType::IGVM_VHT_VP_CONTEXT => "VpContext",
            HeaderType::IGVM_VHT_REQUIRED_MEMORY => "RequiredMemory",
            HeaderType::IGVM_VHT_VP_COUNT_PARAMETER => "VpCount",
            HeaderType::IGVM_VHT_SRAT => "Srat",
            HeaderType::IGVM_VHT_MADT => "Madt",
            HeaderType::IGVM_VHT_MMIO_RANGES => "MmioRanges",
            HeaderType::IGVM_VHT_SNP_ID_BLOCK => "SnpIdBlock",
            HeaderType::IGVM_VHT_MEMORY_MAP => "MemoryMap",
            HeaderType::IGVM_VHT_ERROR_RANGE => "ErrorRange",
            HeaderType::IGVM_VHT_COMMAND_LINE => "CommandLine",
            HeaderType::IGVM_VHT_SLIT => "Slit",
            HeaderType::IGVM_VHT_PPTT => "Pptt",
            HeaderType::IGVM_VHT_VBS_MEASUREMENT => "VbsMeasurement",
            HeaderType::IGVM_VHT_DEVICE_TREE => "DeviceTree",
            HeaderType::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER => "EnvironmentInfo",
            HeaderType(0x104) => "CorimDocument",
            HeaderType(0x105) => "CorimSignature",
            HeaderType(number) => return write!(f, "type {number:#x}"),
        })
    }
}
