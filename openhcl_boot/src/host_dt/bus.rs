//! Devices in the host's tree: VMBus, serial ports, interrupt controllers.

use arrayvec::ArrayVec;
use igvm_defs::dt::IGVM_DT_VTL_PROPERTY;

use super::{HostDeviceTree, HostDtError, MAX_SERIAL_PORTS, require, require_u32};
use crate::fdt::{Node, Property};
use crate::range::GpaRange;

/// MMIO ranges of a VMBus: one below and one above 4 GiB.
pub const MAX_MMIO_RANGES: usize = 2;

/// Ports of a 16550.
const SERIAL_PORT_SIZE: u64 = 8;

const GIC_CELLS: [(&str, u32); 3] = [
    ("#address-cells", 2),
    ("#size-cells", 2),
    ("#interrupt-cells", 3),
];

/// First interrupt number of private peripherals.
const PPI_BASE: u32 = 16;

/// A VMBus root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmbus {
    /// Its MMIO, sorted.
    pub mmio: ArrayVec<GpaRange, MAX_MMIO_RANGES>,
    /// Connection for messages to the host.
    pub connection_id: u32,
}

/// A 16550 on the port bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First port.
    pub base: u16,
    /// Baud rate that is set.
    pub current_speed: u32,
    /// Interrupt cells (number, sense) at the I/O APIC, if the host names them.
    pub interrupt: Option<[u32; 2]>,
}

/// The I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApic {
    /// Its registers.
    pub base: u64,
}

/// A GICv3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gic {
    /// Distributor.
    pub distributor: GpaRange,
    /// Redistributors, one after the other.
    pub redistributors: GpaRange,
    /// Bytes from one to the next.
    pub redistributor_stride: u64,
}

/// A PL011-like console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SbsaUart {
    /// Its registers.
    pub base: u32,
    /// Its interrupt.
    pub interrupt: u32,
    /// Baud rate that is set.
    pub current_speed: u32,
}

impl HostDeviceTree {
    pub(super) fn parse_device(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        if node.is_compatible("simple-bus") {
            // An absent or non-empty map means addresses that are not GPAs.
            if node.property("ranges").is_some_and(|r| r.value.is_empty()) {
                for child in node.children() {
                    if child.is_compatible("microsoft,vmbus") {
                        self.parse_vmbus(child)?;
                    }
                }
            }
        } else if node.is_compatible("x86-pio-bus") {
            for child in node.children() {
                self.parse_pio_device(child)?;
            }
        } else if node.is_compatible("intel,ce4100-ioapic") {
            self.parse_io_apic(node)?;
        } else if node.is_compatible("arm,gic-v3") {
            self.parse_gic(node)?;
        } else if node.is_compatible("arm,sbsa-uart") {
            self.parse_sbsa_uart(node)?;
        } else if node.is_compatible("arm,armv8-pmuv3") {
            self.parse_pmu(node)?;
        }
        Ok(())
    }

    fn parse_vmbus(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        let vtl = require(node, IGVM_DT_VTL_PROPERTY)?;
        let (slot, what) = match vtl.as_u32() {
            Some(0) => (&mut self.vmbus_vtl0, "VMBus of VTL0"),
            Some(2) => (&mut self.vmbus_vtl2, "VMBus of VTL2"),
            _ => return Err(HostDtError::property(node, vtl, "VTL 0 or 2")),
        };
        if slot.is_some() {
            return Err(HostDtError::Duplicate { what });
        }
        expect_cells(node, "#address-cells", 2)?;
        expect_cells(node, "#size-cells", 2)?;
        let mut mmio = ArrayVec::new();
        if let Some(ranges) = node.property("ranges") {
            parse_mmio(node, ranges, &mut mmio)?;
        }
        *slot = Some(Vmbus {
            mmio,
            connection_id: require_u32(node, "microsoft,message-connection-id")?,
        });
        Ok(())
    }

    fn parse_io_apic(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        let first_interrupt = match node.property("interrupt-base") {
            None => 0,
            Some(_) => require_u32(node, "interrupt-base")?,
        };
        // ISA interrupts are at the first one; others have no user in VTL2.
        if first_interrupt != 0 {
            return Ok(());
        }
        if self.io_apic.is_some() {
            return Err(HostDtError::Duplicate { what: "I/O APIC" });
        }
        let reg = require(node, "reg")?;
        let base = reg
            .as_u64_list()
            .filter(|numbers| numbers.len() == 2)
            .and_then(|mut numbers| numbers.next())
            .filter(|base| base.is_multiple_of(loader_defs::PAGE_SIZE))
            .ok_or_else(|| {
                HostDtError::property(node, reg, "64-bit base (page aligned) and length")
            })?;
        self.io_apic = Some(IoApic { base });
        Ok(())
    }

