//! The boot digest: what identifies an image to somebody who has to trust it.
//!
//! The digest is the one that a host with virtualization-based security computes while it
//! loads the file. It is a chain: 32 zero bytes first, then for each record
//!
//! ```text
//! digest = SHA-256(digest ‖ record)
//! ```
//!
//! Records come in this order:
//!
//! 1. For each directive, in file order:
//!    - *PageData*, unless it is shared: one page record with the contents, zero-filled to
//!      4 KiB. A page that is marked unmeasured gives a record with that mark and with
//!      zeros for contents: that the page exists is measured, what it holds is not.
//!    - *ParameterInsert*: one unmeasured page record for each page of the area. What the
//!      host deposits there, or what the file holds as initial data, is not measured.
//!    - *ErrorRange*: one unmeasured page record for each page, marked readable and
//!      writable by the host.
//!    - everything else gives no record. In particular the required memory, the place
//!      that the host chooses when it relocates the image, and the size of the memory are
//!      not part of the digest, except through the pages that state them.
//! 2. For each register of each VP context, in file order: one register record.
//!
//! A page record is 4,128 bytes: length 4128 (u32), type 2 (u32), zero (u64), flags (u64:
//! bits 0-1 host access, bit 2 unmeasured), page number (u64), 4,096 bytes of contents.
//! A register record is 48 bytes: length 48 (u32), type 0 (u32), zero (u64), zero (u32),
//! VTL (u8), zero (7 bytes), register name (u32), value (16 bytes). All numbers are little-endian.

use crate::view::Image;
use igvm::IgvmDirectiveHeader;
use loader_defs::PAGE_SIZE;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use zerocopy::{Immutable, IntoBytes};

/// A page.
const TYPE_PAGE: u32 = 2;
/// A register.
const TYPE_REGISTER: u32 = 0;
/// The contents do not count.
const FLAG_UNMEASURED: u64 = 1 << 2;
/// The host may read and write the page.
const FLAGS_HOST_ACCESS: u64 = 0b11;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct RecordHeader {
    length: u32,
    kind: u32,
    reserved: u64,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct PageRecord {
    header: RecordHeader,
    flags: u64,
    page_number: u64,
    contents: [u8; PAGE_SIZE as usize],
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct RegisterRecord {
    header: RecordHeader,
    reserved: u32,
    vtl: u8,
    reserved2: [u8; 7],
    name: u32,
    value: [u8; 16],
}

/// A boot digest and what went into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// The digest.
    pub digest: [u8; 32],
    /// Pages of which the contents were hashed.
    pub measured_pages: u64,
    /// Pages of which only the existence was hashed.
    pub unmeasured_pages: u64,
    /// Registers.
    pub registers: u64,
}

/// Computes the boot digest of an image.
pub fn measure(image: &Image) -> Measurement {
    let mut state = Measurement {
        digest: [0; 32],
        measured_pages: 0,
        unmeasured_pages: 0,
        registers: 0,
    };
    let mut areas = BTreeMap::new();
    for directive in image.file.directives() {
        match directive {
            IgvmDirectiveHeader::PageData {
                gpa, flags, data, ..
            } if !flags.shared() => {
                let contents = (!flags.unmeasured()).then_some(data.as_slice());
                state.add_page(gpa / PAGE_SIZE, 0, contents);
            }
            IgvmDirectiveHeader::ParameterArea {
                number_of_bytes,
                parameter_area_index,
                ..
            } => {
                areas.insert(*parameter_area_index, *number_of_bytes);
            }
            IgvmDirectiveHeader::ParameterInsert(insert) => {
                let size = areas.get(&insert.parameter_area_index).copied();
                for page in 0..size.unwrap_or_default() / PAGE_SIZE {
                    state.add_page((insert.gpa / PAGE_SIZE).wrapping_add(page), 0, None);
                }
            }
            IgvmDirectiveHeader::ErrorRange {
                gpa, size_bytes, ..
            } => {
                for page in 0..u64::from(*size_bytes).div_ceil(PAGE_SIZE) {
                    state.add_page(
                        (gpa / PAGE_SIZE).wrapping_add(page),
                        FLAGS_HOST_ACCESS,
                        None,
                    );
                }
            }
            _ => {}
        }
    }
    for directive in image.file.directives() {
        if let IgvmDirectiveHeader::X64VbsVpContext { vtl, registers, .. } = directive {
            for register in registers {
                let raw = register.into_vbs_vp_context_reg(*vtl);
                state.add_register(raw.vtl, raw.register_name.into(), raw.register_value);
            }
        }
    }
    state
}

impl Measurement {
    fn add_page(&mut self, page_number: u64, flags: u64, measured: Option<&[u8]>) {
        let mut record = PageRecord {
            header: RecordHeader {
                length: size_of::<PageRecord>() as u32,
                kind: TYPE_PAGE,
                reserved: 0,
            },
            flags,
            page_number,
            contents: [0; PAGE_SIZE as usize],
        };
        match measured {
            Some(data) => {
                let length = data.len().min(record.contents.len());
                record.contents[..length].copy_from_slice(&data[..length]);
                self.measured_pages += 1;
            }
            None => {
                record.flags |= FLAG_UNMEASURED;
                self.unmeasured_pages += 1;
            }
        }
        self.extend(record.as_bytes());
    }

    fn add_register(&mut self, vtl: u8, name: u32, value: [u8; 16]) {
        let record = RegisterRecord {
            header: RecordHeader {
                length: size_of::<RegisterRecord>() as u32,
                kind: TYPE_REGISTER,
                reserved: 0,
            },
            reserved: 0,
            vtl,
            reserved2: [0; 7],
            name,
            value,
        };
        self.registers += 1;
        self.extend(record.as_bytes());
    }

    fn extend(&mut self, record: &[u8]) {
        let mut hasher = Sha256::new();
        hasher.update(self.digest);
        hasher.update(record);
        self.digest = hasher.finalize().into();
    }
}

const _: () = assert!(size_of::<PageRecord>() == 4128);
const _: () = assert!(size_of::<RegisterRecord>() == 48);
