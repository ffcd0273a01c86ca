//! The outer form of the file: fixed header, checksum, and the list of variable headers.

use super::error::Detail::{AtMost, MultipleOf, Within};
use super::error::{Detail, ImageError, Place, Reason};
use crate::MemoryRange;
use igvm_defs::*;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Alignment of variable headers.
const HEADER_ALIGNMENT: usize = 8;

/// A file whose outer form is right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct File<'a> {
    bytes: &'a [u8],
    headers: &'a [u8],
    data: MemoryRange,
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
    pub(crate) fn structure<T>(&self) -> Result<T, ImageError>
    where
        T: FromBytes + KnownLayout + Immutable,
    {
        let (found, expected) = (self.body.len() as u64, size_of::<T>() as u64);
        T::read_from_bytes(self.body)
            .map_err(|_| Reason::Field("length of the header").at(self.place, found, expected))
    }

    /// Refuses the file unless `right`.
    pub(crate) fn ensure(
        &self,
        right: bool,
        reason: Reason,
        found: impl Into<Detail>,
        expected: impl Into<Detail>,
    ) -> Result<(), ImageError> {
        ensure(right, self.place, reason, found, expected)
    }

    /// Checks that a field is a multiple of its alignment.
    pub(crate) fn aligned(&self, what: &'static str, n: u64, to: u64) -> Result<(), ImageError> {
        self.ensure(
            n.is_multiple_of(to),
            Reason::Unaligned(what),
            n,
            MultipleOf(to),
        )
    }

    /// Checks a field that has only one right value.
    pub(crate) fn equal(&self, what: &'static str, n: u64, right: u64) -> Result<(), ImageError> {
        self.ensure(n == right, Reason::Field(what), n, right)
    }

    /// Checks that a reserved field is zero.
    pub(crate) fn reserved(&self, n: u64) -> Result<(), ImageError> {
        self.equal("reserved field", n, 0)
    }
}

/// Refuses the file unless `right`.
fn ensure(
    right: bool,
    place: Place,
    reason: Reason,
    found: impl Into<Detail>,
    expected: impl Into<Detail>,
) -> Result<(), ImageError> {
    if right {
        Ok(())
    } else {
        Err(reason.at(place, found, expected))
    }
}

