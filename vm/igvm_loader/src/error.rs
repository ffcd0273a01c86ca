//! Why a file is refused: where, what, what was found, what was expected.

use crate::ContextError;
use crate::MemoryRange;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;
use hv_defs::registers::HvRegisterName;
use igvm_defs::IgvmVariableHeaderType as HeaderType;
use thiserror::Error;

/// Why an IGVM file cannot be loaded on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
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
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum Reason {
    #[error("{0}")]
    Field(&'static str),
    #[error("{0} is not aligned")]
    Unaligned(&'static str),
    #[error("too many {0}")]
    TooMany(&'static str),
    #[error("register {0:?}")]
    Register(HvRegisterName),
    #[error("registers")]
    Context,
    #[error("page tables: {0}")]
    PageTables(&'static str),
    #[error("header out of order")]
    Order,
    #[error("header type that the host does not know and may not skip")]
    UnknownHeader,
    #[error("not of this platform")]
    Platform,
    #[error("file data")]
    FileData,
    #[error("overlap")]
    Overlap,
    #[error("memory that is not RAM")]
    NotRam,
    #[error("memory of the host")]
    HostMemory,
    #[error("memory that is in use while the image is loaded")]
    Busy,
    #[error("parameter area")]
    ParameterArea,
    #[error("parameter does not fit into its area")]
    ParameterSize,
    #[error("VTL2 memory")]
    Vtl2Memory,
    #[error("no place for the image")]
    NoPlace,
}

/// A value in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "named like the words they are printed as")]
pub enum Detail {
    /// Hexadecimal from 10.
    Number(u64),
    Text(&'static str),
    Range(MemoryRange),
    Within(MemoryRange),
    AtLeast(u64),
    AtMost(u64),
    MultipleOf(u64),
    /// Another header and the memory that is its.
    HeaderAt(Place, MemoryRange),
    Context(Box<ContextError>),
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

macro_rules! detail_from {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Detail {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}
detail_from!(u64 => Number, u32 => Number, &'static str => Text, MemoryRange => Range);
detail_from!(ContextError => Context);

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
        match self {
            Self::Number(n) if *n < 10 => write!(f, "{n}"),
            Self::Number(n) => write!(f, "{n:#x}"),
            Self::Text(text) => f.write_str(text),
            Self::Range(range) => write!(f, "{range}"),
            Self::Within(range) => write!(f, "something within {range}"),
            Self::AtLeast(n) => write!(f, "at least {n:#x}"),
            Self::AtMost(n) => write!(f, "at most {n:#x}"),
            Self::MultipleOf(n) => write!(f, "a multiple of {n:#x}"),
            Self::Context(error) => write!(f, "{error}"),
            Self::HeaderAt(place, range) => write!(f, "nothing of {range}, which {place} has"),
        }
    }
}

/// The name of the type in the specification, as other tools print it.
pub(crate) fn header_name(kind: HeaderType) -> Option<String> {
    let name = format!("{kind:?}");
    let words = name
        .strip_prefix("IGVM_VHT_")?
        .trim_end_matches("_PARAMETER")
        .split('_');
    Some(words.fold(String::new(), |name, word| {
        let (first, rest) = word.split_at(1);
        name + first + &rest.to_ascii_lowercase()
    }))
}
