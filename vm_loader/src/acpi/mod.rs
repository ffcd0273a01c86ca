//! ACPI tables, built from a description of the chipset with the `acpi_tables` crate: RSDP,
//! XSDT, FADT (with FACS where the hardware is not reduced), MADT, DSDT, and SRAT and SLIT
//! where there are NUMA nodes. Encodings are those of the ACPI specification 6.5.
//!
//! All of them are one block of bytes with the RSDP first. Nothing in them is made up: what
//! the caller does not name is described as absent.

mod description;
mod dsdt;
mod fadt;
mod madt;
mod numa;

pub use description::*;

use crate::memory::{ADDRESS_LIMIT, Ram};
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use thiserror::Error;

/// Who made the tables.
const OEM_ID: [u8; 6] = *b"OHCLQM";
/// For which product.
const OEM_TABLE_ID: [u8; 8] = *b"OPENHCL ";
/// In which revision.
const OEM_REVISION: u32 = 1;
/// Each table starts at a multiple of this; a FACS must.
const TABLE_ALIGNMENT: usize = 64;
/// Processors that are described at most; more would not fit behind 0xe0000 anyway.
pub const MAX_PROCESSORS: usize = 4096;
/// NUMA nodes that are described at most.
pub const MAX_NODES: u32 = 64;
/// Serial ports that are described at most.
pub const MAX_SERIAL_PORTS: usize = 4;

/// Interrupt routes of a PCI bus: 32 devices with 4 pins.
pub const MAX_PCI_ROUTES: usize = 128;

/// Why a chipset cannot be described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// None or too many of something.
    #[error("{found} {what} are given, expected {min} to {max}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// At least.
        min: usize,
        /// At most.
        max: usize,
    },
    /// Two processors with one ID.
    #[error("APIC ID {id:#x} is given twice, expected one processor of that ID")]
    DuplicateApicId {
        /// The ID.
        id: u32,
    },
    /// A node that does not exist.
    #[error("{what} belongs to NUMA node {node}, expected a node below {nodes}")]
    Node {
        /// A processor or RAM.
        what: &'static str,
        /// Its node.
        node: u32,
        /// How many there are.
        nodes: u32,
    },
    /// Distances that are no matrix.
    #[error("{found} distances are given for {nodes} NUMA nodes, expected {nodes} times {nodes}")]
    Distances {
        /// How many.
        found: usize,
        /// Nodes.
        nodes: u32,
    },
    /// A distance that has a meaning of its own.
    #[error(
        "distance from NUMA node {from} to {to} is {found}, expected 10 to itself, else 11 to 254"
    )]
    Distance {
        /// From this node.
        from: usize,
        /// To this one.
        to: usize,
        /// The distance.
        found: u8,
    },
    /// Ports behind the last.
    #[error("{what} at port {port:#x} with {length} ports ends behind port 0xffff")]
    Ports {
        /// The device.
        what: &'static str,
        /// Its first port.
        port: u16,
        /// How many.
        length: u16,
    },
    /// A window for PCI devices that is none.
    #[error("PCI window {start:#x}-{end:#x} is empty or beyond 52 bits")]
    PciWindow {
        /// Its first byte.
        start: u64,
        /// The byte behind its last.
        end: u64,
    },
    /// A value that is out of range.
    #[error("{what} is {found:#x}, expected {expected}")]
    Value {
        /// Which value.
        what: &'static str,
        /// The value.
        found: u64,
        /// What would make sense.
        expected: &'static str,
    },
    /// A button without the register that reports it.
    #[error("the power button is in the fixed registers, but the hardware is reduced")]
    ButtonWithoutRegister,
}

/// Builds the tables for `address`, a multiple of 64 where the first byte of the result
/// will be. Their size does not depend on it.
pub fn build(chipset: &Chipset<'_>, ram: &[Ram], address: u64) -> Result<Vec<u8>, AcpiError> {
    check_value(
        "address of the tables",
        address,
        address.is_multiple_of(TABLE_ALIGNMENT as u64) && address < ADDRESS_LIMIT,
        "a multiple of 64 below 2^52",
    )?;
    validate(chipset)?;
    let mut block = Block {
        address,
        // The RSDP and the XSDT come first but are known last.
        bytes: Vec::new(),
    };
    let numa = numa::build(chipset, ram)?;
    let listed = 2 + numa.len();
    block.bytes.resize(Rsdp::len(), 0);
    let xsdt_address = block.next_address();
    block.pad();
    block
        .bytes
        .resize(block.bytes.len() + XSDT_HEADER + 8 * listed, 0);

    let facs = match chipset.power {
        Power::Fixed(_) => Some(block.add(&FACS::new())),
        Power::HardwareReduced(_) => None,
    };
    let dsdt = block.add(&dsdt::build(chipset)?);
    let fadt = fadt::build(chipset, dsdt, facs);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(block.add(&fadt));
    xsdt.add_entry(block.add(&madt::build(chipset)));
    for table in &numa {
        xsdt.add_entry(block.add(table));
    }
    block.put(address, &Rsdp::new(OEM_ID, xsdt_address));
    block.put(xsdt_address, &xsdt);
    Ok(block.bytes)
}

