//! What the caller says about the chipset.

use loader_defs::range::GpaRange;

/// All that the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Chipset<'a> {
    /// All processors, that which starts first.
    pub processors: &'a [Processor],
    /// Address of the local APIC's registers.
    pub local_apic: u32,
    /// There is a pair of 8259 interrupt controllers besides.
    pub has_pic: bool,
    /// The I/O APICs.
    pub io_apics: &'a [IoApic],
    /// ISA interrupts that are not edge-triggered, active high and at the GSI of their
    /// number.
    pub overrides: &'a [InterruptOverride],
    /// The local interrupt input (0 or 1) of every processor that NMIs come through.
    pub nmi_input: Option<u8>,
    /// Power management.
    pub power: Power,
    /// What else is there.
    pub devices: Devices<'a>,
    /// NUMA nodes; `None`: everything is one node and nobody needs to know.
    pub numa: Option<Numa<'a>>,
}

/// A processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// ID of its local APIC.
    pub apic_id: u32,
    /// Its NUMA node.
    pub node: u32,
}

/// An I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApic {
    /// Its ID.
    pub id: u8,
    /// Address of its registers.
    pub address: u32,
    /// The GSI (global system interrupt) of its first input.
    pub first_gsi: u32,
}

/// How an interrupt line signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// By its level, not by an edge.
    pub level_triggered: bool,
    /// Active when low.
    pub active_low: bool,
}

impl Signal {
    /// Edge-triggered, active high: as on the ISA bus.
    pub const ISA: Self = Self {
        level_triggered: false,
        active_low: false,
    };
    /// Level-triggered, active high: as the SCI of most VMs.
    pub const LEVEL_HIGH: Self = Self {
        level_triggered: true,
        active_low: false,
    };
}

/// An ISA interrupt with an input of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptOverride {
    /// ISA interrupt, 0 to 15.
    pub isa_irq: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// How.
    pub signal: Signal,
}

/// How the guest switches the machine off, and finds the PM timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Without the fixed registers.
    HardwareReduced(ReducedPower),
    /// With the fixed registers of a PC.
    Fixed(FixedPower),
}

impl Power {
    /// The sleep type that means S5.
    pub const fn sleep_type_s5(&self) -> u8 {
        match self {
            Self::HardwareReduced(power) => power.sleep_type_s5,
            Self::Fixed(power) => power.sleep_type_s5,
        }
    }

    /// The reset register.
    pub const fn reset(&self) -> Option<Reset> {
        match self {
            Self::HardwareReduced(power) => power.reset,
            Self::Fixed(power) => power.reset,
        }
    }
}

/// Registers of hardware-reduced ACPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReducedPower {
    /// Port of the sleep control register.
    pub sleep_control: u16,
    /// Port of the sleep status register.
    pub sleep_status: u16,
    /// Value of SLP_TYP that means S5.
    pub sleep_type_s5: u8,
    /// The reset register.
    pub reset: Option<Reset>,
}

/// The fixed registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedPower {
    /// GSI of the SCI (system control interrupt).
    pub sci: u8,
    /// First of the 4 ports of the PM1a event block.
    pub pm1_event: u16,
    /// First of the 2 ports of the PM1a control block. ACPI mode is always on: there is no
    /// SMI command port.
    pub pm1_control: u16,
    /// The PM timer.
    pub timer: Option<PmTimer>,
    /// General purpose events.
    pub gpe0: Option<GpeBlock>,
    /// Value of SLP_TYP that means S5.
    pub sleep_type_s5: u8,
    /// The reset register.
    pub reset: Option<Reset>,
}

/// The PM timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmTimer {
    /// First of its 4 ports.
    pub port: u16,
    /// It counts 32 bits, not 24.
    pub is_32_bit: bool,
}

/// A block of general purpose events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpeBlock {
    /// Its first port.
    pub port: u16,
    /// Its ports: half of them status, half of them enable.
    pub length: u8,
}

/// The reset register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// Its port.
    pub port: u16,
    /// What is written to reset the machine.
    pub value: u8,
}

/// Devices that a guest does not find by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Devices<'a> {
    /// 16550 serial ports; the first one is COM1.
    pub serial_ports: &'a [SerialPort],
    /// A CMOS real-time clock at ports 0x70 and 0x71.
    pub rtc: Option<Rtc>,
    /// An i8042 keyboard controller whose keyboard and mouse can be probed. One that can
    /// only reset the machine does not count.
    pub has_keyboard_controller: bool,
    /// The power button.
    pub power_button: PowerButton,
    /// A PCI root.
    pub pci: Option<PciRoot<'a>>,
}

/// A serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// The first of its 8 ports.
    pub port: u16,
    /// Its interrupt.
    pub gsi: u32,
}

/// The real-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtc {
    /// Its interrupt.
    pub gsi: u32,
    /// Index of the CMOS byte that holds the century.
    pub century: Option<u8>,
}

/// How the power button is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PowerButton {
    /// There is none.
    #[default]
    None,
    /// Through the PM1 event block. Needs [`Power::Fixed`].
    Fixed,
    /// Through a device in the DSDT.
    Device,
}

/// A PCI root with configuration ports 0xcf8 and 0xcfc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciRoot<'a> {
    /// The highest bus number.
    pub last_bus: u8,
    /// Memory for BARs.
    pub windows: &'a [GpaRange],
    /// Where the interrupt pins of the devices on bus 0 go.
    pub routes: &'a [PciRoute],
}

/// An interrupt pin of a PCI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciRoute {
    /// Device number, 0 to 31.
    pub device: u8,
    /// 0 = INTA to 3 = INTD.
    pub pin: u8,
    /// Its interrupt.
    pub gsi: u32,
}

/// NUMA nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numa<'a> {
    /// How many.
    pub nodes: u32,
    /// Distances, row by row; 10 is that of a node to itself.
    pub distances: Option<&'a [u8]>,
}
