//! ACPI tables, read back with the `acpi` crate, which shares nothing with the writer. The
//! DSDT is read by `aml.rs`.

#![allow(
    unsafe_code,
    reason = "the `acpi` crate reads tables through raw pointers that its user provides"
)]

use crate::aml::{self, Resource, Value};
use crate::machine::{CHIPSET, MIB, ram, range};
use acpi::address::GenericAddress;
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiResult, AcpiTables, PhysicalMapping};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;
use vm_loader::Ram;
use vm_loader::acpi::*;

const ADDRESS: u64 = 0xe_0000;
const RAM: [Ram; 1] = [ram(0, 256 * MIB)];

/// Physical memory that consists of the tables, aligned as at [`ADDRESS`].
#[derive(Debug, Clone)]
struct Tables {
    words: Rc<[u64]>,
    size: usize,
}

impl Tables {
    fn of(chipset: &Chipset<'_>, ram: &[Ram]) -> Self {
        let bytes = build(chipset, ram, ADDRESS).expect("the chipset makes sense");
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        Self {
            words: words.collect(),
            size: bytes.len(),
        }
    }

    fn bytes(&self, address: usize, size: usize) -> Vec<u8> {
        let all: Vec<u8> = self.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let offset = address - ADDRESS as usize;
        all[..self.size][offset..offset + size].to_vec()
    }

    fn parse(&self) -> AcpiTables<Self> {
        // SAFETY: there is an RSDP at this address of the memory that the handler maps.
        unsafe { AcpiTables::from_rsdp(self.clone(), ADDRESS as usize) }.expect("valid tables")
    }

    /// A table by its signature, without its header; its checksum is right.
    fn body(&self, signature: &str) -> Option<Vec<u8>> {
        let tables = self.parse();
        let header = tables
            .headers()
            .find(|h| h.signature.as_str() == signature)?;
        let length = header.length as usize;
        let address = self.address_of(signature)?;
        let bytes = self.bytes(address, length);
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {signature}");
        Some(bytes[36..].to_vec())
    }

    /// From the XSDT, which follows the RSDP.
    fn address_of(&self, signature: &str) -> Option<usize> {
        let word = |at| u64::from_le_bytes(self.bytes(at, 8).try_into().expect("8 bytes")) as usize;
        let xsdt = word(ADDRESS as usize + 24);
        let length = word(xsdt) >> 32;
        (xsdt + 36..xsdt + length)
            .step_by(8)
            .map(word)
            .find(|address| self.bytes(*address, 4) == signature.as_bytes())
    }
}