/// Size of a table header.
const XSDT_HEADER: usize = 36;

/// Tables one behind the other.
struct Block {
    address: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// Where the next table goes.
    fn next_address(&self) -> u64 {
        self.address + self.bytes.len().next_multiple_of(TABLE_ALIGNMENT) as u64
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(TABLE_ALIGNMENT);
        self.bytes.resize(length, 0);
    }

    /// Appends a table and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let address = self.next_address();
        self.pad();
        table.to_aml_bytes(&mut self.bytes);
        address
    }

    /// Fills in a table for which there is room at `address`.
    fn put(&mut self, address: u64, table: &dyn Aml) {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let offset = (address - self.address) as usize;
        self.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
}

/// A table of `signature` with these bytes behind its header.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let header = XSDT_HEADER as u32;
    let mut table = Sdt::new(
        signature,
        header,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table
}

fn validate(chipset: &Chipset<'_>) -> Result<(), AcpiError> {
    let count = |what, found, min, max| {
        if (min..=max).contains(&found) {
            return Ok(());
        }
        Err(AcpiError::Count {
            what,
            found,
            min,
            max,
        })
    };
    count("processors", chipset.processors.len(), 1, MAX_PROCESSORS)?;
    count("I/O APICs", chipset.io_apics.len(), 0, 255)?;
    count("interrupt overrides", chipset.overrides.len(), 0, 256)?;
    let ports = chipset.devices.serial_ports.len();
    count("serial ports", ports, 0, MAX_SERIAL_PORTS)?;
    let routes = chipset.devices.pci.map_or(0, |pci| pci.routes.len());
    count("PCI interrupt routes", routes, 0, MAX_PCI_ROUTES)?;
    let mut ids = BTreeSet::new();
    for processor in chipset.processors {
        if !ids.insert(processor.apic_id) {
            let id = processor.apic_id;
            return Err(AcpiError::DuplicateApicId { id });
        }
    }
    for port in chipset.devices.serial_ports {
        check_ports("serial port", port.port, 8)?;
    }
    for item in chipset.overrides {
        let irq = item.isa_irq;
        check_value("overridden ISA interrupt", irq.into(), irq < 16, "0 to 15")?;
    }
    if let Some(input) = chipset.nmi_input {
        check_value("local interrupt input", input.into(), input < 2, "0 or 1")?;
    }
    validate_power(chipset)
}

fn validate_power(chipset: &Chipset<'_>) -> Result<(), AcpiError> {
    let sleep_type = chipset.power.sleep_type_s5();
    check_value("SLP_TYP of S5", sleep_type.into(), sleep_type < 8, "0 to 7")?;
    let Power::Fixed(fixed) = chipset.power else {
        if chipset.devices.power_button == PowerButton::Fixed {
            return Err(AcpiError::ButtonWithoutRegister);
        }
        return Ok(());
    };
    check_ports("PM1 event block", fixed.pm1_event, 4)?;
    check_ports("PM1 control block", fixed.pm1_control, 2)?;
    if let Some(timer) = fixed.timer {
        check_ports("PM timer", timer.port, 4)?;
    }
    if let Some(gpe) = fixed.gpe0 {
        let length = u16::from(gpe.length);
        check_ports("GPE0 block", gpe.port, length)?;
        let is_right = length != 0 && length.is_multiple_of(2);
        let expected = "an even number of ports";
        check_value(
            "length of the GPE0 block",
            length.into(),
            is_right,
            expected,
        )?;
    }
    Ok(())
}

fn check_value(
    what: &'static str,
    found: u64,
    is_right: bool,
    expected: &'static str,
) -> Result<(), AcpiError> {
    if !is_right {
        return Err(AcpiError::Value {
            what,
            found,
            expected,
        });
    }
    Ok(())
}

fn check_ports(what: &'static str, port: u16, length: u16) -> Result<(), AcpiError> {
    if u32::from(port) + u32::from(length) > 0x1_0000 {
        return Err(AcpiError::Ports { what, port, length });
    }
    Ok(())
}
