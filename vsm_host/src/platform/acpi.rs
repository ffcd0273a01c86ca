//! ACPI tables: the list of CPUs (MADT), the NUMA nodes (SRAT), and two tables that are
//! only handed on (SLIT, PPTT).
//!
//! Read here and not by rust-osdev's `acpi` crate: that one gets at the tables through
//! an unsafe mapping callback and plain references into firmware memory, and its handler
//! trait wants port, PCI and timer access for the AML interpreter. Four fixed layouts,
//! copied once and then checked, are less code than its handler.

use super::IoApic;
use super::MemoryRange;
use super::PhysMemory;
use super::RamRange;
use super::Unreadable;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use thiserror::Error;

/// Size of the header that every table begins with.
const HEADER_SIZE: usize = 36;
/// Longest table that is read: room for a SLIT of 1,000 nodes.
const MAX_TABLE_SIZE: usize = 1 << 20;
/// Where the firmware may have left the RSDP.
const RSDP_AREA: MemoryRange = MemoryRange::new(0xe_0000, 0x10_0000);
/// Size of the RSDP of ACPI 1.0.
const RSDP_V1_SIZE: usize = 20;
/// Size of the RSDP since ACPI 2.0.
const RSDP_V2_SIZE: usize = 36;

/// Four letters that name a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    const RSDP: Self = Self(*b"RSDP");
    const RSDT: Self = Self(*b"RSDT");
    const XSDT: Self = Self(*b"XSDT");
    const MADT: Self = Self(*b"APIC");
    const SRAT: Self = Self(*b"SRAT");
    const SLIT: Self = Self(*b"SLIT");
    const PPTT: Self = Self(*b"PPTT");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The tables, as the firmware made them. Only the MADT must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcpiTables {
    /// Multiple APIC description table.
    pub madt: Vec<u8>,
    /// System resource affinity table.
    pub srat: Option<Vec<u8>>,
    /// System locality information table.
    pub slit: Option<Vec<u8>>,
    /// Processor properties topology table.
    pub pptt: Option<Vec<u8>>,
}

/// Why the ACPI tables cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// Memory that cannot be read.
    #[error("ACPI: {0}")]
    Unreadable(#[from] Unreadable),
    /// A table that must be there.
    #[error("ACPI: found no table {0}, expected one")]
    Missing(Signature),
    /// A wrong value in a table.
    #[error("ACPI {table}: {field}, found {found:#x}, expected {expected}")]
    Field {
        /// The table.
        table: Signature,
        /// Which value.
        field: &'static str,
        /// The value.
        found: u64,
        /// What it could be.
        expected: &'static str,
    },
    /// A structure in a table that is cut off or too short.
    #[error(
        "ACPI {table}: structure at offset {offset}, found length {found}, expected {expected}"
    )]
    Structure {
        /// The table.
        table: Signature,
        /// Position of the structure.
        offset: usize,
        /// Its length.
        found: usize,
        /// Length of its type.
        expected: usize,
    },
}

/// What the MADT tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// APIC ids of the enabled CPUs, in the order of the table.
    pub apic_ids: Vec<u32>,
    /// The IOAPICs.
    pub io_apics: Vec<IoApic>,
}

/// What the SRAT tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Srat {
    /// APIC id and node of each CPU, sorted.
    pub cpus: Vec<(u32, u32)>,
    /// Nodes of the RAM.
    pub memory: Vec<RamRange>,
}

impl Srat {
    /// The node of a CPU; 0 if the table does not mention it.
    pub fn node_of_cpu(&self, apic_id: u32) -> u32 {
        self.cpus
            .binary_search_by_key(&apic_id, |(id, _)| *id)
            .map_or(0, |index| self.cpus[index].1)
    }
}