impl AcpiHandler for Tables {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let offset = address - ADDRESS as usize;
        assert!(
            offset + size <= self.size,
            "{address:#x} is behind the tables"
        );
        let start = NonNull::from(&*self.words).cast::<u8>();
        // SAFETY: the memory belongs to the handler, of which the mapping keeps a clone, and
        // the mapped part lies in it.
        unsafe { PhysicalMapping::new(address, start.add(offset).cast(), size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// The names in the DSDT.
fn namespace(chipset: &Chipset<'_>) -> BTreeMap<String, Value> {
    let tables = Tables::of(chipset, &RAM);
    let dsdt = tables.parse().dsdt().expect("the FADT leads to it");
    aml::names(&tables.bytes(dsdt.address, dsdt.length as usize))
}

/// `EISAID("PNP....")`.
fn pnp(number: u16) -> u64 {
    0xd041 | u64::from(number.swap_bytes()) << 16
}

#[test]
fn rsdp_leads_to_all_tables_with_valid_checksums() {
    // The parser checks the sums.
    let tables = Tables::of(&CHIPSET, &RAM).parse();

    let names: Vec<_> = tables
        .headers()
        .map(|h| h.signature.as_str().to_owned())
        .collect();

    assert_eq!(names, ["FACP", "APIC"]);
    for header in tables.headers() {
        assert_eq!(header.oem_id(), "OHCLQM");
    }
}

#[test]
fn fadt_has_the_fixed_registers_of_the_chipset() {
    let memory = Tables::of(&CHIPSET, &RAM);
    let tables = memory.parse();
    let fadt = tables.find_table::<Fadt>().expect("there is one");

    fadt.validate().expect("its checksum is right");

    let required = |r: AcpiResult<GenericAddress>| r.expect("it is readable").address;
    let optional =
        |r: AcpiResult<Option<GenericAddress>>| r.expect("it is readable").map(|r| r.address);
    assert_eq!({ fadt.sci_interrupt }, 9);
    assert_eq!({ fadt.smi_cmd_port }, 0);
    assert_eq!(required(fadt.pm1a_event_block()), 0x400);
    assert_eq!(required(fadt.pm1a_control_block()), 0x404);
    assert_eq!(optional(fadt.pm_timer_block()), Some(0x408));
    assert_eq!(optional(fadt.gpe0_block()), None);
    assert_eq!(required(fadt.reset_register()), 0x64);
    assert_eq!(fadt.reset_value, 0xfe);
    assert_eq!(fadt.century, 0x32);
    let flags = fadt.flags;
    assert!(flags.supports_system_reset_via_fadt() && flags.pm_timer_is_32_bit());
    assert!(!flags.system_is_hw_reduced_acpi() && !flags.power_button_is_control_method());
    assert!(flags.sleep_button_is_control_method());
    let boot = fadt.iapc_boot_arch;
    assert!(boot.legacy_devices_are_accessible() && !boot.motherboard_implements_8042());
    assert!(boot.dont_probe_vga() && !boot.use_time_and_alarm_namespace_for_rtc());
    let facs = fadt.facs_address().expect("there is one");
    assert!(facs.is_multiple_of(64));
    assert_eq!(memory.bytes(facs, 4), b"FACS");
}

#[test]
fn hardware_reduced_fadt_has_sleep_registers_only() {
    let chipset = Chipset {
        power: Power::HardwareReduced(ReducedPower {
            sleep_control: 0x600,
            sleep_status: 0x601,
            sleep_type_s5: 5,
            reset: None,
        }),
        devices: Devices {
            power_button: PowerButton::Device,
            ..Devices::default()
        },
        ..CHIPSET
    };
    let tables = Tables::of(&chipset, &RAM).parse();
    let fadt = tables.find_table::<Fadt>().expect("there is one");

    let optional =
        |r: AcpiResult<Option<GenericAddress>>| r.expect("it is readable").map(|r| r.address);
    assert!({ fadt.flags }.system_is_hw_reduced_acpi());
    assert!({ fadt.flags }.power_button_is_control_method());
    assert!(!{ fadt.flags }.supports_system_reset_via_fadt());
    assert!({ fadt.iapc_boot_arch }.use_time_and_alarm_namespace_for_rtc());
    assert_eq!(optional(fadt.sleep_control_register()), Some(0x600));
    assert_eq!(optional(fadt.sleep_status_register()), Some(0x601));
    assert_eq!(optional(fadt.pm_timer_block()), None);
    let names = namespace(&chipset);
    assert_eq!(names["\\_SB_\\PWRB\\_HID"].integer(), pnp(0x0c0c));
    assert!(!names.contains_key("\\_SB_\\COM1\\_HID"));
}

#[test]
fn madt_lists_processors_and_interrupt_controllers() {
    let tables = Tables::of(&CHIPSET, &RAM).parse();
    let madt = tables.find_table::<Madt>().expect("there is one");

    let text: Vec<String> = madt
        .get()
        .entries()
        .map(|entry| match entry {
            MadtEntry::LocalApic(e) => {
                format!("apic {} {} {}", e.processor_id, e.apic_id, { e.flags })
            }
            MadtEntry::IoApic(e) => {
                format!("ioapic {} {:#x} {}", e.io_apic_id, { e.io_apic_address }, {
                    e.global_system_interrupt_base
                })
            }
            MadtEntry::InterruptSourceOverride(e) => {
                format!("irq {} {} {:#x}", e.irq, { e.global_system_interrupt }, {
                    e.flags
                })
            }
            MadtEntry::LocalApicNmi(e) => format!("nmi {} {}", e.processor_id, e.nmi_line),
            _ => "unexpected".to_owned(),
        })
        .collect();

    assert_eq!({ madt.get().local_apic_address }, 0xfee0_0000);
    assert!(!madt.get().supports_8259());
    assert_eq!(
        text,
        [
            "apic 0 0 1",
            "apic 1 1 1",
            "ioapic 2 0xfec00000 0",
            "irq 0 2 0x5",
            "irq 9 9 0xd",
            "nmi 255 1",
        ]
    );
}

#[test]
fn processors_with_large_ids_are_x2apics() {
    let processors: Vec<_> = (0..1024)
        .map(|apic_id| Processor { apic_id, node: 0 })
        .collect();
    let chipset = Chipset {
        processors: &processors,
        ..CHIPSET
    };
    let tables = Tables::of(&chipset, &RAM).parse();
    let madt = tables.find_table::<Madt>().expect("there is one");

    let (mut small, mut large, mut large_nmi) = (vec![], vec![], 0);
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(e) => small.push(u32::from(e.apic_id)),
            MadtEntry::LocalX2Apic(e) => {
                assert_eq!({ e.x2apic_id }, { e.processor_uid });
                large.push(e.x2apic_id);
            }
            MadtEntry::X2ApicNmi(_) => large_nmi += 1,
            _ => {}
        }
    }

    assert_eq!(small, (0..255).collect::<Vec<_>>());
    assert_eq!(large, (255..1024).collect::<Vec<_>>());
    assert_eq!(large_nmi, 1);
}

#[test]
fn dsdt_names_the_devices_and_the_sleep_state() {
    let names = namespace(&CHIPSET);
    let id = |device: &str| {
        let value = names.get(&format!("\\_SB_\\{device}\\_HID"))?;
        Some(value.integer())
    };

    assert_eq!(id("COM1"), Some(pnp(0x0501)));
    assert_eq!(id("COM2"), Some(pnp(0x0501)));
    assert_eq!(id("RTC0"), Some(pnp(0x0b00)));
    for absent in ["COM3", "PWRB", "PCI0", "KBD_"] {
        assert_eq!(id(absent), None);
    }
    let s5: Vec<_> = names["\\_S5_"]
        .package()
        .iter()
        .map(Value::integer)
        .collect();
    assert_eq!(s5, [5, 5, 0, 0]);
    assert_eq!(names["\\_SB_\\COM2\\_UID"].integer(), 2);
    // A consumer of an edge-triggered, active high interrupt that is not shared.
    assert_eq!(
        aml::resources(&names["\\_SB_\\COM2\\_CRS"]),
        [Resource::Ports(0x2f8, 0x2f8, 8), Resource::Interrupt(3, 3)]
    );
    assert_eq!(
        aml::resources(&names["\\_SB_\\RTC0\\_CRS"]),
        [Resource::Ports(0x70, 0x70, 2), Resource::Interrupt(3, 8)]
    );
}

#[test]
fn pci_root_has_windows_and_interrupt_routes() {
    let windows = [range(0xc000_0000, 0xfec0_0000), range(1 << 38, 1 << 39)];
    let chipset = Chipset {
        devices: Devices {
            pci: Some(PciRoot {
                last_bus: 255,
                windows: &windows,
                routes: &[PciRoute {
                    device: 3,
                    pin: 1,
                    gsi: 17,
                }],
            }),
            has_keyboard_controller: true,
            ..CHIPSET.devices
        },
        ..CHIPSET
    };

    let names = namespace(&chipset);

    assert_eq!(
        aml::resources(&names["\\_SB_\\PCI0\\_CRS"]),
        [
            Resource::Space(2, 0, 255, 256),
            Resource::Ports(0xcf8, 0xcf8, 8),
            Resource::Space(1, 0, 0xcf7, 0xcf8),
            Resource::Space(1, 0xd00, 0xffff, 0xf300),
            Resource::Space(0, 0xc000_0000, 0xfebf_ffff, 0x3ec0_0000),
            Resource::Space(0, 1 << 38, (1 << 39) - 1, 1 << 38),
        ]
    );
    let [route] = names["\\_SB_\\PCI0\\_PRT"].package() else {
        panic!("it is one route");
    };
    let route: Vec<_> = route.package().iter().map(Value::integer).collect();
    assert_eq!(route, [0x3_ffff, 1, 0, 17]);
    assert_eq!(names["\\_SB_\\KBD_\\_HID"].integer(), pnp(0x0303));
    assert_eq!(names["\\_SB_\\MOU_\\_HID"].integer(), pnp(0x0f13));
}

#[test]
fn numa_nodes_have_affinities_and_distances() {
    let processors = [
        Processor {
            apic_id: 0,
            node: 0,
        },
        Processor {
            apic_id: 0x300,
            node: 1,
        },
    ];
    let ram = [
        ram(0, MIB),
        Ram {
            node: 1,
            ..ram(MIB, 3 * MIB)
        },
    ];
    let chipset = Chipset {
        processors: &processors,
        numa: Some(Numa {
            nodes: 2,
            distances: Some(&[10, 21, 22, 10]),
        }),
        ..CHIPSET
    };

    let tables = Tables::of(&chipset, &ram);

    // ACPI 6.5, 5.2.16: 12 reserved bytes, then the structures.
    let srat = tables.body("SRAT").expect("there is one");
    assert_eq!(srat.len(), 12 + 2 * 24 + 2 * 40);
    let u32_at = |at: usize| u32::from_le_bytes(srat[at..at + 4].try_into().expect("4 bytes"));
    let second_processor = 12 + 24;
    assert_eq!(srat[second_processor..second_processor + 2], [2, 24]);
    assert_eq!(u32_at(second_processor + 4), 1);
    assert_eq!(u32_at(second_processor + 8), 0x300);
    assert_eq!(u32_at(second_processor + 12), 1, "enabled");
    let second_memory = 12 + 48 + 40;
    assert_eq!(srat[second_memory..second_memory + 2], [1, 40]);
    assert_eq!(u32_at(second_memory + 2), 1);
    assert_eq!(u32_at(second_memory + 8), 0x10_0000);
    assert_eq!(u32_at(second_memory + 16), 0x20_0000);
    assert_eq!(u32_at(second_memory + 28), 1, "enabled");
    let slit = tables.body("SLIT").expect("there is one");
    assert_eq!(slit, [2, 0, 0, 0, 0, 0, 0, 0, 10, 21, 22, 10]);
    assert!(Tables::of(&CHIPSET, &RAM).body("SRAT").is_none());
}

#[test]
fn descriptions_that_make_no_sense_are_refused() {
    let check = |chipset: Chipset<'_>| build(&chipset, &RAM, ADDRESS).map(|_| ());
    let port = SerialPort {
        port: 0xfff9,
        gsi: 1,
    };
    let twice = [CHIPSET.processors[1]; 2];
    let numa = |nodes, distances| Chipset {
        numa: Some(Numa { nodes, distances }),
        ..CHIPSET
    };

    assert!(matches!(
        check(Chipset {
            processors: &[],
            ..CHIPSET
        }),
        Err(AcpiError::Count {
            what: "processors",
            found: 0,
            ..
        })
    ));
    assert_eq!(
        check(Chipset {
            processors: &twice,
            ..CHIPSET
        }),
        Err(AcpiError::DuplicateApicId { id: 1 })
    );
    assert!(matches!(
        check(Chipset {
            devices: Devices {
                serial_ports: &[port],
                ..CHIPSET.devices
            },
            ..CHIPSET
        }),
        Err(AcpiError::Ports { port: 0xfff9, .. })
    ));
    assert!(matches!(check(numa(0, None)), Err(AcpiError::Count { .. })));
    assert!(matches!(
        check(numa(2, Some(&[10, 20, 20]))),
        Err(AcpiError::Distances { found: 3, nodes: 2 })
    ));
    assert_eq!(
        check(numa(2, Some(&[10, 20, 10, 10]))),
        Err(AcpiError::Distance {
            from: 1,
            to: 0,
            found: 10
        })
    );
    let button = Chipset {
        power: Power::HardwareReduced(ReducedPower {
            sleep_control: 0x600,
            sleep_status: 0x601,
            sleep_type_s5: 5,
            reset: None,
        }),
        ..CHIPSET
    };
    assert_eq!(check(button), Err(AcpiError::ButtonWithoutRegister));
    let node_1 = Processor {
        apic_id: 0,
        node: 1,
    };
    assert!(matches!(
        check(Chipset {
            processors: &[node_1],
            ..numa(1, None)
        }),
        Err(AcpiError::Node { node: 1, .. })
    ));
}

/// A chipset with a PCI root that has these routes.
fn with_routes(routes: &[PciRoute]) -> Chipset<'_> {
    let pci = PciRoot {
        last_bus: 0,
        windows: &[],
        routes,
    };
    Chipset {
        devices: Devices {
            pci: Some(pci),
            ..CHIPSET.devices
        },
        ..CHIPSET
    }
}

