//! Where the kernel goes.

use super::{KERNEL_MIN_GPA, LoadError};
use crate::bz_image::BzImage;
use crate::elf::{ElfFile, Placement};
use crate::memory::Free;
use crate::plan::{Piece, PlanError, Tail};
use alloc::vec;
use alloc::vec::Vec;
use loader_defs::linux::{BOOT_PROTOCOL_RSDP, COMMAND_LINE_MAX, ENTRY64_OFFSET, SetupHeader};
use loader_defs::range::GpaRange;

/// `initrd_addr_max` of every x86-64 kernel; a vmlinux does not say it.
const VMLINUX_INITRD_MAX: u32 = 0x7fff_ffff;

/// A kernel with an address.
#[derive(Debug)]
pub(super) struct PlacedKernel<'a> {
    /// What is loaded.
    pub(super) pieces: Vec<Piece<'a>>,
    /// Memory that the kernel takes.
    pub(super) range: GpaRange,
    /// The 64-bit entry.
    pub(super) entry: u64,
    /// The setup header of a bzImage.
    pub(super) header: Option<SetupHeader>,
}

impl<'a> PlacedKernel<'a> {
    /// Reads the file and finds room for it in `free`, which is memory above 1 MiB.
    pub(super) fn new(file: &'a [u8], free: &Free, limit: u64) -> Result<Self, LoadError> {
        if ElfFile::has_magic(file) {
            Self::vmlinux(&ElfFile::parse(file, Placement::Physical)?, free, limit)
        } else {
            Self::bz_image(&BzImage::parse(file)?, free, limit)
        }
    }

    /// The first byte behind the last that the initrd can have.
    pub(super) fn initrd_limit(&self) -> u64 {
        let max = match self.header {
            Some(header) => header.initrd_addr_max,
            None => VMLINUX_INITRD_MAX,
        };
        u64::from(max) + 1
    }

    /// Bytes of the longest command line, without the zero.
    pub(super) fn command_line_max(&self) -> u32 {
        match self.header {
            Some(header) => header.cmdline_size,
            None => COMMAND_LINE_MAX,
        }
    }

    /// The kernel reads `acpi_rsdp_addr`. A vmlinux does not say it; that field is as old as
    /// Linux 5.0.
    pub(super) fn reads_rsdp_address(&self) -> bool {
        self.header
            .is_none_or(|header| header.version >= BOOT_PROTOCOL_RSDP)
    }

    /// A vmlinux goes where it is linked to. A program that can be anywhere and is not
    /// linked above 1 MiB goes to the lowest place there.
    fn vmlinux(elf: &ElfFile<'a>, free: &Free, limit: u64) -> Result<Self, LoadError> {
        let entry = elf.entry_address()?;
        let size = elf.end() - elf.start();
        let does_not_fit = |from, alignment| LoadError::KernelDoesNotFit {
            needed: size,
            from,
            alignment,
            limit,
            available: free.largest(alignment, from, limit),
        };
        let range = if elf.start() >= KERNEL_MIN_GPA {
            free.find(size, 1, elf.start(), limit)
                .filter(|found| found.start() == elf.start())
                .ok_or(does_not_fit(elf.start(), 1))?
        } else if elf.position_independent {
            // The distance to the next multiple of the alignment must not change.
            let ragged = elf.start() % elf.alignment;
            let place = free
                .find(size + ragged, elf.alignment, KERNEL_MIN_GPA, limit)
                .ok_or(does_not_fit(KERNEL_MIN_GPA, elf.alignment))?;
            GpaRange::from_bounds(place.start() + ragged, place.end()).unwrap_or(place)
        } else {
            return Err(LoadError::KernelTooLow {
                address: elf.start(),
            });
        };
        let moved = |address: u64| address - elf.start() + range.start();
        let pieces = elf.segments.iter().map(|segment| {
            let piece = Piece::new(
                "kernel segment",
                moved(segment.address),
                segment.data.into(),
            )?;
            Ok(Piece {
                range: GpaRange::from_bounds(moved(segment.address), moved(segment.end))
                    .unwrap_or(piece.range),
                tail: Tail::Zero,
                ..piece
            })
        });
        Ok(Self {
            pieces: pieces.collect::<Result<_, PlanError>>()?,
            range,
            entry: moved(entry),
            header: None,
        })
    }

    /// A bzImage goes to the address that it prefers, else, if it is relocatable, to the
    /// lowest one above that has room: below, it would move itself up again and write to
    /// memory that it was not given.
    fn bz_image(image: &BzImage<'a>, free: &Free, limit: u64) -> Result<Self, LoadError> {
        let size = image.memory_size();
        let preferred = image.header.pref_address;
        let from = preferred.max(KERNEL_MIN_GPA);
        let alignment = match image.is_relocatable() {
            true => image.alignment(),
            false => 1,
        };
        let range = free
            .find(size, alignment, from, limit)
            .filter(|found| image.is_relocatable() || found.start() == preferred)
            .ok_or(LoadError::KernelDoesNotFit {
                needed: size,
                from,
                alignment,
                limit,
                available: free.largest(alignment, from, limit),
            })?;
        let mut piece = Piece::new("kernel", range.start(), image.payload.into())?;
        piece.range = range;
        Ok(Self {
            pieces: vec![piece],
            range,
            entry: range.start() + ENTRY64_OFFSET,
            header: Some(image.header),
        })
    }
}
