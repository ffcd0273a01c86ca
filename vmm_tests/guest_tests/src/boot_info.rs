//! What the one who started the kernel says: Linux's zero page, or the start info of PVH.

use arrayvec::ArrayVec;
use loader_defs::linux::{BootParams, E820_MAX_ENTRIES_ZEROPAGE, SETUP_HEADER_MAGIC};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Magic of [`StartInfo`].
const PVH_MAGIC: u32 = 0x336e_c578;

/// A range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Type as in E820: 1 is RAM.
    pub kind: u32,
}

/// What there is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootInfo {
    /// Address of the command line.
    pub command_line: u64,
    /// Address of the ACPI root, 0 if none is told.
    pub rsdp: u64,
    /// The memory map.
    pub memory_map: ArrayVec<MapEntry, E820_MAX_ENTRIES_ZEROPAGE>,
}

/// Why it is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BootInfoError {
    /// Too few bytes.
    #[error("boot information ends early")]
    Short,
    /// Another magic number.
    #[error("magic number {found:#x}, expected {expected:#x}")]
    Magic {
        /// What is there.
        found: u32,
        /// What should be.
        expected: u32,
    },
    /// Too many entries.
    #[error("memory map has {found} entries, expected at most 128")]
    TooManyEntries {
        /// How many.
        found: usize,
    },
}

/// `hvm_start_info` (Xen's public header `arch-x86/hvm/start_info.h`).
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    /// Address of the memory map.
    pub memory_map: u64,
    /// Entries of the memory map.
    pub memory_map_entries: u32,
    reserved: u32,
}

/// An entry of PVH's memory map.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout)]
struct StartInfoEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// Looks at the first bytes.
    pub fn read(bytes: &[u8]) -> Result<Self, BootInfoError> {
        let (info, _) = Self::read_from_prefix(bytes).map_err(|_| BootInfoError::Short)?;
        check_magic(info.magic, PVH_MAGIC)?;
        Ok(info)
    }

    /// Bytes of the memory map.
    pub fn memory_map_size(&self) -> usize {
        let entries = self.memory_map_entries as usize;
        entries.min(E820_MAX_ENTRIES_ZEROPAGE) * size_of::<StartInfoEntry>()
    }
}

impl BootInfo {
    /// From a zero page.
    pub fn from_zero_page(bytes: &[u8]) -> Result<Self, BootInfoError> {
        let (page, _) = BootParams::read_from_prefix(bytes).map_err(|_| BootInfoError::Short)?;
        check_magic(page.hdr.header, SETUP_HEADER_MAGIC)?;
        let found = usize::from(page.e820_entries);
        let table = page.e820_table;
        let entries = table
            .get(..found)
            .ok_or(BootInfoError::TooManyEntries { found })?;
        let (low, high) = (page.hdr.cmd_line_ptr, page.ext_cmd_line_ptr);
        Ok(Self {
            command_line: u64::from(low) | (u64::from(high) << 32),
            rsdp: page.acpi_rsdp_addr,
            memory_map: entries
                .iter()
                .map(|entry| MapEntry {
                    start: entry.addr,
                    size: entry.size,
                    kind: entry.typ,
                })
                .collect(),
        })
    }

    /// From PVH's start info and its memory map.
    pub fn from_start_info(info: &StartInfo, map: &[u8]) -> Result<Self, BootInfoError> {
        let found = info.memory_map_entries as usize;
        if found > E820_MAX_ENTRIES_ZEROPAGE {
            return Err(BootInfoError::TooManyEntries { found });
        }
        let mut memory_map = ArrayVec::new();
        for bytes in map.chunks_exact(size_of::<StartInfoEntry>()).take(found) {
            let entry = StartInfoEntry::read_from_bytes(bytes).map_err(|_| BootInfoError::Short)?;
            memory_map.push(MapEntry {
                start: entry.start,
                size: entry.size,
                kind: entry.kind,
            });
        }
        if memory_map.len() != found {
            return Err(BootInfoError::Short);
        }
        Ok(Self {
            command_line: info.command_line,
            rsdp: info.rsdp,
            memory_map,
        })
    }
}

fn check_magic(found: u32, expected: u32) -> Result<(), BootInfoError> {
    if found == expected {
        Ok(())
    } else {
        Err(BootInfoError::Magic { found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loader_defs::linux::{E820_RAM, E820Entry};
    use proptest::prelude::*;
    use zerocopy::{FromZeros, IntoBytes};

    #[test]
    fn a_zero_page_is_read() {
        let mut page = BootParams::new_zeroed();
        page.set_loader();
        page.set_command_line(0x1_0000_9000);
        page.acpi_rsdp_addr = 0xe_0000;
        page.set_memory_map(&[E820Entry {
            addr: 0x1000,
            size: 0x2000,
            typ: E820_RAM,
        }]);
        let info = BootInfo::from_zero_page(page.as_bytes()).unwrap();
        assert_eq!(info.command_line, 0x1_0000_9000);
        assert_eq!(info.rsdp, 0xe_0000);
        assert_eq!(
            info.memory_map[..],
            [MapEntry {
                start: 0x1000,
                size: 0x2000,
                kind: 1
            }]
        );
    }

    #[test]
    fn a_zero_page_of_another_kind_is_refused() {
        let page = BootParams::new_zeroed();
        assert!(matches!(
            BootInfo::from_zero_page(page.as_bytes()),
            Err(BootInfoError::Magic { .. })
        ));
        assert_eq!(
            BootInfo::from_zero_page(&page.as_bytes()[1..]),
            Err(BootInfoError::Short)
        );
    }

    #[test]
    fn a_start_info_is_read() {
        let mut bytes = [0; size_of::<StartInfo>()];
        bytes[..4].copy_from_slice(&PVH_MAGIC.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x9000u32.to_le_bytes());
        bytes[48] = 1;
        let info = StartInfo::read(&bytes).unwrap();
        assert_eq!(info.memory_map_size(), 24);
        let mut map = [0; 24];
        map[9] = 0x10;
        map[16] = 1;
        let read = BootInfo::from_start_info(&info, &map).unwrap();
        assert_eq!(read.command_line, 0x9000);
        assert_eq!(read.memory_map[0].size, 0x1000);
        assert_eq!(
            BootInfo::from_start_info(&info, &map[1..]),
            Err(BootInfoError::Short)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_result(bytes in prop::collection::vec(any::<u8>(), 4096), map: Vec<u8>) {
            let mut page = bytes;
            let _ = BootInfo::from_zero_page(&page);
            page[0x202..0x206].copy_from_slice(&SETUP_HEADER_MAGIC.to_le_bytes());
            let _ = BootInfo::from_zero_page(&page);
            page[..4].copy_from_slice(&PVH_MAGIC.to_le_bytes());
            let _ = BootInfo::from_start_info(&StartInfo::read(&page).unwrap(), &map);
        }
    }
}