impl<'a> File<'a> {
    /// Checks the fixed header and the checksum.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let at = Place::FixedHeader;
        let field = Reason::Field;
        let length = bytes.len() as u64;
        let short = |needed: usize| field("file size").at(at, length, needed as u64);
        let (v1, _) = IGVM_FIXED_HEADER::read_from_prefix(bytes)
            .map_err(|_| short(size_of::<IGVM_FIXED_HEADER>()))?;
        let (n, right) = (v1.magic, IGVM_MAGIC_VALUE);
        ensure(n == right, at, field("magic number"), n, right)?;
        let n = v1.format_version;
        let right = [IGVM_FORMAT_VERSION_1, IGVM_FORMAT_VERSION_2].contains(&n);
        ensure(right, at, field("format version"), n, "1 or 2")?;
        let mut fixed_size = size_of::<IGVM_FIXED_HEADER>();
        if n == IGVM_FORMAT_VERSION_2 {
            fixed_size = size_of::<IGVM_FIXED_HEADER_V2>();
            let (v2, _) =
                IGVM_FIXED_HEADER_V2::read_from_prefix(bytes).map_err(|_| short(fixed_size))?;
            let (n, right) = (v2.architecture.0, IgvmArchitecture::X64.0);
            ensure(n == right, at, field("architecture"), n, "0 (x64)")?;
            let (n, right) = (v2.page_size, PAGE_SIZE_4K as u32);
            ensure(n == right, at, field("page size"), n, right)?;
        }
        let n = v1.total_file_size;
        let right = u64::from(n) == length;
        ensure(right, at, field("file size"), length, n)?;
        let (start, n) = (
            v1.variable_header_offset as usize,
            v1.variable_header_offset,
        );
        let inside = (fixed_size..=bytes.len()).contains(&start);
        let right = inside && start.is_multiple_of(HEADER_ALIGNMENT);
        let expected = "a multiple of 8 behind the fixed header";
        ensure(right, at, field("header offset"), n, expected)?;
        let n = u64::from(v1.variable_header_size);
        let most = length - start as u64;
        ensure(n <= most, at, field("header size"), n, AtMost(most))?;
        let end = start + v1.variable_header_size as usize;
        // The checksum is taken as if its own field were zero.
        let mut fixed = bytes[..fixed_size].to_vec();
        let position = core::mem::offset_of!(IGVM_FIXED_HEADER, checksum);
        fixed[position..position + size_of::<u32>()].fill(0);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&fixed);
        crc.update(&bytes[start..end]);
        let (n, right) = (v1.checksum, crc.finalize());
        ensure(n == right, at, field("header CRC-32"), n, right)?;
        Ok(Self {
            bytes,
            headers: &bytes[start..end],
            data: MemoryRange::new(end as u64, length),
        })
    }

    /// File data, which is behind the headers; all from `offset` if no size is given.
    pub(crate) fn data(
        &self,
        header: &Header<'_>,
        offset: u32,
        size: Option<u64>,
    ) -> Result<&'a [u8], ImageError> {
        let start = u64::from(offset);
        let size = size.unwrap_or(self.data.end().saturating_sub(start));
        let range = MemoryRange::new(start, start.saturating_add(size));
        let right = self.data.covers(range);
        header.ensure(right, Reason::FileData, range, Within(self.data))?;
        Ok(&self.bytes[range.start() as usize..range.end() as usize])
    }

    /// Two pieces of file data as one, if the second follows the first in the file.
    pub(crate) fn join(&self, first: &'a [u8], second: &'a [u8]) -> Option<&'a [u8]> {
        let offset = |piece: &[u8]| piece.as_ptr().addr() - self.bytes.as_ptr().addr();
        let (start, end) = (offset(first), offset(second));
        (start + first.len() == end).then(|| &self.bytes[start..end + second.len()])
    }

    /// The variable headers in order. After an error there is nothing more.
    pub(crate) fn headers(&self) -> Headers<'a> {
        Headers {
            rest: self.headers,
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
        let rest = core::mem::take(&mut self.rest);
        Some(self.read(rest))
    }
}

impl<'a> Headers<'a> {
    /// Reads the first header of `bytes` and keeps what follows it.
    fn read(&mut self, bytes: &'a [u8]) -> Result<Header<'a>, ImageError> {
        let length = Reason::Field("length of the header");
        let Ok((head, rest)) = IGVM_VHS_VARIABLE_HEADER::read_from_prefix(bytes) else {
            let place = Place::Directive(self.index, IgvmVariableHeaderType::INVALID);
            let needed = size_of::<IGVM_VHS_VARIABLE_HEADER>() as u64;
            return Err(length.at(place, bytes.len() as u64, needed));
        };
        let kind = head.typ;
        let section = match kind.0 & !IGVM_VHT_OPTIONAL_BIT {
            n if IGVM_VHT_RANGE_PLATFORM.contains(&n) => Section::Platform,
            n if IGVM_VHT_RANGE_INIT.contains(&n) => Section::Initialization,
            n if IGVM_VHT_RANGE_DIRECTIVE.contains(&n) => Section::Directive,
            // Belongs nowhere; whoever reads it decides.
            _ => self.section,
        };
        if section > self.section {
            (self.section, self.index) = (section, 0);
        }
        let index = self.index;
        let place = match self.section {
            Section::Platform => Place::Platform(index, kind),
            Section::Initialization => Place::Initialization(index, kind),
            Section::Directive => Place::Directive(index, kind),
        };
        let (right, expected) = (
            section == self.section,
            "a header of this section or a later one",
        );
        ensure(right, place, Reason::Order, kind.0, expected)?;
        let size = head.length as usize;
        let (n, room) = (size.next_multiple_of(HEADER_ALIGNMENT), rest.len() as u64);
        ensure(n as u64 <= room, place, length, size as u64, AtMost(room))?;
        let (body, padding) = rest[..n].split_at(size);
        let right = padding.iter().all(|byte| *byte == 0);
        ensure(
            right,
            place,
            Reason::Field("padding"),
            "other bytes",
            "zeros",
        )?;
        self.index = index.saturating_add(1);
        self.rest = &rest[n..];
        Ok(Header {
            place,
            index,
            kind,
            body,
        })
    }
}
