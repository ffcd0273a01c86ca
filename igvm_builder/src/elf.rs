//! Kernel, shim and sidecar: from ELF to pages. `vm_loader` reads the files; here is what
//! is particular to an image.

use crate::component::GpaRange;
use loader_defs::PAGE_SIZE;
use thiserror::Error;
use vm_loader::elf::{ElfFile, Placement};

/// Why a program cannot be used. The caller names the file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ElfError {
    /// It is not what it should be.
    #[error(transparent)]
    File(#[from] vm_loader::elf::ElfError),
    /// The loaded program does not fit.
    #[error("the segments span {needed} bytes, {available} are available")]
    TooLarge {
        /// From the first to the last byte.
        needed: u64,
        /// VTL2's memory.
        available: u64,
    },
    /// The shim's lowest segment is not where its image base should be.
    #[error("the lowest segment starts at {found:#x}, expected 0")]
    ImageBase {
        /// Its address.
        found: u64,
    },
}

/// `e_type` of a program with fixed addresses.
const ET_EXEC: u16 = 2;

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

impl Program {
    /// Reads a program of at most `available` bytes.
    pub fn parse(file: &[u8], role: Role, available: u64) -> Result<Self, ElfError> {
        let placement = match role {
            Role::Kernel => Placement::Physical,
            Role::Shim | Role::Sidecar => Placement::Virtual,
        };
        let elf = ElfFile::parse(file, placement)?;
        if role != Role::Kernel && !elf.position_independent {
            return Err(ElfError::File(vm_loader::elf::ElfError::Type {
                found: ET_EXEC,
                expected: "3 (ET_DYN)",
            }));
        }
        if role != Role::Kernel && elf.start() != 0 {
            return Err(ElfError::ImageBase { found: elf.start() });
        }
        // The kernel may be moved by multiples of its alignment only.
        let start = elf.start() / elf.alignment * elf.alignment;
        let memory_size = elf.end().next_multiple_of(PAGE_SIZE) - start;
        if memory_size > available {
            return Err(ElfError::TooLarge {
                needed: memory_size,
                available,
            });
        }
        let entry = elf.entry_address()? - start;

        let mut contents = vec![0; memory_size as usize];
        let mut present = vec![false; (memory_size / PAGE_SIZE) as usize];
        for segment in &elf.segments {
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
            return Err(ElfError::File(vm_loader::elf::ElfError::NoSegments));
        }
        Ok(Self {
            memory_size,
            entry,
            alignment: elf.alignment,
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
