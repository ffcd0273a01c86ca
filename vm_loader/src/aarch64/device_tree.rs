//! The device tree of an aarch64 VM. Bindings: the kernel's
//! `Documentation/devicetree/bindings` for `arm,armv8`, `arm,psci-1.0`, `arm,gic-v3`,
//! `arm,armv8-timer` and `arm,pl011`.

use crate::memory::Free;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use loader_defs::range::GpaRange;
use thiserror::Error;
use vm_fdt::FdtWriter;

/// The largest device tree, in bytes (`booting.rst`).
pub const MAX_DEVICE_TREE: usize = 2 << 20;
/// Processors that are described at most.
pub const MAX_PROCESSORS: usize = 512;
/// Regions of redistributors that are described at most.
pub const MAX_REDISTRIBUTORS: usize = 64;
/// Serial ports that are described at most.
pub const MAX_SERIAL_PORTS: usize = 8;
/// The longest command line that arm64 reads (`COMMAND_LINE_SIZE`, without the zero).
pub const COMMAND_LINE_MAX: usize = 2047;

/// Affinity fields of MPIDR_EL1; the others are flags.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
/// `phandle` of the GIC.
const GIC_HANDLE: u32 = 1;
/// `phandle` of the clock of the serial ports.
const CLOCK_HANDLE: u32 = 2;
/// First cell of an interrupt: shared between processors (SPI).
const SHARED: u32 = 0;
/// First cell of an interrupt: one per processor (PPI).
const PRIVATE: u32 = 1;
/// Third cell of an interrupt: level-triggered, active high.
const LEVEL_HIGH: u32 = 4;
/// Third cell of an interrupt: level-triggered, active low.
const LEVEL_LOW: u32 = 8;
/// Frequency of the clock of a serial port.
const SERIAL_CLOCK_HZ: u32 = 24_000_000;
/// PPIs that there are.
const PPI_COUNT: u32 = 16;
/// SPIs that there are.
const SPI_COUNT: u32 = 988;

/// What the device tree describes besides memory.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// MPIDR_EL1 of each processor, that which starts first.
    pub processors: &'a [u64],
    /// How PSCI, which starts and stops processors and the machine, is called.
    pub psci: Conduit,
    /// The interrupt controller.
    pub gic: GicV3<'a>,
    /// The timer.
    pub timer: Timer,
    /// Serial ports; the first one is the console.
    pub serial_ports: &'a [Pl011],
    /// Entropy for the kernel's random number generator; may be empty.
    pub rng_seed: &'a [u8],
}

/// The instruction of a PSCI call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
}

/// A GICv3.
#[derive(Debug, Clone, Copy)]
pub struct GicV3<'a> {
    /// Registers of the distributor.
    pub distributor: GpaRange,
    /// Registers of the redistributors: at least one region.
    pub redistributors: &'a [GpaRange],
}

/// PPIs of the generic timer, counted from 0 (interrupt ID 16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// Secure physical.
    pub secure: u32,
    /// Non-secure physical.
    pub non_secure: u32,
    /// Virtual.
    pub virt: u32,
    /// Hypervisor.
    pub hypervisor: u32,
}

impl Timer {
    /// As Arm's base system architecture has them.
    pub const STANDARD: Self = Self {
        secure: 13,
        non_secure: 14,
        virt: 11,
        hypervisor: 10,
    };
}

/// A PL011 serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pl011 {
    /// Its registers.
    pub registers: GpaRange,
    /// Its SPI, counted from 0 (interrupt ID 32).
    pub spi: u32,
}

