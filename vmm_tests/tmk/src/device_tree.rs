//! The host's device tree, as far as it repeats what the other parameters say.

use crate::acpi::MAX_VPS;
use crate::memory_map::Entry;
use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;
use igvm_defs::MemoryMapEntryType;
use igvm_defs::dt::IGVM_DT_IGVM_TYPE_PROPERTY;
use thiserror::Error;

/// Memory ranges that the payload copes with.
const MAX_MEMORY: usize = 128;
/// Offset of `boot_cpuid_phys` in the header.
const BOOT_CPUID_OFFSET: usize = 28;
/// I/O port of COM3.
const COM3_PORT: u64 = 0x3e8;

/// Why a device tree is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error {
    /// It is no device tree.
    #[error("not a device tree: {0}")]
    Malformed(&'static str),
    /// A node is missing.
    #[error("node {0} is missing")]
    NoNode(&'static str),
    /// A property is missing or has the wrong size.
    #[error("property {0} is missing or malformed")]
    Property(&'static str),
    /// More nodes than the payload copes with.
    #[error("too many {0}")]
    TooMany(&'static str),
}

/// What the device tree says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts<'a> {
    /// APIC ids of the processors that are "okay", in order.
    pub apic_ids: ArrayVec<u32, MAX_VPS>,
    /// APIC id of VP 0 according to the header.
    pub boot_apic_id: u32,
    /// Memory, in the order of the tree.
    pub memory: ArrayVec<Entry, MAX_MEMORY>,
    /// `/chosen/bootargs`, empty if missing.
    pub bootargs: &'a str,
    /// `/openhcl/memory-allocation-mode`.
    pub allocation_mode: &'a str,
    /// Bytes of entropy.
    pub entropy_bytes: usize,
    /// True if the entropy is not all the same byte.
    pub entropy_varies: bool,
    /// COM3 is described.
    pub has_com3: bool,
}

/// Reads the tree.
pub fn read(area: &[u8]) -> Result<Facts<'_>, Error> {
    let tree = Fdt::new(area).map_err(|error| {
        Error::Malformed(match error {
            fdt::FdtError::BadMagic => "wrong magic",
            fdt::FdtError::BadPtr => "bad pointer",
            fdt::FdtError::BufferTooSmall => "does not fit",
        })
    })?;
    let boot_apic_id = area
        .get(BOOT_CPUID_OFFSET..)
        .and_then(|bytes| bytes.first_chunk())
        .map(|bytes| u32::from_be_bytes(*bytes))
        .ok_or(Error::Malformed("short header"))?;
    let openhcl = tree
        .find_node("/openhcl")
        .ok_or(Error::NoNode("/openhcl"))?;
    let entropy = tree
        .find_node("/openhcl/entropy")
        .ok_or(Error::NoNode("/openhcl/entropy"))?
        .property("reg")
        .ok_or(Error::Property("/openhcl/entropy: reg"))?
        .value;
    Ok(Facts {
        apic_ids: apic_ids(&tree)?,
        boot_apic_id,
        memory: memory(&tree)?,
        bootargs: tree
            .find_node("/chosen")
            .and_then(|node| text(&node, "bootargs"))
            .unwrap_or(""),
        allocation_mode: text(&openhcl, "memory-allocation-mode")
            .ok_or(Error::Property("/openhcl: memory-allocation-mode"))?,
        entropy_bytes: entropy.len(),
        entropy_varies: entropy.windows(2).any(|pair| pair[0] != pair[1]),
        has_com3: tree.all_nodes().any(|node| is_com3(&node)),
    })
}

fn apic_ids(tree: &Fdt<'_>) -> Result<ArrayVec<u32, MAX_VPS>, Error> {
    let cpus = tree.find_node("/cpus").ok_or(Error::NoNode("/cpus"))?;
    let mut ids = ArrayVec::new();
    for cpu in cpus.children() {
        if text(&cpu, "status") != Some("okay") {
            continue;
        }
        let reg = cpu.property("reg").and_then(|reg| reg.as_usize());
        let id = reg
            .and_then(|id| u32::try_from(id).ok())
            .ok_or(Error::Property("/cpus/cpu: reg"))?;
        ids.try_push(id).map_err(|_| Error::TooMany("processors"))?;
    }
    Ok(ids)
}

fn memory(tree: &Fdt<'_>) -> Result<ArrayVec<Entry, MAX_MEMORY>, Error> {
    let mut entries = ArrayVec::new();
    let root = tree.find_node("/").ok_or(Error::NoNode("/"))?;
    for node in root.children() {
        if !node.name.starts_with("memory@") {
            continue;
        }
        let typ = match node.property(IGVM_DT_IGVM_TYPE_PROPERTY) {
            None => MemoryMapEntryType::MEMORY,
            Some(property) => property
                .as_usize()
                .and_then(|typ| u16::try_from(typ).ok())
                .map(MemoryMapEntryType)
                .ok_or(Error::Property("/memory: microsoft,igvm-type"))?,
        };
        let reg = node
            .property("reg")
            .ok_or(Error::Property("/memory: reg"))?
            .value;
        let (pairs, rest) = reg.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(Error::Property("/memory: reg"));
        }
        for pair in pairs {
            let number = u128::from_be_bytes(*pair);
            let (start, size) = ((number >> 64) as u64, number as u64);
            let end = start
                .checked_add(size)
                .ok_or(Error::Property("/memory: reg"))?;
            entries
                .try_push(Entry { start, end, typ })
                .map_err(|_| Error::TooMany("memory ranges"))?;
        }
    }
    Ok(entries)
}

