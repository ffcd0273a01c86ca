//! Linux Direct on x86_64: the 64-bit boot protocol
//! (`Documentation/arch/x86/boot.rst`, "64-bit BOOT PROTOCOL").
//!
//! Low memory, all of it usable RAM once the kernel runs:
//!
//! | address | what |
//! | --- | --- |
//! | 0x1000 | GDT |
//! | 0x2000 | zero page |
//! | 0x3000 | page tables: the first 4 GiB, mapped to themselves in 2 MiB pages |
//! | 0x9000 | command line |
//! | 0xe0000 | ACPI tables, the RSDP first, where also a kernel finds it that looks for it |
//!
//! If the VM has no RAM at 0xe0000 (on a PC, it is the firmware's read-only shadow), the
//! ACPI tables are at 0x20000 or behind, for kernels that are told where.
//!
//! From 1 MiB on: the kernel where it is linked to or wants to be, the initrd at the next
//! multiple of 2 MiB behind it that has room.

mod kernel;
mod zero_page;

use crate::acpi::{self, AcpiError, Chipset};
use crate::bz_image::BzImageError;
use crate::elf::ElfError;
use crate::memory::{Free, MemoryError, MemoryLayout};
use crate::plan::{Piece, Plan, PlanError};
use crate::{GIB, MIB};
use alloc::borrow::Cow;
use alloc::vec::Vec;
use kernel::PlacedKernel;
use loader_defs::PAGE_SIZE;
use loader_defs::linux::{BIOS_AREA_END, BIOS_AREA_START, LEGACY_HOLE_START};
use loader_defs::range::GpaRange;
use page_table::{Attributes, Config, LeafSize, PageTable, Region, build_identity_map};
use thiserror::Error;
use x86_defs::long_mode::{self, DescriptorTable, Segment};
use zerocopy::{FromZeros, IntoBytes};

/// Where the GDT is.
pub const GDT_GPA: u64 = 0x1000;
/// Where the zero page is.
pub const ZERO_PAGE_GPA: u64 = 0x2000;
/// Where the root of the page tables is; the others follow.
pub const PAGE_TABLES_GPA: u64 = 0x3000;
/// Where the command line is.
pub const COMMAND_LINE_GPA: u64 = PAGE_TABLES_GPA + PAGE_TABLE_COUNT as u64 * PAGE_SIZE;
/// Where the ACPI tables are, if there is RAM.
pub const ACPI_GPA: u64 = BIOS_AREA_START;
/// Where they are at the lowest, if not.
pub const ACPI_LOW_GPA: u64 = 0x2_0000;
/// Nothing is loaded at or above: what the page tables map.
pub const ADDRESS_LIMIT: u64 = 4 * GIB;
/// The lowest address of a kernel.
pub const KERNEL_MIN_GPA: u64 = MIB;
/// What the address of the initrd is a multiple of.
pub const INITRD_ALIGNMENT: u64 = 2 * MIB;
/// MTRRs on, write-back where no other says otherwise. A guest without firmware finds
/// nobody else to set this; device memory is made uncached by the guest's page tables.
pub const MTRR_WRITE_BACK: u64 = 0x806;

/// One root, one table of level 3, and one of level 2 per GiB.
const PAGE_TABLE_COUNT: usize = 6;

/// What is to be loaded, and into what VM.
#[derive(Debug, Clone, Copy)]
pub struct LinuxDirect<'a> {
    /// The file: vmlinux (ELF) or bzImage.
    pub kernel: &'a [u8],
    /// The file.
    pub initrd: Option<&'a [u8]>,
    /// Without a zero.
    pub command_line: &'a str,
    /// The memory of the VM. It must have RAM below 640 KiB.
    pub memory: MemoryLayout<'a>,
    /// What the ACPI tables describe; `None`: there are none.
    pub chipset: Option<&'a Chipset<'a>>,
}

/// State of the first processor. What is not here is as after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer: the 64-bit entry.
    pub rip: u64,
    /// The zero page.
    pub rsi: u64,
    /// Flags: interrupts are off.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// The page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Long mode.
    pub efer: u64,
    /// Page attribute table.
    pub pat: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// The GDT.
    pub gdtr: DescriptorTable,
    /// Empty.
    pub idtr: DescriptorTable,
    /// 64-bit code.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// A task segment that nobody uses.
    pub tr: Segment,
    /// Empty.
    pub ldtr: Segment,
}