#[test]
fn numbers_that_the_tables_cannot_hold_are_refused() {
    let what = |chipset: Chipset<'_>, address| match build(&chipset, &RAM, address) {
        Err(AcpiError::Value { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let Power::Fixed(power) = CHIPSET.power else {
        panic!("the registers are fixed");
    };
    let with_power = |power| Chipset {
        power: Power::Fixed(power),
        ..CHIPSET
    };
    let sleep_type = FixedPower {
        sleep_type_s5: 8,
        ..power
    };
    let odd = FixedPower {
        gpe0: Some(GpeBlock {
            port: 0x620,
            length: 3,
        }),
        ..power
    };
    let irq_16 = [InterruptOverride {
        isa_irq: 16,
        ..CHIPSET.overrides[0]
    }];
    let route = |device, pin| PciRoute {
        device,
        pin,
        gsi: 16,
    };
    assert_eq!(what(CHIPSET, 0xe_0001), "address of the tables");
    assert_eq!(what(CHIPSET, u64::MAX - 63), "address of the tables");
    assert_eq!(what(with_power(sleep_type), ADDRESS), "SLP_TYP of S5");
    assert_eq!(what(with_power(odd), ADDRESS), "length of the GPE0 block");
    let overrides = Chipset {
        overrides: &irq_16,
        ..CHIPSET
    };
    assert_eq!(what(overrides, ADDRESS), "overridden ISA interrupt");
    let nmi = Chipset {
        nmi_input: Some(2),
        ..CHIPSET
    };
    assert_eq!(what(nmi, ADDRESS), "local interrupt input");
    assert_eq!(
        what(with_routes(&[route(32, 0)]), ADDRESS),
        "PCI device number"
    );
    assert_eq!(
        what(with_routes(&[route(0, 4)]), ADDRESS),
        "PCI interrupt pin"
    );
}