/// Why a device tree cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceTreeError {
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
    /// Not the address of a processor.
    #[error("MPIDR {mpidr:#x} has other bits than affinity, or is given twice")]
    Mpidr {
        /// The value.
        mpidr: u64,
    },
    /// An interrupt that does not exist.
    #[error("{what} is {found}, expected less than {limit}")]
    Interrupt {
        /// Which interrupt.
        what: &'static str,
        /// Its number.
        found: u32,
        /// How many there are.
        limit: u32,
    },
    /// Registers nowhere.
    #[error("{what} has no registers, expected an address range")]
    NoRegisters {
        /// Whose.
        what: &'static str,
    },
    /// The command line is too long.
    #[error("command line has {size} bytes, expected at most {COMMAND_LINE_MAX}")]
    CommandLineTooLong {
        /// Its size.
        size: usize,
    },
    /// The command line would end early.
    #[error("command line has a zero at byte {offset}, expected none")]
    CommandLineZero {
        /// Where.
        offset: usize,
    },
    /// It is too large.
    #[error("it has {size} bytes, expected at most {MAX_DEVICE_TREE}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// The writer gives up.
    #[error("it cannot be written: {0}")]
    Writer(String),
}

// The writer's error cannot be kept: outside of `std` it is none.
impl From<vm_fdt::Error> for DeviceTreeError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error.to_string())
    }
}

/// Builds the device tree. `memory` is RAM that the guest may use.
pub(crate) fn build(
    machine: &Machine<'_>,
    memory: &Free,
    command_line: &str,
    initrd: Option<GpaRange>,
) -> Result<Vec<u8>, DeviceTreeError> {
    validate(machine, command_line)?;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_HANDLE)?;
    chosen(&mut fdt, machine, command_line, initrd)?;
    for range in memory.ranges() {
        let node = fdt.begin_node(&format!("memory@{:x}", range.start()))?;
        fdt.property_string("device_type", "memory")?;
        registers(&mut fdt, &[*range])?;
        fdt.end_node(node)?;
    }
    processors(&mut fdt, machine.processors)?;
    psci(&mut fdt, machine.psci)?;
    interrupt_controller(&mut fdt, machine.gic)?;
    timer(&mut fdt, machine.timer)?;
    serial_ports(&mut fdt, machine.serial_ports)?;
    fdt.end_node(root)?;
    let tree = fdt.finish()?;
    if tree.len() > MAX_DEVICE_TREE {
        return Err(DeviceTreeError::TooLarge { size: tree.len() });
    }
    Ok(tree)
}

fn validate(machine: &Machine<'_>, command_line: &str) -> Result<(), DeviceTreeError> {
    let count = |what, found, min, max| {
        if (min..=max).contains(&found) {
            return Ok(());
        }
        Err(DeviceTreeError::Count {
            what,
            found,
            min,
            max,
        })
    };
    let redistributors = machine.gic.redistributors;
    count("processors", machine.processors.len(), 1, MAX_PROCESSORS)?;
    count(
        "redistributor regions",
        redistributors.len(),
        1,
        MAX_REDISTRIBUTORS,
    )?;
    count(
        "serial ports",
        machine.serial_ports.len(),
        0,
        MAX_SERIAL_PORTS,
    )?;
    let mut seen = BTreeSet::new();
    for &mpidr in machine.processors {
        if mpidr & !MPIDR_AFFINITY != 0 || !seen.insert(mpidr) {
            return Err(DeviceTreeError::Mpidr { mpidr });
        }
    }
    let timer = machine.timer;
    let ppis = [timer.secure, timer.non_secure, timer.virt, timer.hypervisor];
    let ppis = ppis.map(|ppi| ("PPI of the timer", ppi, PPI_COUNT));
    let spis = machine.serial_ports.iter();
    let spis = spis.map(|port| ("SPI of a serial port", port.spi, SPI_COUNT));
    for (what, found, limit) in ppis.into_iter().chain(spis) {
        if found >= limit {
            return Err(DeviceTreeError::Interrupt { what, found, limit });
        }
    }
    let gic = [machine.gic.distributor];
    let gic = gic.iter().chain(redistributors).map(|r| ("the GIC", r));
    let ports = machine.serial_ports.iter();
    let ports = ports.map(|port| ("a serial port", &port.registers));
    for (what, range) in gic.chain(ports) {
        if range.is_empty() {
            return Err(DeviceTreeError::NoRegisters { what });
        }
    }
    if command_line.len() > COMMAND_LINE_MAX {
        let size = command_line.len();
        return Err(DeviceTreeError::CommandLineTooLong { size });
    }
    if let Some(offset) = command_line.bytes().position(|byte| byte == 0) {
        return Err(DeviceTreeError::CommandLineZero { offset });
    }
    Ok(())
}

