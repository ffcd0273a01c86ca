//! Reading of a bzImage: the setup header, and the part that is loaded.

use loader_defs::PAGE_SIZE;
use loader_defs::linux::{
    BOOT_FLAG, BOOT_PROTOCOL_XLOADFLAGS, DEFAULT_SETUP_SECTS, PARAGRAPH_SIZE, SECTOR_SIZE,
    SETUP_HEADER_MAGIC, SETUP_HEADER_OFFSET, SetupHeader, XloadFlags,
};
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use crate::GIB;

/// Offset of the byte that says where the setup header ends, counted from
/// [`HEADER_END_BASE`].
const HEADER_END_OFFSET: usize = 0x201;
/// What the header's end is counted from.
const HEADER_END_BASE: usize = 0x202;
/// The header of protocol 2.12 ends behind `handover_offset`.
const HEADER_MIN_END: usize = 0x268;

/// Why a bzImage cannot be used. The caller names the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BzImageError {
    /// Neither of the formats.
    #[error(
        "neither an ELF file (vmlinux) nor a bzImage: no ELF magic at 0, boot_flag at 0x1fe is \
         {boot_flag:#06x} (expected {BOOT_FLAG:#06x}), header at 0x202 is {header:#010x} \
         (expected {SETUP_HEADER_MAGIC:#010x})"
    )]
    Format {
        /// What is in place of the one.
        boot_flag: u16,
        /// What is in place of the other.
        header: u32,
    },
    /// It ends too early.
    #[error("the file has {size} bytes, {what} needs {needed}")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// The file.
        size: u64,
        /// What it says it has.
        needed: u64,
    },
    /// Too old for a 64-bit entry to be announced.
    #[error(
        "boot protocol version is {version:#06x}, expected at least \
         {BOOT_PROTOCOL_XLOADFLAGS:#06x} (Linux 3.8)"
    )]
    Version {
        /// What the header says.
        version: u16,
    },
    /// 32-bit.
    #[error("xloadflags is {xloadflags:#06x}, expected bit 0 (a 64-bit entry)")]
    No64BitEntry {
        /// What the header says.
        xloadflags: u16,
    },
    /// A number that makes no sense.
    #[error("{field} is {found:#x}, expected {expected}")]
    Field {
        /// Which one.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What would make sense.
        expected: &'static str,
    },
}

/// A kernel as the distributions ship it.
#[derive(Debug, Clone, Copy)]
pub struct BzImage<'a> {
    /// The setup header. Fields that the kernel's version of the protocol does not have are
    /// zero.
    pub header: SetupHeader,
    /// The part that is loaded, to the multiple of 16 bytes that the header says.
    pub payload: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Reads the header.
    pub fn parse(file: &'a [u8]) -> Result<Self, BzImageError> {
        let header = read_header(file)?;
        let sectors = match header.setup_sects {
            0 => DEFAULT_SETUP_SECTS,
            n => n,
        };
        // The boot sector comes first and is not counted.
        let start = (u64::from(sectors) + 1) * SECTOR_SIZE;
        let length = u64::from(header.syssize) * PARAGRAPH_SIZE;
        // A signature may follow.
        let truncated = BzImageError::Truncated {
            what: "its protected-mode part (setup_sects, syssize)",
            size: file.len() as u64,
            needed: start + length,
        };
        let payload = file
            .get(start as usize..(start + length) as usize)
            .ok_or(truncated)?;
        let image = Self { header, payload };
        image.check()?;
        Ok(image)
    }

    /// Memory that the kernel needs from its start on, in bytes.
    pub fn memory_size(&self) -> u64 {
        u64::from(self.header.init_size).max(self.payload.len() as u64)
    }

    /// What the address of a relocatable kernel is a multiple of.
    pub fn alignment(&self) -> u64 {
        u64::from(self.header.kernel_alignment)
    }

    /// The kernel can be at another address than it prefers.
    pub fn is_relocatable(&self) -> bool {
        self.header.relocatable_kernel != 0
    }

    fn check(&self) -> Result<(), BzImageError> {
        let field = |field, found: u64, expected| {
            Err(BzImageError::Field {
                field,
                found,
                expected,
            })
        };
        let header = &self.header;
        if self.payload.len() as u64 <= loader_defs::linux::ENTRY64_OFFSET {
            return field(
                "syssize",
                u64::from(header.syssize),
                "more than the 0x200 bytes in front of the 64-bit entry",
            );
        }
        let alignment = self.alignment();
        if !alignment.is_power_of_two() || !(PAGE_SIZE..=GIB).contains(&alignment) {
            return field(
                "kernel_alignment",
                alignment,
                "a power of two from 4 KiB to 1 GiB",
            );
        }
        let preferred = header.pref_address;
        if !preferred.is_multiple_of(PAGE_SIZE) {
            return field("pref_address", preferred, "a multiple of 0x1000");
        }
        if header.cmdline_size == 0 {
            return field("cmdline_size", 0, "room for a command line");
        }
        Ok(())
    }
}

fn read_header(file: &[u8]) -> Result<SetupHeader, BzImageError> {
    let mut header = SetupHeader::new_zeroed();
    let whole = SETUP_HEADER_OFFSET + size_of::<SetupHeader>();
    let available = &file[SETUP_HEADER_OFFSET.min(file.len())..whole.min(file.len())];
    header.as_mut_bytes()[..available.len()].copy_from_slice(available);
    if header.boot_flag != BOOT_FLAG || header.header != SETUP_HEADER_MAGIC {
        return Err(BzImageError::Format {
            boot_flag: header.boot_flag,
            header: header.header,
        });
    }
    let version = header.version;
    if version < BOOT_PROTOCOL_XLOADFLAGS {
        return Err(BzImageError::Version { version });
    }
    // Newer kernels have longer headers, older ones shorter: behind the end is code.
    let end = HEADER_END_BASE + file.get(HEADER_END_OFFSET).map_or(0, |b| usize::from(*b));
    if end < HEADER_MIN_END {
        return Err(BzImageError::Field {
            field: "the end of the setup header",
            found: end as u64,
            expected: "at least 0x268",
        });
    }
    if file.len() < end {
        return Err(BzImageError::Truncated {
            what: "its setup header",
            size: file.len() as u64,
            needed: end as u64,
        });
    }
    header.as_mut_bytes()[end.min(whole) - SETUP_HEADER_OFFSET..].fill(0);
    let xloadflags = header.xloadflags;
    if !XloadFlags::from_bits(xloadflags).kernel_64() {
        return Err(BzImageError::No64BitEntry { xloadflags });
    }
    Ok(header)
}
