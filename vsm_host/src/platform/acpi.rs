//! ACPI tables: the list of CPUs (MADT), the NUMA nodes (SRAT), and two tables that are
//! only handed on (SLIT, PPTT).
//!
//! Read here and not by rust-osdev's `acpi` crate: that one gets at the tables through
//! an unsafe mapping callback and plain references into firmware memory, and its handler
//! trait wants port, PCI and timer access for the AML interpreter. Four fixed layouts,
//! copied once and then checked, are less code than its handler.

use super::{PhysMemory, Unreadable};
use alloc::vec;
use alloc::vec::Vec;
use igvm_loader::{AcpiTables, Cpu, IoApic, MemoryRange, RamRange};
use thiserror::Error;

/// Size of the header that every table begins with.
const HEADER_SIZE: usize = 36;
/// Longest table that is read: room for a SLIT of 1,000 nodes.
const MAX_TABLE_SIZE: usize = 1 << 20;
/// Size of the RSDP of ACPI 1.0 and since 2.0.
const RSDP_SIZE: [usize; 2] = [20, 36];

const MADT: &str = "APIC";
const SRAT: &str = "SRAT";
const MADT_IO_APIC: u8 = 1;
const SRAT_LOCAL_APIC: u8 = 0;
const SRAT_MEMORY: u8 = 1;

/// Why the ACPI tables cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// Memory that cannot be read.
    #[error("ACPI: {0}")]
    Unreadable(#[from] Unreadable),
    /// A table that must be there.
    #[error("ACPI: found no table {0}, expected one")]
    Missing(&'static str),
    /// A wrong value in a table.
    #[error("ACPI {table}: {field}, found {found:#x}, expected {expected}")]
    Field {
        /// The table.
        table: &'static str,
        /// Which value.
        field: &'static str,
        /// The value.
        found: u64,
        /// What it could be.
        expected: &'static str,
    },
}

/// What MADT and SRAT tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The enabled CPUs, sorted by APIC id.
    pub cpus: Vec<Cpu>,
    /// The IOAPICs.
    pub io_apics: Vec<IoApic>,
    /// Nodes of the RAM.
    pub memory: Vec<RamRange>,
}

/// Finds and copies the tables.
pub fn read_tables(memory: &impl PhysMemory, rsdp: u64) -> Result<AcpiTables, AcpiError> {
    let (name, entry_size, root) = read_rsdp(memory, rsdp)?;
    let list = read_table(memory, root, name)?;
    let mut tables = AcpiTables::default();
    let mut madt = None;
    for entry in list[HEADER_SIZE..].chunks_exact(entry_size) {
        let mut bytes = [0; 8];
        bytes[..entry_size].copy_from_slice(entry);
        let address = u64::from_le_bytes(bytes);
        let mut name = [0; 4];
        memory.read(address, &mut name)?;
        let (name, slot) = match &name {
            b"APIC" => (MADT, &mut madt),
            b"SRAT" => (SRAT, &mut tables.srat),
            b"SLIT" => ("SLIT", &mut tables.slit),
            b"PPTT" => ("PPTT", &mut tables.pptt),
            _ => continue,
        };
        *slot = Some(read_table(memory, address, name)?);
    }
    tables.madt = madt.ok_or(AcpiError::Missing(MADT))?;
    Ok(tables)
}

/// Reads the copied MADT and SRAT. What the SRAT does not mention is on node 0.
pub fn topology(tables: &AcpiTables) -> Result<Topology, AcpiError> {
    let mut topology = Topology::default();
    for structure in structures(MADT, &tables.madt) {
        let structure = structure?;
        topology
            .cpus
            .extend(structure.cpu()?.filter(|_| structure.cpu_is_enabled()));
        if structure.kind == MADT_IO_APIC {
            let body = structure.sized(12)?;
            let (address, gsi_base) = (read_u32(body, 4), read_u32(body, 8));
            topology.io_apics.push(IoApic { address, gsi_base });
        }
    }
    topology.cpus.sort_unstable();
    topology.cpus.dedup();
    for structure in structures(SRAT, tables.srat.as_deref().unwrap_or_default()) {
        let structure = structure?;
        if let Some(cpu) = structure.cpu()?.filter(|_| structure.cpu_is_enabled()) {
            let found = topology
                .cpus
                .binary_search_by_key(&cpu.apic_id, |cpu| cpu.apic_id);
            if let Ok(index) = found {
                topology.cpus[index] = cpu;
            }
        } else if structure.kind == SRAT_MEMORY {
            let body = structure.sized(40)?;
            let range = MemoryRange::with_size(read_u64(body, 8), read_u64(body, 16));
            let (enabled, node) = (body[28] & 1 != 0, read_u32(body, 2));
            let ram = range
                .filter(|_| enabled)
                .map(|range| RamRange { range, node });
            topology.memory.extend(ram);
        }
    }
    Ok(topology)
}

