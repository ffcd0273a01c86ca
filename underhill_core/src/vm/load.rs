//! Loads the guest: files and a description of its machine become memory and registers.

use super::payload::Payload;
use chipset::acpi_pm;
use chipset::ioapic;
use chipset::pci_config;
use chipset::pin;
use chipset::rtc;
use chipset::uart;
use thiserror::Error;
use virt::GuestMemory;
use vm_loader::ImportPages;
use vm_loader::MemoryLayout;
use vm_loader::Plan;
use vm_loader::Ram;
use vm_loader::acpi::Chipset;
use vm_loader::acpi::Devices;
use vm_loader::acpi::FixedPower;
use vm_loader::acpi::InterruptOverride;
use vm_loader::acpi::IoApic;
use vm_loader::acpi::PmTimer;
use vm_loader::acpi::Power;
use vm_loader::acpi::PowerButton;
use vm_loader::acpi::Processor;
use vm_loader::acpi::Reset;
use vm_loader::acpi::Rtc;
use vm_loader::acpi::SerialPort;
use vm_loader::acpi::Signal;
use vm_loader::x86_64::LinuxDirect;
use vm_loader::x86_64::Registers;

/// Address of the local APICs, which are the host's.
const LOCAL_APIC: u32 = 0xfee0_0000;

/// A guest that cannot be loaded.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    /// The files do not fit the machine, or are none.
    #[error(transparent)]
    Plan(#[from] vm_loader::x86_64::LoadError),
    /// The memory cannot be written.
    #[error(transparent)]
    Memory(#[from] guest_memory::Error),
}

/// How the first VP of the guest starts. Nothing is written.
pub(crate) fn registers(
    payload: &Payload,
    memory: &GuestMemory,
    vps: u32,
) -> Result<Registers, LoadError> {
    plan(payload, memory, vps, |plan| Ok(*plan.registers()))
}

/// Writes the guest into its memory.
pub(crate) fn import(payload: &Payload, memory: &GuestMemory, vps: u32) -> Result<(), LoadError> {
    plan(payload, memory, vps, |plan| {
        for line in plan.to_string().lines() {
            tracing::debug!("loads {line}");
        }
        Ok(plan.import(&mut Import(memory))?)
    })
}

fn plan<T>(
    payload: &Payload,
    memory: &GuestMemory,
    vps: u32,
    work: impl FnOnce(&Plan<'_, Registers>) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    // APIC ids of the guest are VP indices.
    let processors: Vec<_> = (0..vps)
        .map(|apic_id| Processor { apic_id, node: 0 })
        .collect();
    let ram: Vec<_> = memory.ram().map(|range| Ram { range, node: 0 }).collect();
    let chipset = machine(&processors);
    let plan = LinuxDirect {
        kernel: payload.kernel.bytes(),
        initrd: payload.initrd.as_ref().map(|initrd| initrd.bytes()),
        command_line: &payload.command_line,
        memory: MemoryLayout {
            ram: &ram,
            reserved: &[],
            limit: u64::MAX,
        },
        chipset: Some(&chipset),
    }
    .plan()?;
    work(&plan)
}

/// What the guest's tables say about `chipset`.
fn machine(processors: &[Processor]) -> Chipset<'_> {
    const IO_APICS: [IoApic; 1] = [IoApic {
        id: 0,
        address: ioapic::DEFAULT_BASE as u32,
        first_gsi: 0,
    }];
    const OVERRIDES: [InterruptOverride; 1] = [InterruptOverride {
        isa_irq: pin::SCI,
        gsi: pin::SCI as u32,
        signal: Signal::LEVEL_HIGH,
    }];
    const SERIAL_PORTS: [SerialPort; 2] = [
        SerialPort {
            port: uart::COM1_BASE,
            gsi: pin::COM1 as u32,
        },
        SerialPort {
            port: uart::COM2_BASE,
            gsi: pin::COM2 as u32,
        },
    ];
    Chipset {
        processors,
        local_apic: LOCAL_APIC,
        has_pic: false,
        io_apics: &IO_APICS,
        overrides: &OVERRIDES,
        nmi_input: Some(1),
        power: Power::Fixed(FixedPower {
            sci: pin::SCI,
            pm1_event: acpi_pm::DEFAULT_BASE + acpi_pm::EVENT_OFFSET,
            pm1_control: acpi_pm::DEFAULT_BASE + acpi_pm::CONTROL_OFFSET,
            timer: Some(PmTimer {
                port: acpi_pm::DEFAULT_BASE + acpi_pm::TIMER_OFFSET,
                is_32_bit: true,
            }),
            gpe0: None,
            sleep_type_s5: acpi_pm::SLEEP_TYPE_S5,
            reset: Some(Reset {
                port: pci_config::RESET_CONTROL_PORT,
                value: pci_config::RESET_VALUE,
            }),
        }),
        devices: Devices {
            serial_ports: &SERIAL_PORTS,
            rtc: Some(Rtc {
                gsi: pin::RTC.into(),
                century: Some(rtc::CENTURY_INDEX),
            }),
            has_keyboard_controller: false,
            power_button: PowerButton::Fixed,
            pci: None,
        },
        numa: None,
    }
}

/// Guest memory, as the loader writes it.
struct Import<'a>(&'a GuestMemory);

impl ImportPages for Import<'_> {
    type Error = guest_memory::Error;

    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), Self::Error> {
        self.0.write(gpa, data)
    }

    fn zero(&mut self, gpa: u64, length: u64) -> Result<(), Self::Error> {
        self.0.fill(gpa, length, 0)
    }
}