/// Why a kernel cannot be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LoadError {
    /// The memory of the VM.
    #[error("memory layout: {0}")]
    Memory(#[from] MemoryError),
    /// The kernel is not a usable vmlinux.
    #[error("kernel: {0}")]
    Elf(#[from] ElfError),
    /// The kernel is not a usable bzImage.
    #[error("kernel: {0}")]
    BzImage(#[from] BzImageError),
    /// A vmlinux that wants memory which belongs to others.
    #[error("kernel: its lowest segment is at {address:#x}, expected {KERNEL_MIN_GPA:#x} or above")]
    KernelTooLow {
        /// Where it is linked to.
        address: u64,
    },
    /// No room for the kernel.
    #[error(
        "kernel of {needed} bytes (with its zeroed memory) does not fit: at or above {from:#x}, \
         aligned to {alignment:#x}, below {limit:#x} at most {available} bytes of RAM are free"
    )]
    KernelDoesNotFit {
        /// What it needs.
        needed: u64,
        /// Where it can be at the lowest.
        from: u64,
        /// Its alignment.
        alignment: u64,
        /// The limit.
        limit: u64,
        /// The largest room.
        available: u64,
    },
    /// An initrd without bytes.
    #[error("initrd is empty, expected an archive, or none at all")]
    InitrdEmpty,
    /// No room for the initrd.
    #[error(
        "initrd of {size} bytes does not fit: behind the kernel at {from:#x}, aligned to 2 MiB, \
         below {limit:#x} at most {available} bytes of RAM are free"
    )]
    InitrdDoesNotFit {
        /// Its size.
        size: u64,
        /// End of the kernel.
        from: u64,
        /// The caller's limit, or that of the kernel (`initrd_addr_max`).
        limit: u64,
        /// The largest room.
        available: u64,
    },
    /// The command line is too long.
    #[error("command line has {size} bytes, expected at most {max}, which this kernel reads")]
    CommandLineTooLong {
        /// Its size.
        size: usize,
        /// What the kernel says.
        max: u32,
    },
    /// The command line would end early.
    #[error("command line has a zero at byte {offset}, expected none")]
    CommandLineZero {
        /// Where.
        offset: usize,
    },
    /// The ACPI tables.
    #[error("ACPI: {0}")]
    Acpi(#[from] AcpiError),
    /// No room for the ACPI tables.
    #[error(
        "ACPI tables of {size} bytes do not fit: from 0xe0000 to 1 MiB there is not enough RAM, \
         and {elsewhere}"
    )]
    AcpiDoesNotFit {
        /// Their size.
        size: u64,
        /// Why they cannot be anywhere else.
        elsewhere: &'static str,
    },
    /// The memory map is too long.
    #[error("memory map has {found} entries, expected at most {max}")]
    MemoryMap {
        /// Its entries.
        found: usize,
        /// What the zero page holds.
        max: usize,
    },
    /// The page tables.
    #[error("page tables: {0}")]
    PageTables(#[from] page_table::Error),
    /// Something is where it cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl<'a> LinuxDirect<'a> {
    /// Decides where everything goes. Nothing is written.
    pub fn plan(&self) -> Result<Plan<'a, Registers>, LoadError> {
        self.memory.validate()?;
        let usable = self.memory.usable();
        let limit = self.memory.limit.min(ADDRESS_LIMIT);

        // The kernel lives above 1 MiB, so what is below needs no bookkeeping here; the
        // plan checks it all.
        let mut free = usable.clone();
        let low = GpaRange::from_bounds(0, KERNEL_MIN_GPA).unwrap_or(GpaRange::EMPTY);
        free.remove(low);
        let kernel = PlacedKernel::new(self.kernel, &free, limit)?;
        let initrd = self.place_initrd(&kernel, &free, limit)?;
        let command_line = self.command_line(&kernel)?;
        let tables = self.acpi_tables(&kernel, &usable)?;
        let acpi = tables.as_ref().map(|tables| tables.range);
        let zero_page = zero_page::build(&zero_page::Contents {
            header: kernel.header,
            command_line: COMMAND_LINE_GPA,
            initrd,
            rsdp: acpi.map_or(0, |range| range.start()),
            memory_map: &zero_page::memory_map(&usable, self.memory.reserved, acpi),
        })?;

        let mut pieces = kernel.pieces;
        pieces.push(Piece::new(
            "GDT",
            GDT_GPA,
            owned(long_mode::GDT.as_bytes()),
        )?);
        pieces.push(page_tables()?);
        pieces.push(Piece::new("zero page", ZERO_PAGE_GPA, zero_page.into())?);
        pieces.push(Piece::new(
            "command line",
            COMMAND_LINE_GPA,
            command_line.into(),
        )?);
        pieces.extend(tables);
        if let (Some(range), Some(file)) = (initrd, self.initrd) {
            pieces.push(Piece::new("initrd", range.start(), file.into())?);
        }
        Ok(Plan::new(pieces, registers(kernel.entry), &usable, limit)?)
    }

    fn acpi_tables(
        &self,
        kernel: &PlacedKernel<'_>,
        usable: &Free,
    ) -> Result<Option<Piece<'a>>, LoadError> {
        let Some(chipset) = self.chipset else {
            return Ok(None);
        };
        // The size does not depend on the address, so this is only to know it.
        let size = acpi::build(chipset, self.memory.ram, ACPI_GPA)?.len() as u64;
        let does_not_fit = |elsewhere| LoadError::AcpiDoesNotFit { size, elsewhere };
        let in_bios_area = GpaRange::new(ACPI_GPA, size)
            .filter(|range| range.end() <= BIOS_AREA_END && usable.contains(*range));
        let range = match in_bios_area {
            Some(range) => range,
            None if !kernel.reads_rsdp_address() => {
                return Err(does_not_fit("this kernel looks for them only there"));
            }
            None => usable
                .find(size, PAGE_SIZE, ACPI_LOW_GPA, LEGACY_HOLE_START)
                .ok_or(does_not_fit("neither is there from 0x20000 to 640 KiB"))?,
        };
        let tables = acpi::build(chipset, self.memory.ram, range.start())?;
        Ok(Some(Piece::new(
            "ACPI tables",
            range.start(),
            tables.into(),
        )?))
    }

    fn place_initrd(
        &self,
        kernel: &PlacedKernel<'_>,
        free: &Free,
        limit: u64,
    ) -> Result<Option<GpaRange>, LoadError> {
        let Some(file) = self.initrd else {
            return Ok(None);
        };
        if file.is_empty() {
            return Err(LoadError::InitrdEmpty);
        }
        let size = file.len() as u64;
        let from = kernel.range.end();
        let limit = limit.min(kernel.initrd_limit());
        let place = free.find(size, INITRD_ALIGNMENT, from, limit);
        match place {
            Some(range) => Ok(Some(range)),
            None => Err(LoadError::InitrdDoesNotFit {
                size,
                from,
                limit,
                available: free.largest(INITRD_ALIGNMENT, from, limit),
            }),
        }
    }

    fn command_line(&self, kernel: &PlacedKernel<'_>) -> Result<Vec<u8>, LoadError> {
        let text = self.command_line.as_bytes();
        let max = kernel.command_line_max();
        if text.len() > max as usize {
            return Err(LoadError::CommandLineTooLong {
                size: text.len(),
                max,
            });
        }
        if let Some(offset) = text.iter().position(|byte| *byte == 0) {
            return Err(LoadError::CommandLineZero { offset });
        }
        Ok([text, b"\0"].concat())
    }
}

