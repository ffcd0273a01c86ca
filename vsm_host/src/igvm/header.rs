//! The outer form of the file: fixed header, checksum, and the list of variable headers.

use super::error::Detail::{Bytes, Hex, MultipleOf, Number, Text};
use super::error::ImageError;
use super::error::Place;
use super::error::Reason;
use crate::platform::MemoryRange;
use igvm_defs::IGVM_FIXED_HEADER;
use igvm_defs::IGVM_FIXED_HEADER_V2;
use igvm_defs::IGVM_FORMAT_VERSION_1;
use igvm_defs::IGVM_FORMAT_VERSION_2;
use igvm_defs::IGVM_MAGIC_VALUE;
use igvm_defs::IGVM_VHS_VARIABLE_HEADER;
use igvm_defs::IGVM_VHT_OPTIONAL_BIT;
use igvm_defs::IGVM_VHT_RANGE_DIRECTIVE;
use igvm_defs::IGVM_VHT_RANGE_INIT;
use igvm_defs::IGVM_VHT_RANGE_PLATFORM;
use igvm_defs::IgvmArchitecture;
use igvm_defs::IgvmVariableHeaderType;
use igvm_defs::PAGE_SIZE_4K;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Alignment of variable headers.
const HEADER_ALIGNMENT: usize = 8;

/// A file whose outer form is right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct File<'a> {
    bytes: &'a [u8],
    headers: MemoryRange,
}

/// One variable header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header<'a> {
    pub(crate) place: Place,
    pub(crate) index: u32,
    pub(crate) kind: IgvmVariableHeaderType,
    body: &'a [u8],
}

impl Header<'_> {
    /// The structure, if the length is right.
    pub(crate) fn structure<T: FromBytes + KnownLayout + Immutable>(
        &self,
    ) -> Result<T, ImageError> {
        T::read_from_bytes(self.body).map_err(|_| {
            Reason::HeaderLength.at(
                self.place,
                Bytes(self.body.len() as u64),
                Bytes(size_of::<T>() as u64),
            )
        })
    }

    /// An error about this header.
    pub(crate) fn error(
        &self,
        reason: Reason,
        found: super::Detail,
        expected: super::Detail,
    ) -> ImageError {
        reason.at(self.place, found, expected)
    }

    /// Checks that a field is a multiple of the page size.
    pub(crate) fn page_aligned(&self, what: &'static str, value: u64) -> Result<(), ImageError> {
        if value.is_multiple_of(PAGE_SIZE_4K) {
            Ok(())
        } else {
            Err(self.error(
                Reason::Unaligned(what),
                Hex(value),
                MultipleOf(PAGE_SIZE_4K),
            ))
        }
    }

    /// Checks that a reserved field is zero.
    pub(crate) fn reserved(&self, value: u64) -> Result<(), ImageError> {
        if value == 0 {
            Ok(())
        } else {
            Err(self.error(Reason::Reserved, Hex(value), Number(0)))
        }
    }
}