/// Finds and copies the tables; `rsdp` 0 means that it has to be searched.
pub fn read_tables(memory: &impl PhysMemory, rsdp: u64) -> Result<AcpiTables, AcpiError> {
    let address = if rsdp != 0 { rsdp } else { find_rsdp(memory)? };
    let (signature, entry_size, root) =
        read_rsdp(memory, address)?.ok_or(AcpiError::Missing(Signature::RSDP))?;
    let table = read_table(memory, root, signature)?;
    let mut tables = AcpiTables::default();
    let mut madt = None;
    for entry in table[HEADER_SIZE..].chunks_exact(entry_size) {
        let mut bytes = [0; 8];
        bytes[..entry_size].copy_from_slice(entry);
        let address = u64::from_le_bytes(bytes);
        let mut name = [0; 4];
        memory.read(address, &mut name)?;
        let signature = Signature(name);
        let slot = match signature {
            Signature::MADT => &mut madt,
            Signature::SRAT => &mut tables.srat,
            Signature::SLIT => &mut tables.slit,
            Signature::PPTT => &mut tables.pptt,
            _ => continue,
        };
        // The first one counts.
        if slot.is_none() {
            *slot = Some(read_table(memory, address, signature)?);
        }
    }
    tables.madt = madt.ok_or(AcpiError::Missing(Signature::MADT))?;
    Ok(tables)
}

/// Reads a MADT that [`read_tables`] has copied.
pub fn parse_madt(table: &[u8]) -> Result<Madt, AcpiError> {
    let mut madt = Madt::default();
    for structure in structures(Signature::MADT, table) {
        let structure = structure?;
        madt.apic_ids.extend(structure.enabled_cpu()?);
        if structure.kind == MADT_IO_APIC {
            let body = structure.sized(12)?;
            madt.io_apics.push(IoApic {
                address: read_u32(body, 4),
                gsi_base: read_u32(body, 8),
            });
        }
    }
    Ok(madt)
}

/// Reads a SRAT that [`read_tables`] has copied.
pub fn parse_srat(table: &[u8]) -> Result<Srat, AcpiError> {
    let mut srat = Srat::default();
    for structure in structures(Signature::SRAT, table) {
        let structure = structure?;
        let body = structure.bytes;
        if let Some(apic_id) = structure.enabled_cpu()? {
            let node = match structure.kind {
                SRAT_LOCAL_APIC => u32::from_le_bytes([body[2], body[9], body[10], body[11]]),
                _ => read_u32(body, 4),
            };
            srat.cpus.push((apic_id, node));
        } else if structure.kind == SRAT_MEMORY {
            let body = structure.sized(40)?;
            let range = MemoryRange::with_size(read_u64(body, 8), read_u64(body, 16));
            let node = read_u32(body, 2);
            let enabled = body[28] & 1 != 0;
            let affinity = range
                .filter(|_| enabled)
                .map(|range| RamRange { range, node });
            srat.memory.extend(affinity);
        }
    }
    srat.cpus.sort_unstable();
    Ok(srat)
}

/// Takes a CPU out of a copied MADT or SRAT by clearing its enabled bit.
pub fn disable_cpu(table: &mut [u8], apic_id: u32) {
    let signature = Signature(table.first_chunk().copied().unwrap_or_default());
    let flags: Vec<usize> = structures(signature, table)
        .filter_map(|structure| {
            let structure = structure.ok()?;
            let (id, flags) = structure.cpu().ok()??;
            (id == apic_id).then_some(structure.offset + flags)
        })
        .collect();
    for position in flags {
        table[position] &= !1;
    }
    if let Some(checksum) = table.get(9).copied() {
        table[9] = checksum.wrapping_sub(sum(table));
    }
}

const MADT_LOCAL_APIC: u8 = 0;
const MADT_IO_APIC: u8 = 1;
const MADT_LOCAL_X2APIC: u8 = 9;
const SRAT_LOCAL_APIC: u8 = 0;
const SRAT_MEMORY: u8 = 1;
const SRAT_LOCAL_X2APIC: u8 = 2;

fn find_rsdp(memory: &impl PhysMemory) -> Result<u64, AcpiError> {
    let last = RSDP_AREA.end() - RSDP_V2_SIZE as u64;
    for address in (RSDP_AREA.start()..=last).step_by(16) {
        if read_rsdp(memory, address)?.is_some() {
            return Ok(address);
        }
    }
    Err(AcpiError::Missing(Signature::RSDP))
}

