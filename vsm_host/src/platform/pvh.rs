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
    /// Not a start information.
    #[error("PVH start information: magic, found {found:#x}, expected {MAGIC:#x}")]
    Magic {
        /// The first word.
        found: u32,
    },
    /// Too old.
    #[error("PVH start information: version, found {found}, expected at least 1 (memory map)")]
    Version {
        /// The version.
        found: u32,
    },
    /// More entries than any machine has.
    #[error("PVH start information: {what}, found {found} entries, expected at most {MAX_ENTRIES}")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: u32,
    },
    /// A range that leaves the address space.
    #[error(
        "PVH start information: {what} {index}, found {size:#x} bytes at {address:#x}, expected an \
         end below 2^64"
    )]
    Range {
        /// Which list.
        what: &'static str,
        /// Which element.
        index: usize,
        /// Its address.
        address: u64,
        /// Its size.
        size: u64,
    },
    /// A command line without end.
    #[error("PVH command line: found no end, expected one within {MAX_COMMAND_LINE} bytes")]
    CommandLine,
}

impl StartInfo {
    /// Reads the structure at `address` and all that it refers to, except the content of
    /// the modules.
    pub fn read(memory: &impl PhysMemory, address: u64) -> Result<Self, StartInfoError> {
        let mut raw = RawStartInfo::new_zeroed();
        memory.read(address, raw.as_mut_bytes())?;
        if raw.magic != MAGIC {
            return Err(StartInfoError::Magic { found: raw.magic });
        }
        if raw.version < VERSION_WITH_MEMORY_MAP {
            return Err(StartInfoError::Version { found: raw.version });
        }
        let modules: Vec<RawModule> =
            read_list(memory, "module list", raw.modules, raw.module_count)?;
        let modules = modules
            .iter()
            .enumerate()
            .map(|(index, m)| range("module", index, m.address, m.size))
            .collect::<Result<_, _>>()?;
        let entries: Vec<RawMemoryMapEntry> =
            read_list(memory, "memory map", raw.memory_map, raw.memory_map_entries)?;
        let memory_map = entries
            .iter()
            .enumerate()
            .map(|(index, e)| {
                Ok(MemoryMapEntry {
                    range: range("memory map entry", index, e.address, e.size)?,
                    kind: MemoryKind(e.kind),
                })
            })
            .collect::<Result<_, StartInfoError>>()?;
        Ok(Self {
            command_line: read_string(memory, raw.command_line)?,
            modules,
            memory_map,
            rsdp: raw.rsdp,
        })
    }
}

fn read_list<T: FromZeros + FromBytes + IntoBytes + Clone>(
    memory: &impl PhysMemory,
    what: &'static str,
    address: u64,
    count: u32,
) -> Result<Vec<T>, StartInfoError> {
    if count > MAX_ENTRIES {
        return Err(StartInfoError::TooMany { what, found: count });
    }
    let mut list = vec![T::new_zeroed(); count as usize];
    memory.read(address, list.as_mut_slice().as_mut_bytes())?;
    Ok(list)
}

fn range(
    what: &'static str,
    index: usize,
    address: u64,
    size: u64,
) -> Result<MemoryRange, StartInfoError> {
    MemoryRange::with_size(address, size).ok_or(StartInfoError::Range {
        what,
        index,
        address,
        size,
    })
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
    Err(StartInfoError::CommandLine)
}
