//! `hvm_start_info`: what whoever starts a PVH program leaves for it
//! (Xen's `public/arch-x86/hvm/start_info.h`).

use super::MemoryRange;
use super::PhysMemory;
use super::Unreadable;
use alloc::vec;
use alloc::vec::Vec;
use open_enum::open_enum;
use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::FromZeros;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// First word of the structure.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION_WITH_MEMORY_MAP: u32 = 1;
/// No machine has more; it bounds what is allocated.
const MAX_ENTRIES: u32 = 1024;
/// Longest command line that is read, in bytes.
const MAX_COMMAND_LINE: usize = 16 * 1024;

#[repr(C)]
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RawStartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RawModule {
    address: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RawMemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Type of an entry of the memory map (as in E820).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM.
    RAM = 1,
    /// Taken.
    RESERVED = 2,
    /// ACPI tables.
    ACPI = 3,
    /// ACPI's memory across sleep.
    NVS = 4,
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
    /// Address of the ACPI RSDP, 0 if it is not known.
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
        let mut raw = RawStartInfo::new_zeroed();
        memory.read(address, raw.as_mut_bytes())?;
        if raw.magic != MAGIC {
            return Err(wrong("magic", raw.magic.into(), "0x336ec578"));
        }
        if raw.version < VERSION_WITH_MEMORY_MAP {
            return Err(wrong(
                "version",
                raw.version.into(),
                "at least 1 (memory map)",
            ));
        }
        let modules: Vec<RawModule> = read_list(memory, raw.modules, raw.module_count)?;
        let entries: Vec<RawMemoryMapEntry> =
            read_list(memory, raw.memory_map, raw.memory_map_entries)?;
        Ok(Self {
            command_line: read_string(memory, raw.command_line)?,
            modules: modules
                .iter()
                .map(|module| range(module.address, module.size))
                .collect::<Result<_, _>>()?,
            memory_map: entries
                .iter()
                .map(|entry| {
                    let range = range(entry.address, entry.size)?;
                    let kind = MemoryKind(entry.kind);
                    Ok(MemoryMapEntry { range, kind })
                })
                .collect::<Result<_, StartInfoError>>()?,
            rsdp: raw.rsdp,
        })
    }
}

fn wrong(field: &'static str, found: u64, expected: &'static str) -> StartInfoError {
    StartInfoError::Field {
        field,
        found,
        expected,
    }
}

fn read_list<T: FromZeros + FromBytes + IntoBytes + Clone>(
    memory: &impl PhysMemory,
    address: u64,
    count: u32,
) -> Result<Vec<T>, StartInfoError> {
    if count > MAX_ENTRIES {
        return Err(wrong("length of a list", count.into(), "at most 1024"));
    }
    let mut list = vec![T::new_zeroed(); count as usize];
    memory.read(address, list.as_mut_slice().as_mut_bytes())?;
    Ok(list)
}

fn range(address: u64, size: u64) -> Result<MemoryRange, StartInfoError> {
    MemoryRange::with_size(address, size).ok_or(wrong(
        "size of a module or memory range",
        size,
        "an end below 2^64",
    ))
}

/// Reads up to the zero byte; address 0 means that there is no string.
fn read_string(memory: &impl PhysMemory, address: u64) -> Result<Vec<u8>, StartInfoError> {
    let mut text = Vec::new();
    if address == 0 {
        return Ok(text);
    }
    // In pieces that never cross a page, so that no byte behind the string's page is read.
    let mut at = address;
    while text.len() < MAX_COMMAND_LINE {
        let mut piece = [0; 64];
        let piece = &mut piece[..64 - (at % 64) as usize];
        memory.read(at, piece)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return Ok(text);
        }
        text.extend_from_slice(piece);
        at = at.saturating_add(piece.len() as u64);
    }
    Err(wrong(
        "length of the command line",
        text.len() as u64,
        "less than 16 KiB",
    ))
}
