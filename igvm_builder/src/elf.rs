//! Reading of kernel and shim: from ELF to pages. The files come from the build, but a
//! wrong file is an everyday mistake, so everything is checked and nothing panics.

use crate::component::GpaRange;
use loader_defs::PAGE_SIZE;
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use page_table::LeafSize;
use thiserror::Error;

/// Why an ELF file cannot be used. The caller names the file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ElfError {
    /// The reader gives up.
    #[error("not a readable 64-bit little-endian ELF file: {0}")]
    Unreadable(String),
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
    /// The loaded program does not fit.
    #[error("the segments span {needed} bytes, {available} are available")]
    TooLarge {
        /// From the first to the last byte.
        needed: u64,
        /// VTL2's memory.
        available: u64,
    },
    /// The entry is outside.
    #[error("the entry {entry:#x} is outside of the contents of every loadable segment")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
    /// The shim's lowest segment is not where its image base should be.
    #[error("the lowest segment starts at {found:#x}, expected 0")]
    ImageBase {
        /// Its address.
        found: u64,
    },
}

/// How the segments of a program are to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// By physical address, with zeroed BSS.
    Kernel,
    /// Position independent and linked to 0, by virtual address, without BSS: the shim
    /// zeroes it itself, and after a reboot it has to.
    Shim,
    /// As the shim, with zeroed BSS.
    Sidecar,
}

/// A program as it will be in memory, relative to its own start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Bytes that the program occupies, whole pages, BSS included.
    pub memory_size: u64,
    /// Offset of the entry.
    pub entry: u64,
    /// What the start has to be a multiple of.
    pub alignment: u64,
    /// Contents up to the last page that is in the file.
    contents: Vec<u8>,
    /// Which pages of `contents` belong to a segment.
    present: Vec<bool>,
}

struct Segment<'a> {
    index: usize,
    address: u64,
    end: u64,
    virtual_address: u64,
    data: &'a [u8],
}

impl Program {
    /// Reads a program of at most `available` bytes.
    pub fn parse(file: &[u8], role: Role, available: u64) -> Result<Self, ElfError> {
        let unreadable = |e: object::Error| ElfError::Unreadable(e.to_string());
        let header = FileHeader64::<LittleEndian>::parse(file).map_err(unreadable)?;
        let endian = header.endian().map_err(unreadable)?;
        let found = header.e_machine(endian);
        if found != EM_X86_64 {
            return Err(ElfError::Machine { found: found.0 });
        }
        let found = header.e_type(endian);
        match role {
            Role::Kernel if found != ET_EXEC && found != ET_DYN => Err("2 or 3 (ET_EXEC, ET_DYN)"),
            Role::Shim | Role::Sidecar if found != ET_DYN => Err("3 (ET_DYN)"),
            _ => Ok(()),
        }
        .map_err(|expected| ElfError::Type {
            found: found.0,
            expected,
        })?;

        let mut segments = Vec::new();
        let mut alignment = PAGE_SIZE;
        let headers = header.program_headers(endian, file).map_err(unreadable)?;
        for (index, program) in headers.iter().enumerate() {
            let size = program.p_memsz(endian);
            if program.p_type(endian) != PT_LOAD || size == 0 {
                continue;
            }
            let wrong = |problem| ElfError::Segment { index, problem };
            let data = program
                .data(endian, file)
                .map_err(|()| wrong("its contents are outside of the file"))?;
            if data.len() as u64 > size {
                return Err(wrong("it is larger in the file than in memory"));
            }
            let virtual_address = program.p_vaddr(endian);
            let address = match role {
                Role::Kernel => program.p_paddr(endian),
                Role::Shim | Role::Sidecar => virtual_address,
            };
            let end = address
                .checked_add(size)
                .filter(|end| *end <= page_table::ADDRESS_LIMIT)
                .ok_or(wrong("it ends beyond 2^48"))?;
            let align = program.p_align(endian).max(PAGE_SIZE);
            if !align.is_power_of_two() || align > LeafSize::Size2M.bytes() {
                return Err(wrong(
                    "its alignment is neither a power of two nor at most 2 MiB",
                ));
            }
            alignment = alignment.max(align);
            segments.push(Segment {
                index,
                address,
                end,
                virtual_address,
                data,
            });
        }
        segments.sort_by_key(|s| s.address);
        let entry = header.e_entry(endian);
        Self::lay_out(&segments, entry, alignment, role, available)
    }

    fn lay_out(
        segments: &[Segment<'_>],
        entry: u64,
        alignment: u64,
        role: Role,
        available: u64,
    ) -> Result<Self, ElfError> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
            return Err(ElfError::NoSegments);
        };
        if let Some([a, b]) = segments.array_windows().find(|[a, b]| a.end > b.address) {
            return Err(ElfError::Overlap {
                first: a.index,
                second: b.index,
                address: b.address,
            });
        }
        // The kernel may be moved by multiples of its alignment only.
        let start = first.address / alignment * alignment;
        if role != Role::Kernel && first.address != 0 {
            return Err(ElfError::ImageBase {
                found: first.address,
            });
        }
        let memory_size = last.end.next_multiple_of(PAGE_SIZE) - start;
        if memory_size > available {
            return Err(ElfError::TooLarge {
                needed: memory_size,
                available,
            });
        }

        // The entry of a kernel is a physical address; some linkers leave a virtual one.
        // The segment need not be executable: Linux starts in .init.text, which may be
        // part of the data segment, and switches to its own page tables.
        let entry_offset = segments
            .iter()
            .find_map(|s| {
                let offset_in = |base: u64| {
                    entry
                        .checked_sub(base)
                        .filter(|offset| *offset < s.data.len() as u64)
                };
                offset_in(s.address)
                    .or_else(|| offset_in(s.virtual_address))
                    .map(|offset| s.address - start + offset)
            })
            .ok_or(ElfError::Entry { entry })?;

        let mut contents = vec![0; memory_size as usize];
        let mut present = vec![false; (memory_size / PAGE_SIZE) as usize];
        for segment in segments {
            let offset = (segment.address - start) as usize;
            contents[offset..offset + segment.data.len()].copy_from_slice(segment.data);
            let end = match role {
                Role::Shim => offset + segment.data.len(),
                Role::Kernel | Role::Sidecar => (segment.end - start) as usize,
            };
            let page = PAGE_SIZE as usize;
            if end > offset {
                present[offset / page..end.div_ceil(page)].fill(true);
            }
        }
        if !present.contains(&true) {
            return Err(ElfError::NoSegments);
        }
        Ok(Self {
            memory_size,
            entry: entry_offset,
            alignment,
            contents,
            present,
        })
    }

    /// The runs of pages that belong to the image, with their offsets.
    pub fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut runs: Vec<GpaRange> = Vec::new();
        for (index, _) in self.present.iter().enumerate().filter(|(_, p)| **p) {
            let start = index as u64 * PAGE_SIZE;
            match runs.last_mut() {
                Some(run) if run.end == start => run.end += PAGE_SIZE,
                _ => runs.push(GpaRange::with_size(start, PAGE_SIZE)),
            }
        }
        runs.into_iter().map(|run| {
            (
                run.start,
                &self.contents[run.start as usize..run.end as usize],
            )
        })
    }
}
