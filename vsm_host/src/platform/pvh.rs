//! `hvm_start_info`: what whoever starts a PVH program leaves for it
//! (Xen's `public/arch-x86/hvm/start_info.h`). All of it is 8-byte words, some of which
//! hold two 32-bit fields.

use super::{PhysMemory, Unreadable};
use alloc::vec;
use alloc::vec::Vec;
use igvm_loader::MemoryRange;
use open_enum::open_enum;
use thiserror::Error;
use zerocopy::IntoBytes;

const MAGIC: u32 = 0x336e_c578;
/// No machine has longer lists; it bounds what is allocated.
const MAX_ENTRIES: u32 = 1024;
/// Longest command line that is read, in bytes.
const MAX_COMMAND_LINE: usize = 16 * 1024;

/// Type of an entry of the memory map (as in E820).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM; whatever else there is, is taken.
    RAM = 1,
}

/// An entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// Where.
    pub range: MemoryRange,
    /// What.
    pub kind: MemoryKind,
}

/// What the host was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartInfo {
    /// Command line without its final zero.
    pub command_line: Vec<u8>,
    /// Files that were loaded along; the IGVM file is the first.
    pub modules: Vec<MemoryRange>,
    /// The memory map, in the order given.
    pub memory_map: Vec<MemoryMapEntry>,
    /// Address of the ACPI RSDP.
    pub rsdp: u64,
}

/// Why the start information cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StartInfoError {
    /// Memory that cannot be read.
    #[error("PVH start information: {0}")]
    Unreadable(#[from] Unreadable),
    /// A wrong value.
    #[error("PVH start information: {field}, found {found:#x}, expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it could be.
        expected: &'static str,
    },
}

impl StartInfo {
    /// Reads the structure at `address` and all that it refers to, except the content of
    /// the modules.
    pub fn read(memory: &impl PhysMemory, address: u64) -> Result<Self, StartInfoError> {
        let mut words = [0u64; 7];
        memory.read(address, words.as_mut_bytes())?;
        let [
            identity,
            counts,
            modules,
            command_line,
            rsdp,
            map,
            map_count,
        ] = words;
        let high = |word: u64| (word >> 32) as u32;
        if identity as u32 != MAGIC {
            return Err(wrong("magic", identity as u32, "0x336ec578"));
        }
        if high(identity) == 0 {
            return Err(wrong("version", 0u64, "at least 1 (memory map)"));
        }
        let modules = read_list(memory, modules, high(counts))?;
        let map = read_list(memory, map, map_count as u32)?;
        let entry = |&[address, size, kind]: &[u64; 3]| {
            let (range, kind) = (range(address, size)?, MemoryKind(kind as u32));
            Ok::<_, StartInfoError>(MemoryMapEntry { range, kind })
        };
        let module = |&[address, size, _, _]: &[u64; 4]| range(address, size);
        Ok(Self {
            command_line: read_string(memory, command_line)?,
            modules: modules.iter().map(module).collect::<Result<_, _>>()?,
            memory_map: map.iter().map(entry).collect::<Result<_, _>>()?,
            rsdp,
        })
    }
}

fn wrong(field: &'static str, found: impl Into<u64>, expected: &'static str) -> StartInfoError {
    let found = found.into();
    StartInfoError::Field {
        field,
        found,
        expected,
    }
}

fn read_list<const WORDS: usize>(
    memory: &impl PhysMemory,
    address: u64,
    count: u32,
) -> Result<Vec<[u64; WORDS]>, StartInfoError> {
    if count > MAX_ENTRIES {
        return Err(wrong("length of a list", count, "at most 1024"));
    }
    let mut list = vec![[0; WORDS]; count as usize];
    memory.read(address, list.as_mut_slice().as_mut_bytes())?;
    Ok(list)
}

fn range(address: u64, size: u64) -> Result<MemoryRange, StartInfoError> {
    let error = wrong(
        "size of a module or memory range",
        size,
        "an end below 2^64",
    );
    MemoryRange::with_size(address, size).ok_or(error)
}

/// Reads up to the zero byte; address 0 means that there is no string.
fn read_string(memory: &impl PhysMemory, address: u64) -> Result<Vec<u8>, StartInfoError> {
    let mut text = Vec::new();
    // In pieces that never cross a page, so that no byte behind the string's page is read.
    while address != 0 && text.len() < MAX_COMMAND_LINE {
        let at = address.saturating_add(text.len() as u64);
        let mut piece = [0; 64];
        let piece = &mut piece[..64 - (at % 64) as usize];
        memory.read(at, piece)?;
        let end = piece.iter().position(|byte| *byte == 0);
        text.extend_from_slice(&piece[..end.unwrap_or(piece.len())]);
        if end.is_some() {
            return Ok(text);
        }
    }
    let error = wrong(
        "length of the command line",
        text.len() as u64,
        "below 16 KiB",
    );
    if text.is_empty() {
        Ok(text)
    } else {
        Err(error)
    }
}