    fn parse_pio_device(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        let current_speed = require_u32(node, "current-speed")?;
        let reg = require(node, "reg")?;
        let numbers = reg
            .as_u64_list()
            .filter(|n| n.len() == 2)
            .and_then(|mut n| Some((n.next()?, n.next()?)))
            .ok_or_else(|| HostDtError::property(node, reg, "64-bit base and length"))?;
        if !node.is_compatible("ns16550") {
            return Ok(());
        }
        let (base, size) = numbers;
        let base = u16::try_from(base)
            .ok()
            .filter(|b| {
                size >= SERIAL_PORT_SIZE && b.checked_add(SERIAL_PORT_SIZE as u16).is_some()
            })
            .ok_or_else(|| HostDtError::property(node, reg, "8 ports below 0x10000"))?;
        if self.serial_ports.iter().any(|p| p.base == base) {
            return Err(HostDtError::Duplicate {
                what: "a serial port",
            });
        }
        let interrupt = match node.property("interrupts") {
            None => None,
            Some(p) => Some(
                p.as_u32_list()
                    .filter(|c| c.len() == 2)
                    .and_then(|mut c| Some([c.next()?, c.next()?]))
                    .ok_or_else(|| HostDtError::property(node, p, "number and sense"))?,
            ),
        };
        let port = SerialPort {
            base,
            current_speed,
            interrupt,
        };
        self.serial_ports
            .try_push(port)
            .map_err(|_| HostDtError::TooMany {
                what: "serial ports",
                limit: MAX_SERIAL_PORTS,
            })
    }

    fn parse_gic(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        if self.gic.is_some() {
            return Err(HostDtError::Duplicate {
                what: "interrupt controller",
            });
        }
        expect_cells(node, "#redistributor-regions", 1)?;
        for (name, value) in GIC_CELLS {
            expect_cells(node, name, value)?;
        }
        let stride = require(node, "redistributor-stride")?;
        let redistributor_stride = stride
            .as_u64()
            .filter(|s| *s != 0)
            .ok_or_else(|| HostDtError::property(node, stride, "a 64-bit number"))?;
        let reg = require(node, "reg")?;
        let error = || HostDtError::property(node, reg, "two pairs of 64-bit base and length");
        let mut numbers = reg
            .as_u64_list()
            .filter(|n| n.len() == 4)
            .ok_or_else(error)?;
        let mut range = || GpaRange::new(numbers.next()?, numbers.next()?);
        self.gic = Some(Gic {
            distributor: range().ok_or_else(error)?,
            redistributors: range().ok_or_else(error)?,
            redistributor_stride,
        });
        Ok(())
    }

    fn parse_sbsa_uart(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        // The first one wins: it is the console.
        if self.sbsa_uart.is_none() {
            self.sbsa_uart = Some(SbsaUart {
                base: require_u32(node, "reg")?,
                interrupt: require_u32(node, "interrupts")?,
                current_speed: require_u32(node, "current-speed")?,
            });
        }
        Ok(())
    }

    fn parse_pmu(&mut self, node: Node<'_>) -> Result<(), HostDtError> {
        const PPI: u32 = 1;
        let interrupts = require(node, "interrupts")?;
        let number = interrupts
            .as_u32_list()
            .filter(|cells| cells.len() >= 3)
            .and_then(|mut cells| Some((cells.next()?, cells.next()?)))
            .filter(|&(kind, number)| kind == PPI && number < 16)
            .ok_or_else(|| HostDtError::property(node, interrupts, "a private interrupt below 16"))?
            .1;
        self.pmu_gsiv = Some(PPI_BASE + number);
        Ok(())
    }
}

fn expect_cells(node: Node<'_>, name: &'static str, value: u32) -> Result<(), HostDtError> {
    let property = require(node, name)?;
    if property.as_u32() == Some(value) {
        return Ok(());
    }
    let expected = match value {
        1 => "1",
        2 => "2",
        _ => "3",
    };
    Err(HostDtError::property(node, property, expected))
}

// Triples of child address, parent address and length.
fn parse_mmio(
    node: Node<'_>,
    ranges: Property<'_>,
    mmio: &mut ArrayVec<GpaRange, MAX_MMIO_RANGES>,
) -> Result<(), HostDtError> {
    let error = || {
        HostDtError::property(
            node,
            ranges,
            "at most two triples of child base, equal parent base, length",
        )
    };
    let mut numbers = ranges.as_u64_list().ok_or_else(error)?;
    if !numbers.len().is_multiple_of(3) {
        return Err(error());
    }
    while let (Some(child), Some(parent), Some(length)) =
        (numbers.next(), numbers.next(), numbers.next())
    {
        let range = GpaRange::new(parent, length)
            .filter(|_| child == parent)
            .ok_or_else(error)?;
        if !range.is_page_aligned() {
            return Err(HostDtError::Alignment {
                node: node.name().into(),
                range,
            });
        }
        mmio.try_push(range).map_err(|_| error())?;
    }
    mmio.sort_unstable();
    Ok(())
}