fn is_com3(node: &FdtNode<'_, '_>) -> bool {
    let base = node
        .property("reg")
        .and_then(|reg| reg.value.first_chunk())
        .map(|bytes| u64::from_be_bytes(*bytes));
    text(node, "compatible") == Some("ns16550") && base == Some(COM3_PORT)
}

/// A property that is one text.
fn text<'a>(node: &FdtNode<'_, 'a>, name: &str) -> Option<&'a str> {
    let value = node.property(name)?.value;
    core::str::from_utf8(value.strip_suffix(&[0])?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_fdt::FdtWriter;

    /// A tree as the contract describes it.
    pub(crate) fn tree(apic_ids: &[u32], bootargs: &str) -> Vec<u8> {
        let mut fdt = FdtWriter::new().unwrap();
        fdt.set_boot_cpuid_phys(apic_ids[0]);
        let root = fdt.begin_node("").unwrap();
        let cpus = fdt.begin_node("cpus").unwrap();
        fdt.property_u32("#address-cells", 1).unwrap();
        for id in apic_ids {
            let cpu = fdt.begin_node(&format!("cpu@{id}")).unwrap();
            fdt.property_string("status", "okay").unwrap();
            fdt.property_u32("reg", *id).unwrap();
            fdt.end_node(cpu).unwrap();
        }
        fdt.end_node(cpus).unwrap();
        for (start, size, typ) in [(0u64, 0x700_0000u64, 0), (0x800_0000, 0x100_0000, 3)] {
            let memory = fdt.begin_node(&format!("memory@{start:x}")).unwrap();
            fdt.property_array_u64("reg", &[start, size]).unwrap();
            fdt.property_u32(IGVM_DT_IGVM_TYPE_PROPERTY, typ).unwrap();
            fdt.end_node(memory).unwrap();
        }
        let bus = fdt.begin_node("pio").unwrap();
        let serial = fdt.begin_node("serial@3e8").unwrap();
        fdt.property_string("compatible", "ns16550").unwrap();
        fdt.property_array_u64("reg", &[COM3_PORT, 8]).unwrap();
        fdt.end_node(serial).unwrap();
        fdt.end_node(bus).unwrap();
        let chosen = fdt.begin_node("chosen").unwrap();
        fdt.property_string("bootargs", bootargs).unwrap();
        fdt.end_node(chosen).unwrap();
        let openhcl = fdt.begin_node("openhcl").unwrap();
        fdt.property_string("memory-allocation-mode", "host")
            .unwrap();
        let entropy = fdt.begin_node("entropy").unwrap();
        let bytes: Vec<u8> = (0..64).collect();
        fdt.property("reg", &bytes).unwrap();
        fdt.end_node(entropy).unwrap();
        fdt.end_node(openhcl).unwrap();
        fdt.end_node(root).unwrap();
        fdt.finish().unwrap()
    }

    #[test]
    fn a_tree_of_the_contract_is_read() {
        let bytes = tree(&[1, 2], "tmk.test=params");
        let facts = read(&bytes).unwrap();
        assert_eq!(facts.apic_ids.as_slice(), [1, 2]);
        assert_eq!(facts.boot_apic_id, 1);
        assert_eq!(facts.bootargs, "tmk.test=params");
        assert_eq!(facts.allocation_mode, "host");
        assert_eq!(facts.memory.len(), 2);
        assert!(facts.memory[1].is_vtl2());
        assert!(facts.has_com3 && facts.entropy_varies);
        assert_eq!(facts.entropy_bytes, 64);
    }

    #[test]
    fn an_untouched_area_is_no_tree() {
        assert!(matches!(read(&[0xa5; 4096]), Err(Error::Malformed(_))));
    }

    proptest! {
        #[test]
        fn bytes_without_the_magic_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read(&bytes);
        }
    }
}