/// Takes a CPU out of the copied MADT and SRAT by clearing its enabled bit.
pub fn disable_cpu(tables: &mut AcpiTables, apic_id: u32) {
    let srat = tables.srat.as_deref_mut().unwrap_or_default();
    for (name, table) in [(MADT, &mut tables.madt[..]), (SRAT, srat)] {
        let flags = structures(name, table).find_map(|structure| {
            let structure = structure.ok()?;
            let cpu = structure.cpu().ok()??;
            (cpu.apic_id == apic_id).then_some(structure.offset + structure.cpu_flags())
        });
        if let Some(position) = flags {
            table[position] &= !1;
            table[9] = table[9].wrapping_sub(sum(table));
        }
    }
}

/// Name, size of an entry and address of the list of tables that the RSDP points to.
fn read_rsdp(
    memory: &impl PhysMemory,
    address: u64,
) -> Result<(&'static str, usize, u64), AcpiError> {
    let mut rsdp = [0; RSDP_SIZE[1]];
    memory.read(address, &mut rsdp)?;
    if !rsdp.starts_with(b"RSD PTR ") || sum(&rsdp[..RSDP_SIZE[0]]) != 0 {
        return Err(AcpiError::Missing("RSDP"));
    }
    let xsdt = read_u64(&rsdp, 24);
    if rsdp[15] >= 2 && sum(&rsdp) == 0 && xsdt != 0 {
        return Ok(("XSDT", 8, xsdt));
    }
    Ok(("RSDT", 4, read_u32(&rsdp, 16).into()))
}

/// Copies a table and checks its name, length and checksum.
fn read_table(
    memory: &impl PhysMemory,
    address: u64,
    table: &'static str,
) -> Result<Vec<u8>, AcpiError> {
    let wrong = |field, found, expected| wrong(table, field, found, expected);
    let mut header = [0; HEADER_SIZE];
    memory.read(address, &mut header)?;
    if !header.starts_with(table.as_bytes()) {
        return Err(wrong("signature at address", address, "the table's name"));
    }
    let length = read_u32(&header, 4) as usize;
    if !(structures_offset(table)..=MAX_TABLE_SIZE).contains(&length) {
        return Err(wrong("length", length as u64, "its header to 1 MiB"));
    }
    let mut bytes = vec![0; length];
    memory.read(address, &mut bytes)?;
    match sum(&bytes) {
        0 => Ok(bytes),
        n => Err(wrong("sum of all bytes", n.into(), "0")),
    }
}

/// Where the structures of a table begin.
fn structures_offset(table: &'static str) -> usize {
    HEADER_SIZE
        + match table {
            MADT => 8,
            SRAT => 12,
            _ => 0,
        }
}

/// A type-length-value structure of the MADT or SRAT.
struct Structure<'a> {
    table: &'static str,
    kind: u8,
    offset: usize,
    bytes: &'a [u8],
}

impl<'a> Structure<'a> {
    /// Its bytes, if there are as many as its type needs.
    fn sized(&self, needed: usize) -> Result<&'a [u8], AcpiError> {
        let length = self.bytes.len();
        if length >= needed {
            return Ok(self.bytes);
        }
        Err(wrong(
            self.table,
            "length of a structure",
            length as u64,
            "the length of its type",
        ))
    }

    /// The CPU that it describes. In a MADT there is no node.
    fn cpu(&self) -> Result<Option<Cpu>, AcpiError> {
        let cpu = |apic_id, node| Some(Cpu { apic_id, node });
        Ok(match (self.table, self.kind) {
            (MADT, 0) => cpu(self.sized(8)?[3].into(), 0),
            (MADT, 9) => cpu(read_u32(self.sized(16)?, 4), 0),
            (SRAT, SRAT_LOCAL_APIC) => {
                let body = self.sized(16)?;
                let node = u32::from_le_bytes([body[2], body[9], body[10], body[11]]);
                cpu(body[3].into(), node)
            }
            (SRAT, 2) => cpu(read_u32(self.sized(24)?, 8), read_u32(self.bytes, 4)),
            _ => None,
        })
    }

    /// Where the flags of a CPU are; [`Self::cpu`] has checked the length.
    fn cpu_flags(&self) -> usize {
        match (self.table, self.kind) {
            (_, SRAT_LOCAL_APIC) => 4,
            (MADT, _) => 8,
            _ => 12,
        }
    }

    fn cpu_is_enabled(&self) -> bool {
        self.bytes[self.cpu_flags()] & 1 != 0
    }
}

/// The structures of a table, up to the first that is cut off.
fn structures<'a>(
    table: &'static str,
    bytes: &'a [u8],
) -> impl Iterator<Item = Result<Structure<'a>, AcpiError>> {
    let mut offset = structures_offset(table);
    core::iter::from_fn(move || {
        let rest = bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let length = usize::from(rest.get(1).copied().unwrap_or(0));
        let Some(body) = rest.get(..length).filter(|body| body.len() >= 2) else {
            offset = bytes.len();
            let expected = "2 or more and within the table";
            return Some(Err(wrong(
                table,
                "length of a structure",
                length as u64,
                expected,
            )));
        };
        let (kind, at) = (rest[0], offset);
        offset += length;
        Some(Ok(Structure {
            table,
            kind,
            offset: at,
            bytes: body,
        }))
    })
}

fn wrong(
    table: &'static str,
    field: &'static str,
    found: u64,
    expected: &'static str,
) -> AcpiError {
    AcpiError::Field {
        table,
        field,
        found,
        expected,
    }
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