/// Name, size of an entry and address of the list of tables that the RSDP at `address`
/// points to; `None` if there is no RSDP.
fn read_rsdp(
    memory: &impl PhysMemory,
    address: u64,
) -> Result<Option<(Signature, usize, u64)>, AcpiError> {
    let mut v1 = [0; RSDP_V1_SIZE];
    memory.read(address, &mut v1)?;
    if &v1[..8] != b"RSD PTR " || sum(&v1) != 0 {
        return Ok(None);
    }
    if v1[15] >= 2 {
        let mut v2 = [0; RSDP_V2_SIZE];
        memory.read(address, &mut v2)?;
        let xsdt = read_u64(&v2, 24);
        if sum(&v2) == 0 && xsdt != 0 {
            return Ok(Some((Signature::XSDT, 8, xsdt)));
        }
    }
    Ok(Some((Signature::RSDT, 4, read_u32(&v1, 16).into())))
}

/// Copies a table and checks its name, length and checksum.
fn read_table(
    memory: &impl PhysMemory,
    address: u64,
    signature: Signature,
) -> Result<Vec<u8>, AcpiError> {
    let mut header = [0; HEADER_SIZE];
    memory.read(address, &mut header)?;
    let wrong = |field, found, expected| AcpiError::Field {
        table: signature,
        field,
        found,
        expected,
    };
    if header[..4] != signature.0 {
        return Err(wrong("signature at address", address, "the table's name"));
    }
    let length = read_u32(&header, 4) as usize;
    if !(HEADER_SIZE + fixed_part(signature)..=MAX_TABLE_SIZE).contains(&length) {
        return Err(wrong("length", length as u64, "its header to 1 MiB"));
    }
    let mut table = vec![0; length];
    memory.read(address, &mut table)?;
    match sum(&table) {
        0 => Ok(table),
        found => Err(wrong("sum of all bytes", found.into(), "0")),
    }
}

/// Bytes between the header of a table and its first structure.
fn fixed_part(signature: Signature) -> usize {
    match signature {
        Signature::MADT => 8,
        Signature::SRAT => 12,
        _ => 0,
    }
}

/// A type-length-value structure of the MADT or SRAT.
struct Structure<'a> {
    table: Signature,
    kind: u8,
    offset: usize,
    bytes: &'a [u8],
}

impl<'a> Structure<'a> {
    /// Its bytes, if there are as many as its type needs.
    fn sized(&self, expected: usize) -> Result<&'a [u8], AcpiError> {
        if self.bytes.len() >= expected {
            return Ok(self.bytes);
        }
        Err(AcpiError::Structure {
            table: self.table,
            offset: self.offset,
            found: self.bytes.len(),
            expected,
        })
    }

    /// APIC id of the CPU that it describes, and where its flags are.
    fn cpu(&self) -> Result<Option<(u32, usize)>, AcpiError> {
        Ok(match (self.table, self.kind) {
            (Signature::MADT, MADT_LOCAL_APIC) => Some((self.sized(8)?[3].into(), 4)),
            (Signature::MADT, MADT_LOCAL_X2APIC) => Some((read_u32(self.sized(16)?, 4), 8)),
            (Signature::SRAT, SRAT_LOCAL_APIC) => Some((self.sized(16)?[3].into(), 4)),
            (Signature::SRAT, SRAT_LOCAL_X2APIC) => Some((read_u32(self.sized(24)?, 8), 12)),
            _ => None,
        })
    }

    /// The same, only if the CPU is enabled.
    fn enabled_cpu(&self) -> Result<Option<u32>, AcpiError> {
        let enabled = |(_, flags): &(u32, usize)| self.bytes[*flags] & 1 != 0;
        Ok(self.cpu()?.filter(enabled).map(|(id, _)| id))
    }
}

fn structures(
    signature: Signature,
    table: &[u8],
) -> impl Iterator<Item = Result<Structure<'_>, AcpiError>> {
    let mut offset = HEADER_SIZE + fixed_part(signature);
    core::iter::from_fn(move || {
        let rest = table.get(offset..).filter(|rest| !rest.is_empty())?;
        let length = usize::from(rest.get(1).copied().unwrap_or(0));
        let Some(bytes) = rest.get(..length).filter(|bytes| bytes.len() >= 2) else {
            let error = AcpiError::Structure {
                table: signature,
                offset,
                found: length,
                expected: 2,
            };
            offset = table.len();
            return Some(Err(error));
        };
        let structure = Structure {
            table: signature,
            kind: rest[0],
            offset,
            bytes,
        };
        offset += length;
        Some(Ok(structure))
    })
}

/// Sum of all bytes, 0 for a right table.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Little-endian number at `at`; the caller has checked the length.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Little-endian number at `at`; the caller has checked the length.
fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}
