//! Reading of ELF programs: loadable segments and the entry. A wrong file is an everyday
//! mistake, so everything is checked and nothing panics.

use alloc::vec::Vec;
use loader_defs::PAGE_SIZE;
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use page_table::{ADDRESS_LIMIT, LeafSize};
use thiserror::Error;

/// Why an ELF file cannot be used. The caller names the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ElfError {
    /// The reader gives up.
    #[error("not a readable 64-bit little-endian ELF file: {0}")]
    Unreadable(object::read::Error),
    /// Another machine.
    #[error("e_machine is {found}, expected {EM_X86_64} (x86_64)")]
    Machine {
        /// What the file says.
        found: u16,
    },
    /// Another kind of file.
    #[error("e_type is {found}, expected {expected}")]
    Type {
        /// What the file says.
        found: u16,
        /// What is needed.
        expected: &'static str,
    },
    /// Nothing to load.
    #[error("there is no loadable segment with contents")]
    NoSegments,
    /// A segment whose numbers make no sense.
    #[error("segment {index}: {problem}")]
    Segment {
        /// Index of the program header.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Two segments for the same bytes.
    #[error("segments {first} and {second} overlap at {address:#x}")]
    Overlap {
        /// Index of the one with the lower address.
        first: usize,
        /// Index of the other.
        second: usize,
        /// Where.
        address: u64,
    },
    /// The entry is outside.
    #[error("the entry {entry:#x} is outside of the contents of every loadable segment")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
}

/// Which of its two addresses places a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// `p_paddr`.
    Physical,
    /// `p_vaddr`.
    Virtual,
}

/// A loadable segment that takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Index of the program header.
    pub index: usize,
    /// First byte, as [`Placement`] says.
    pub address: u64,
    /// The byte behind the last.
    pub end: u64,
    /// `p_vaddr`.
    pub virtual_address: u64,
    /// Contents; zeros follow up to `end`.
    pub data: &'a [u8],
}

/// An ELF program for x86_64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfFile<'a> {
    /// The segments: at least one, ascending and disjoint, below 2^48.
    pub segments: Vec<Segment<'a>>,
    /// `e_entry`.
    pub entry: u64,
    /// The program can be anywhere (ET_DYN; else it is ET_EXEC).
    pub position_independent: bool,
    /// Largest alignment of a segment: a power of two, from 4 KiB to 2 MiB.
    pub alignment: u64,
}

impl<'a> ElfFile<'a> {
    /// Whether a file says that it is ELF.
    pub fn has_magic(file: &[u8]) -> bool {
        file.starts_with(b"\x7fELF")
    }

    /// Reads the headers.
    pub fn parse(file: &'a [u8], placement: Placement) -> Result<Self, ElfError> {
        let header = FileHeader64::<LittleEndian>::parse(file).map_err(ElfError::Unreadable)?;
        let endian = header.endian().map_err(ElfError::Unreadable)?;
        let found = header.e_machine(endian);
        if found != EM_X86_64 {
            return Err(ElfError::Machine { found: found.0 });
        }
        let found = header.e_type(endian);
        if found != ET_EXEC && found != ET_DYN {
            return Err(ElfError::Type {
                found: found.0,
                expected: "2 or 3 (ET_EXEC, ET_DYN)",
            });
        }

        let mut elf = Self {
            segments: Vec::new(),
            entry: header.e_entry(endian),
            position_independent: found == ET_DYN,
            alignment: PAGE_SIZE,
        };
        let headers = header
            .program_headers(endian, file)
            .map_err(ElfError::Unreadable)?;
        for (index, program) in headers.iter().enumerate() {
            if program.p_type(endian) == PT_LOAD && program.p_memsz(endian) != 0 {
                elf.add(index, program, file, placement)?;
            }
        }
        elf.segments.sort_by_key(|s| s.address);
        if let Some([a, b]) = elf
            .segments
            .array_windows()
            .find(|[a, b]| a.end > b.address)
        {
            return Err(ElfError::Overlap {
                first: a.index,
                second: b.index,
                address: b.address,
            });
        }
        if elf.segments.is_empty() {
            return Err(ElfError::NoSegments);
        }
        Ok(elf)
    }

    fn add(
        &mut self,
        index: usize,
        program: &object::elf::ProgramHeader64<LittleEndian>,
        file: &'a [u8],
        placement: Placement,
    ) -> Result<(), ElfError> {
        let endian = LittleEndian;
        let wrong = |problem| ElfError::Segment { index, problem };
        let size = program.p_memsz(endian);
        let data = program
            .data(endian, file)
            .map_err(|()| wrong("its contents are outside of the file"))?;
        if data.len() as u64 > size {
            return Err(wrong("it is larger in the file than in memory"));
        }
        let virtual_address = program.p_vaddr(endian);
        let address = match placement {
            Placement::Physical => program.p_paddr(endian),
            Placement::Virtual => virtual_address,
        };
        let end = address
            .checked_add(size)
            .filter(|end| *end <= ADDRESS_LIMIT)
            .ok_or(wrong("it ends beyond 2^48"))?;
        let alignment = program.p_align(endian).max(PAGE_SIZE);
        if !alignment.is_power_of_two() || alignment > LeafSize::Size2M.bytes() {
            return Err(wrong(
                "its alignment is neither a power of two nor at most 2 MiB",
            ));
        }
        self.alignment = self.alignment.max(alignment);
        self.segments.push(Segment {
            index,
            address,
            end,
            virtual_address,
            data,
        });
        Ok(())
    }

    /// First byte of the first segment.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(0, |s| s.address)
    }

    /// The byte behind the last segment.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.end)
    }

    /// The address of the entry, in the terms of [`Segment::address`]. That of a kernel is
    /// a physical address; some linkers leave a virtual one. The segment need not be
    /// executable: Linux starts in .init.text, which may be part of the data segment, and
    /// switches to its own page tables.
    pub fn entry_address(&self) -> Result<u64, ElfError> {
        let entry = self.entry;
        let in_segment = |s: &Segment<'_>| {
            let offset_in = |base: u64| {
                entry
                    .checked_sub(base)
                    .filter(|offset| *offset < s.data.len() as u64)
            };
            offset_in(s.address)
                .or_else(|| offset_in(s.virtual_address))
                .map(|offset| s.address + offset)
        };
        self.segments
            .iter()
            .find_map(in_segment)
            .ok_or(ElfError::Entry { entry })
    }
}
