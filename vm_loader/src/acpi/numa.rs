//! SRAT and SLIT: which processor and which memory belong together.

use super::{AcpiError, Chipset, MAX_NODES, Numa, table};
use crate::memory::Ram;
use acpi_tables::sdt::Sdt;
use alloc::vec::Vec;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

/// Flag of an entry: enabled.
const ENABLED: u32 = 1;
/// Revision of the SRAT.
const SRAT_REVISION: u8 = 3;
/// Revision of the SLIT.
const SLIT_REVISION: u8 = 1;
/// Distance of a node to itself.
const LOCAL_DISTANCE: u8 = 10;
/// Distance that says "not reachable".
const UNREACHABLE: u8 = 0xff;

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Memory {
    structure: u8,
    length: u8,
    node: U32,
    reserved: U16,
    address: U64,
    size: U64,
    reserved2: U32,
    flags: U32,
    reserved3: U64,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct X2Apic {
    structure: u8,
    length: u8,
    reserved: U16,
    node: U32,
    apic_id: U32,
    flags: U32,
    clock_domain: U32,
    reserved2: U32,
}

/// The tables: none without NUMA nodes.
pub(super) fn build(chipset: &Chipset<'_>, ram: &[Ram]) -> Result<Vec<Sdt>, AcpiError> {
    let Some(numa) = chipset.numa else {
        return Ok(Vec::new());
    };
    if !(1..=MAX_NODES).contains(&numa.nodes) {
        return Err(AcpiError::Count {
            what: "NUMA nodes",
            found: numa.nodes as usize,
            min: 1,
            max: MAX_NODES as usize,
        });
    }
    let mut tables = Vec::from([srat(chipset, ram, numa.nodes)?]);
    if let Some(distances) = numa.distances {
        tables.push(slit(numa, distances)?);
    }
    Ok(tables)
}

fn srat(chipset: &Chipset<'_>, ram: &[Ram], nodes: u32) -> Result<Sdt, AcpiError> {
    let check = |what, node| match node < nodes {
        true => Ok(U32::new(node)),
        false => Err(AcpiError::Node { what, node, nodes }),
    };
    let mut body = Vec::new();
    // A reserved word that must be 1, and one that must be 0.
    body.extend_from_slice(&1u32.to_le_bytes());
    body.extend_from_slice(&0u64.to_le_bytes());
    for processor in chipset.processors {
        let structure = X2Apic {
            structure: 2,
            length: size_of::<X2Apic>() as u8,
            reserved: U16::ZERO,
            node: check("a processor", processor.node)?,
            apic_id: processor.apic_id.into(),
            flags: ENABLED.into(),
            clock_domain: U32::ZERO,
            reserved2: U32::ZERO,
        };
        body.extend_from_slice(structure.as_bytes());
    }
    for &Ram { range, node } in ram {
        let structure = Memory {
            structure: 1,
            length: size_of::<Memory>() as u8,
            node: check("RAM", node)?,
            reserved: U16::ZERO,
            address: range.start().into(),
            size: range.len().into(),
            reserved2: U32::ZERO,
            flags: ENABLED.into(),
            reserved3: U64::ZERO,
        };
        body.extend_from_slice(structure.as_bytes());
    }
    Ok(table(*b"SRAT", SRAT_REVISION, &body))
}

fn slit(numa: Numa<'_>, distances: &[u8]) -> Result<Sdt, AcpiError> {
    let nodes = numa.nodes as usize;
    if distances.len() != nodes * nodes {
        return Err(AcpiError::Distances {
            found: distances.len(),
            nodes: numa.nodes,
        });
    }
    for (index, &found) in distances.iter().enumerate() {
        let (from, to) = (index / nodes, index % nodes);
        let is_right = match from == to {
            true => found == LOCAL_DISTANCE,
            false => found > LOCAL_DISTANCE && found < UNREACHABLE,
        };
        if !is_right {
            return Err(AcpiError::Distance { from, to, found });
        }
    }
    let mut body = Vec::from(u64::from(numa.nodes).to_le_bytes());
    body.extend_from_slice(distances);
    Ok(table(*b"SLIT", SLIT_REVISION, &body))
}

const _: () = assert!(size_of::<Memory>() == 40);
const _: () = assert!(size_of::<X2Apic>() == 24);