/// `reg` with cells as in the root.
fn registers(fdt: &mut FdtWriter, ranges: &[GpaRange]) -> Result<(), vm_fdt::Error> {
    let cells: Vec<u64> = ranges.iter().flat_map(|r| [r.start(), r.len()]).collect();
    fdt.property_array_u64("reg", &cells)
}

fn chosen(
    fdt: &mut FdtWriter,
    machine: &Machine<'_>,
    command_line: &str,
    initrd: Option<GpaRange>,
) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", command_line)?;
    if let Some(console) = machine.serial_ports.first() {
        fdt.property_string("stdout-path", &format!("/{}", serial_name(console)))?;
    }
    if let Some(initrd) = initrd {
        fdt.property_u64("linux,initrd-start", initrd.start())?;
        fdt.property_u64("linux,initrd-end", initrd.end())?;
    }
    if !machine.rng_seed.is_empty() {
        fdt.property("rng-seed", machine.rng_seed)?;
    }
    fdt.end_node(node)
}

fn processors(fdt: &mut FdtWriter, processors: &[u64]) -> Result<(), vm_fdt::Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for mpidr in processors {
        let node = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u64("reg", *mpidr)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)
}

fn psci(fdt: &mut FdtWriter, conduit: Conduit) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", strings(&["arm,psci-1.0", "arm,psci-0.2"]))?;
    let method = match conduit {
        Conduit::Hvc => "hvc",
        Conduit::Smc => "smc",
    };
    fdt.property_string("method", method)?;
    fdt.end_node(node)
}

fn interrupt_controller(fdt: &mut FdtWriter, gic: GicV3<'_>) -> Result<(), vm_fdt::Error> {
    let start = gic.distributor.start();
    let node = fdt.begin_node(&format!("interrupt-controller@{start:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#redistributor-regions", gic.redistributors.len() as u32)?;
    let regions: Vec<_> = [gic.distributor]
        .iter()
        .chain(gic.redistributors)
        .copied()
        .collect();
    registers(fdt, &regions)?;
    fdt.property_phandle(GIC_HANDLE)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter, timer: Timer) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let cells: Vec<u32> = [timer.secure, timer.non_secure, timer.virt, timer.hypervisor]
        .into_iter()
        .flat_map(|ppi| [PRIVATE, ppi, LEVEL_LOW])
        .collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.end_node(node)
}

fn serial_name(port: &Pl011) -> String {
    format!("serial@{:x}", port.registers.start())
}

fn serial_ports(fdt: &mut FdtWriter, ports: &[Pl011]) -> Result<(), vm_fdt::Error> {
    if ports.is_empty() {
        return Ok(());
    }
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK_HANDLE)?;
    fdt.end_node(clock)?;
    for port in ports {
        let node = fdt.begin_node(&serial_name(port))?;
        fdt.property_string_list("compatible", strings(&["arm,pl011", "arm,primecell"]))?;
        registers(fdt, &[port.registers])?;
        fdt.property_array_u32("interrupts", &[SHARED, port.spi, LEVEL_HIGH])?;
        fdt.property_array_u32("clocks", &[CLOCK_HANDLE, CLOCK_HANDLE])?;
        fdt.property_string_list("clock-names", strings(&["uartclk", "apb_pclk"]))?;
        fdt.end_node(node)?;
    }
    Ok(())
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}
