//! DSDT: devices that a guest does not find by itself.

use super::{
    AcpiError, Chipset, Devices, PciRoot, PciRoute, PowerButton, Rtc, SerialPort, check_value,
    table,
};
use crate::memory::ADDRESS_LIMIT;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// Revision of the table: integers have 64 bits.
const REVISION: u8 = 2;
/// The configuration ports of PCI.
const PCI_CONFIG_PORT: u16 = 0xcf8;
/// How many there are.
const PCI_CONFIG_PORTS: u8 = 8;
/// Low word of an `_ADR` of `_PRT`: all functions.
const ALL_FUNCTIONS: u32 = 0xffff;

/// The table.
pub(super) fn build(chipset: &Chipset<'_>) -> Result<Sdt, AcpiError> {
    let mut body = Vec::new();
    let devices = devices(&chipset.devices)?;
    if !devices.is_empty() {
        let children = devices.iter().map(|device| &**device).collect();
        Scope::new(Path::new("\\_SB_"), children).to_aml_bytes(&mut body);
    }
    let sleep_type = chipset.power.sleep_type_s5();
    let s5 = Package::new(vec![&sleep_type, &sleep_type, &ZERO, &ZERO]);
    Name::new(Path::new("\\_S5_"), &s5).to_aml_bytes(&mut body);
    Ok(table(*b"DSDT", REVISION, &body))
}

/// Already encoded AML.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn encoded(aml: &dyn Aml) -> Box<dyn Aml> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    Box::new(Encoded(bytes))
}

fn devices(devices: &Devices<'_>) -> Result<Vec<Box<dyn Aml>>, AcpiError> {
    let mut list = Vec::new();
    for (number, port) in (1..).zip(devices.serial_ports) {
        list.push(serial_port(number, *port));
    }
    if let Some(rtc) = devices.rtc {
        list.push(real_time_clock(rtc));
    }
    if devices.has_keyboard_controller {
        list.push(keyboard_controller());
    }
    if devices.power_button == PowerButton::Device {
        let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"));
        list.push(encoded(&Device::new(Path::new("PWRB"), vec![&id])));
    }
    if let Some(pci) = devices.pci {
        list.push(pci_root(pci)?);
    }
    Ok(list)
}

/// An edge-triggered, active high interrupt that nobody else uses.
fn isa_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn io(port: u16, length: u8) -> IO {
    IO::new(port, port, 1, length)
}

fn serial_port(number: u8, port: SerialPort) -> Box<dyn Aml> {
    let ports = io(port.port, 8);
    let interrupt = isa_interrupt(port.gsi);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    encoded(&Device::new(
        // At most four of them, so it is one digit.
        Path::new(&format!("COM{}", number % 10)),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &number),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}

fn real_time_clock(rtc: Rtc) -> Box<dyn Aml> {
    let ports = io(0x70, 2);
    let interrupt = isa_interrupt(rtc.gsi);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    encoded(&Device::new(
        Path::new("RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}

/// The keyboard with both ports of the controller, and the mouse behind it.
fn keyboard_controller() -> Box<dyn Aml> {
    let (data, command) = (io(0x60, 1), io(0x64, 1));
    let (keyboard, mouse) = (isa_interrupt(1), isa_interrupt(12));
    let keyboard_resources = ResourceTemplate::new(vec![&data, &command, &keyboard]);
    let mouse_resources = ResourceTemplate::new(vec![&mouse]);
    let mut bytes = Vec::new();
    for (name, id, resources) in [
        ("KBD_", "PNP0303", &keyboard_resources),
        ("MOU_", "PNP0F13", &mouse_resources),
    ] {
        Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new(id)),
                &Name::new(Path::new("_CRS"), resources),
            ],
        )
        .to_aml_bytes(&mut bytes);
    }
    Box::new(Encoded(bytes))
}

fn pci_root(pci: PciRoot<'_>) -> Result<Box<dyn Aml>, AcpiError> {
    let buses = AddressSpace::new_bus_number(0u16, u16::from(pci.last_bus));
    let config = io(PCI_CONFIG_PORT, PCI_CONFIG_PORTS);
    let after_config = PCI_CONFIG_PORT + u16::from(PCI_CONFIG_PORTS);
    let low_ports = AddressSpace::new_io(0u16, PCI_CONFIG_PORT - 1, None);
    let high_ports = AddressSpace::new_io(after_config, u16::MAX, None);
    let mut windows = Vec::new();
    for window in pci.windows {
        let (start, end) = (window.start(), window.end());
        if window.is_empty() || end > ADDRESS_LIMIT {
            return Err(AcpiError::PciWindow { start, end });
        }
        let cacheable = AddressSpaceCacheable::NotCacheable;
        windows.push(AddressSpace::new_memory(
            cacheable,
            true,
            start,
            end - 1,
            None,
        ));
    }
    let mut resources: Vec<&dyn Aml> = vec![&buses, &config, &low_ports, &high_ports];
    resources.extend(windows.iter().map(|window| window as &dyn Aml));

    let routes = pci
        .routes
        .iter()
        .map(route)
        .collect::<Result<Vec<_>, _>>()?;
    let routes = Package::new(routes.iter().map(|route| &**route).collect());
    let resources = ResourceTemplate::new(resources);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0A03"));
    let segment = Name::new(Path::new("_SEG"), &ZERO);
    let bus = Name::new(Path::new("_BBN"), &ZERO);
    let uid = Name::new(Path::new("_UID"), &ZERO);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let table = Name::new(Path::new("_PRT"), &routes);
    let mut children: Vec<&dyn Aml> = vec![&id, &uid, &segment, &bus, &resources];
    if !pci.routes.is_empty() {
        children.push(&table);
    }
    Ok(encoded(&Device::new(Path::new("PCI0"), children)))
}

fn route(route: &PciRoute) -> Result<Box<dyn Aml>, AcpiError> {
    let (device, pin) = (route.device, route.pin);
    check_value("PCI device number", device.into(), device < 32, "0 to 31")?;
    check_value("PCI interrupt pin", pin.into(), pin < 4, "0 to 3")?;
    let address = u32::from(route.device) << 16 | ALL_FUNCTIONS;
    Ok(encoded(&Package::new(vec![
        &address, &route.pin, &ZERO, &route.gsi,
    ])))
}