fn owned<'a>(bytes: &[u8]) -> Cow<'a, [u8]> {
    Cow::Owned(bytes.to_vec())
}

fn page_tables<'a>() -> Result<Piece<'a>, LoadError> {
    let mut tables: Vec<PageTable> = Vec::new();
    tables.resize_with(PAGE_TABLE_COUNT, PageTable::new_zeroed);
    build_identity_map(
        &mut tables,
        PAGE_TABLES_GPA,
        &[Region::new(0, ADDRESS_LIMIT, Attributes::SUPERVISOR)],
        Config::supervisor(LeafSize::Size2M),
    )?;
    Ok(Piece::new(
        "page tables",
        PAGE_TABLES_GPA,
        owned(tables.as_bytes()),
    )?)
}

fn registers(entry: u64) -> Registers {
    Registers {
        rip: entry,
        rsi: ZERO_PAGE_GPA,
        rflags: long_mode::RFLAGS,
        cr0: long_mode::CR0,
        cr3: PAGE_TABLES_GPA,
        cr4: long_mode::CR4,
        efer: long_mode::EFER,
        pat: x86_defs::PAT_AT_RESET,
        mtrr_def_type: MTRR_WRITE_BACK,
        gdtr: DescriptorTable {
            base: GDT_GPA,
            limit: (size_of_val(&long_mode::GDT) - 1) as u16,
        },
        idtr: DescriptorTable::default(),
        cs: long_mode::CODE,
        data: long_mode::DATA,
        tr: long_mode::TASK,
        ldtr: long_mode::LOCAL_TABLE,
    }
}

// There is room for the longest command line of Linux.
const _: () = assert!(COMMAND_LINE_GPA + 0x1_0000 <= ACPI_LOW_GPA);