impl<'a> File<'a> {
    /// Checks the fixed header and the checksum.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let at = Place::FixedHeader;
        let short = |needed: usize| {
            Reason::Truncated.at(at, Bytes(bytes.len() as u64), Bytes(needed as u64))
        };
        let (v1, _) = IGVM_FIXED_HEADER::read_from_prefix(bytes)
            .map_err(|_| short(size_of::<IGVM_FIXED_HEADER>()))?;
        if v1.magic != IGVM_MAGIC_VALUE {
            return Err(Reason::Magic.at(at, Hex(v1.magic.into()), Hex(IGVM_MAGIC_VALUE.into())));
        }
        let fixed_size = match v1.format_version {
            IGVM_FORMAT_VERSION_1 => size_of::<IGVM_FIXED_HEADER>(),
            IGVM_FORMAT_VERSION_2 => {
                let (v2, _) = IGVM_FIXED_HEADER_V2::read_from_prefix(bytes)
                    .map_err(|_| short(size_of::<IGVM_FIXED_HEADER_V2>()))?;
                if v2.architecture != IgvmArchitecture::X64 {
                    let found = match v2.architecture {
                        IgvmArchitecture::AARCH64 => Text("AArch64"),
                        other => Number(other.0.into()),
                    };
                    return Err(Reason::Architecture.at(at, found, Text("x64")));
                }
                if u64::from(v2.page_size) != PAGE_SIZE_4K {
                    let found = Number(v2.page_size.into());
                    return Err(Reason::PageSize.at(at, found, Number(PAGE_SIZE_4K)));
                }
                size_of::<IGVM_FIXED_HEADER_V2>()
            }
            other => {
                return Err(Reason::FormatVersion.at(at, Number(other.into()), Text("1 or 2")));
            }
        };
        if v1.total_file_size as usize != bytes.len() {
            let found = Bytes(bytes.len() as u64);
            return Err(Reason::FileSize.at(at, found, Bytes(v1.total_file_size.into())));
        }
        let offset = v1.variable_header_offset as usize;
        if offset < fixed_size || !offset.is_multiple_of(HEADER_ALIGNMENT) {
            return Err(Reason::HeaderOffset.at(
                at,
                Number(offset as u64),
                Text("a multiple of 8 behind the fixed header"),
            ));
        }
        let size = v1.variable_header_size as usize;
        let Some(headers) = bytes.get(offset..).and_then(|rest| rest.get(..size)) else {
            let room = bytes.len().saturating_sub(offset) as u64;
            return Err(Reason::HeaderSize.at(at, Bytes(size as u64), Bytes(room)));
        };
        // The checksum is taken as if its own field were zero.
        let mut fixed = [0; size_of::<IGVM_FIXED_HEADER_V2>()];
        let fixed = &mut fixed[..fixed_size];
        fixed.copy_from_slice(&bytes[..fixed_size]);
        let field = core::mem::offset_of!(IGVM_FIXED_HEADER, checksum);
        fixed[field..field + size_of::<u32>()].fill(0);
        let mut crc = crc32fast::Hasher::new();
        crc.update(fixed);
        crc.update(headers);
        let crc = crc.finalize();
        if crc != v1.checksum {
            return Err(Reason::Checksum.at(at, Hex(v1.checksum.into()), Hex(crc.into())));
        }
        Ok(Self {
            bytes,
            headers: MemoryRange::new(offset as u64, (offset + size) as u64),
        })
    }

    /// Where in the file data may be: behind the headers.
    pub(crate) fn data_range(&self) -> MemoryRange {
        MemoryRange::new(self.headers.end(), self.bytes.len() as u64)
    }

    /// `size` bytes of file data.
    pub(crate) fn data(
        &self,
        header: &Header<'_>,
        offset: u32,
        size: u64,
    ) -> Result<&'a [u8], ImageError> {
        let allowed = self.data_range();
        let start = u64::from(offset);
        match MemoryRange::with_size(start, size) {
            Some(range) if allowed.covers(range) => {
                Ok(&self.bytes[range.start() as usize..range.end() as usize])
            }
            range => Err(header.error(
                Reason::FileData,
                super::Detail::Range(range.unwrap_or(MemoryRange::new(start, u64::MAX))),
                super::Detail::Within(allowed),
            )),
        }
    }

    /// Two pieces of file data as one, if the second follows the first in the file.
    pub(crate) fn join(&self, first: &'a [u8], second: &'a [u8]) -> Option<&'a [u8]> {
        let offset = |piece: &[u8]| piece.as_ptr().addr() - self.bytes.as_ptr().addr();
        let (start, end) = (offset(first), offset(second));
        (start + first.len() == end).then(|| &self.bytes[start..end + second.len()])
    }

    /// All that follows `offset`.
    pub(crate) fn data_from(
        &self,
        header: &Header<'_>,
        offset: u32,
    ) -> Result<&'a [u8], ImageError> {
        let end = self.data_range().end();
        self.data(header, offset, end.saturating_sub(offset.into()))
    }

    /// The variable headers in order. After an error there is nothing more.
    pub(crate) fn headers(&self) -> Headers<'a> {
        Headers {
            rest: &self.bytes[self.headers.start() as usize..self.headers.end() as usize],
            section: Section::Platform,
            index: 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Platform,
    Initialization,
    Directive,
}

/// Iterates over the variable headers.
pub(crate) struct Headers<'a> {
    rest: &'a [u8],
    section: Section,
    index: u32,
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<Header<'a>, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.read();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

impl<'a> Headers<'a> {
    fn read(&mut self) -> Result<Header<'a>, ImageError> {
        let Ok((head, rest)) = IGVM_VHS_VARIABLE_HEADER::read_from_prefix(self.rest) else {
            return Err(Reason::HeaderLength.at(
                Place::Directive(self.index, IgvmVariableHeaderType::INVALID),
                Bytes(self.rest.len() as u64),
                Bytes(size_of::<IGVM_VHS_VARIABLE_HEADER>() as u64),
            ));
        };
        let kind = head.typ;
        let number = kind.0 & !IGVM_VHT_OPTIONAL_BIT;
        let section = match number {
            n if IGVM_VHT_RANGE_PLATFORM.contains(&n) => Section::Platform,
            n if IGVM_VHT_RANGE_INIT.contains(&n) => Section::Initialization,
            n if IGVM_VHT_RANGE_DIRECTIVE.contains(&n) => Section::Directive,
            // Belongs nowhere; whoever reads it decides.
            _ => self.section,
        };
        if section > self.section {
            (self.section, self.index) = (section, 0);
        }
        let place = match self.section {
            Section::Platform => Place::Platform(self.index, kind),
            Section::Initialization => Place::Initialization(self.index, kind),
            Section::Directive => Place::Directive(self.index, kind),
        };
        if section < self.section {
            let expected = match self.section {
                Section::Directive => Text("a directive"),
                _ => Text("an initialization header or a directive"),
            };
            return Err(Reason::Order.at(place, Hex(kind.0.into()), expected));
        }
        let length = head.length as usize;
        let padded = length.checked_next_multiple_of(HEADER_ALIGNMENT);
        let Some((body, next)) = padded.and_then(|size| rest.split_at_checked(size)) else {
            let (found, room) = (
                Bytes(length as u64),
                super::Detail::AtMost(rest.len() as u64),
            );
            return Err(Reason::HeaderLength.at(place, found, room));
        };
        let (body, padding) = body.split_at(length);
        if padding.as_bytes().iter().any(|byte| *byte != 0) {
            return Err(Reason::Padding.at(place, Text("other bytes"), Text("zeros")));
        }
        let index = self.index;
        self.index = self.index.saturating_add(1);
        self.rest = next;
        Ok(Header {
            place,
            index,
            kind,
            body,
        })
    }
}
