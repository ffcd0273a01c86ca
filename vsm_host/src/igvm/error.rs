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
    /// Not the file but the machine or the host's options.
    Machine,
    /// A platform header.
    Platform(u32, HeaderType),
    /// An initialization header.
    Initialization(u32, HeaderType),
    /// A directive.
    Directive(u32, HeaderType),
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// A field that has another value than it may have.
    #[error("{0}")]
    Field(&'static str),
    /// A field that is no multiple of its alignment.
    #[error("{0} is not aligned")]
    Unaligned(&'static str),
    /// More of something than the host can keep.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// A register that VP 0 cannot start with.
    #[error("register {0:?}")]
    Register(HvRegisterName),
    /// Page tables that cannot be moved.
    #[error("page tables: {0}")]
    PageTables(&'static str),
    /// A header that belongs into an earlier section.
    #[error("header out of order")]
    Order,
    /// A header of the future.
    #[error("header type that the host does not know and may not skip")]
    UnknownHeader,
    /// Something that belongs to another platform.
    #[error("not of this platform")]
    Platform,
    /// A file offset that leads nowhere.
    #[error("file data")]
    FileData,
    /// Two headers want the same memory, index or role.
    #[error("overlap")]
    Overlap,
    /// Memory that the machine does not have.
    #[error("memory that is not RAM")]
    NotRam,
    /// Memory that the host keeps.
    #[error("memory of the host")]
    HostMemory,
    /// Memory that the host still reads from.
    #[error("memory that is in use while the image is loaded")]
    Busy,
    /// A parameter area that is unknown, known already or used up.
    #[error("parameter area")]
    ParameterArea,
    /// A parameter that is larger than the room for it.
    #[error("parameter does not fit into its area")]
    ParameterSize,
    /// VTL2 has no memory, or it is in pieces.
    #[error("VTL2 memory")]
    Vtl2Memory,
    /// The image fits nowhere.
    #[error("no place for the image")]
    NoPlace,
}

/// A value in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A number; hexadecimal from 10.
    Number(u64),
    /// Words.
    Text(&'static str),
    /// Addresses or file offsets.
    Range(MemoryRange),
    /// Something inside of a range.
    Within(MemoryRange),
    /// A lower limit.
    AtLeast(u64),
    /// An upper limit.
    AtMost(u64),
    /// An alignment.
    MultipleOf(u64),
    /// Another header and the memory that is its.
    HeaderAt(Place, MemoryRange),
}

impl Reason {
    /// Completes the error.
    pub(crate) fn at(
        self,
        place: Place,
        found: impl Into<Detail>,
        expected: impl Into<Detail>,
    ) -> ImageError {
        let (found, expected, reason) = (found.into(), expected.into(), self);
        ImageError {
            place,
            reason,
            found,
            expected,
        }
    }
}

impl From<u64> for Detail {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Detail {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<&'static str> for Detail {
    fn from(text: &'static str) -> Self {
        Self::Text(text)
    }
}

impl From<MemoryRange> for Detail {
    fn from(range: MemoryRange) -> Self {
        Self::Range(range)
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
        match header_name(kind) {
            Some(name) => write!(f, "{section} {index} ({name})"),
            None => write!(f, "{section} {index} (type {:#x})", kind.0),
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number(n) if n < 10 => write!(f, "{n}"),
            Self::Number(n) => write!(f, "{n:#x}"),
            Self::Text(text) => f.write_str(text),
            Self::Range(range) => write!(f, "{range}"),
            Self::Within(range) => write!(f, "something within {range}"),
            Self::AtLeast(n) => write!(f, "at least {n:#x}"),
            Self::AtMost(n) => write!(f, "at most {n:#x}"),
            Self::MultipleOf(n) => write!(f, "a multiple of {n:#x}"),
            Self::HeaderAt(place, range) => write!(f, "nothing of {range}, which {place} has"),
        }
    }
}

fn header_name(kind: HeaderType) -> Option<&'static str> {
    Some(match kind {
        HeaderType::IGVM_VHT_SUPPORTED_PLATFORM => "SupportedPlatform",
        HeaderType::IGVM_VHT_GUEST_POLICY => "GuestPolicy",
        HeaderType::IGVM_VHT_RELOCATABLE_REGION => "RelocatableRegion",
        HeaderType::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION => "PageTableRelocationRegion",
        HeaderType::IGVM_VHT_CCA_POLICY => "CcaPolicy",
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
        _ => return None,
    })
}
