//! A VM of which only the memory exists.

use std::collections::BTreeMap;
use vm_loader::acpi::*;
use vm_loader::{GpaRange, ImportPages, MemoryLayout, Plan, Ram};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) const fn range(start: u64, end: u64) -> GpaRange {
    match GpaRange::from_bounds(start, end) {
        Some(range) => range,
        None => panic!("the bounds are swapped"),
    }
}

pub(crate) const fn ram(start: u64, end: u64) -> Ram {
    Ram {
        range: range(start, end),
        node: 0,
    }
}

/// 256 MiB of RAM.
pub(crate) const SMALL: MemoryLayout<'static> = MemoryLayout {
    ram: &[ram(0, 256 * MIB)],
    reserved: &[],
    limit: u64::MAX,
};

/// Two processors with the devices of a simple VM.
pub(crate) const CHIPSET: Chipset<'static> = Chipset {
    processors: &[
        Processor {
            apic_id: 0,
            node: 0,
        },
        Processor {
            apic_id: 1,
            node: 0,
        },
    ],
    local_apic: 0xfee0_0000,
    has_pic: false,
    io_apics: &[IoApic {
        id: 2,
        address: 0xfec0_0000,
        first_gsi: 0,
    }],
    overrides: &[
        InterruptOverride {
            isa_irq: 0,
            gsi: 2,
            signal: Signal::ISA,
        },
        InterruptOverride {
            isa_irq: 9,
            gsi: 9,
            signal: Signal::LEVEL_HIGH,
        },
    ],
    nmi_input: Some(1),
    power: Power::Fixed(FixedPower {
        sci: 9,
        pm1_event: 0x400,
        pm1_control: 0x404,
        timer: Some(PmTimer {
            port: 0x408,
            is_32_bit: true,
        }),
        gpe0: None,
        sleep_type_s5: 5,
        reset: Some(Reset {
            port: 0x64,
            value: 0xfe,
        }),
    }),
    devices: Devices {
        serial_ports: &[
            SerialPort {
                port: 0x3f8,
                gsi: 4,
            },
            SerialPort {
                port: 0x2f8,
                gsi: 3,
            },
        ],
        rtc: Some(Rtc {
            gsi: 8,
            century: Some(0x32),
        }),
        has_keyboard_controller: false,
        power_button: PowerButton::Fixed,
        pci: None,
    },
    numa: None,
};

/// Memory that has been written, page by page, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pages: BTreeMap<u64, Box<[u8; 4096]>>,
}

impl Memory {
    /// What a plan makes of memory full of 0xaa.
    pub(crate) fn with<R>(plan: &Plan<'_, R>) -> Self {
        let mut memory = Self::default();
        let Ok(()) = plan.import(&mut memory);
        memory
    }

    pub(crate) fn read(&self, gpa: u64, size: usize) -> Vec<u8> {
        (gpa..gpa + size as u64)
            .map(|at| {
                self.pages
                    .get(&(at / 4096))
                    .map_or(0xaa, |page| page[(at % 4096) as usize])
            })
            .collect()
    }

    pub(crate) fn read_u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa, 8).try_into().expect("eight bytes"))
    }
}

impl ImportPages for Memory {
    type Error = std::convert::Infallible;

    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), Self::Error> {
        for (at, byte) in (gpa..).zip(data) {
            let page = self.pages.entry(at / 4096);
            page.or_insert_with(|| Box::new([0xaa; 4096]))[(at % 4096) as usize] = *byte;
        }
        Ok(())
    }

    fn zero(&mut self, gpa: u64, length: u64) -> Result<(), Self::Error> {
        self.write(gpa, &vec![0; length as usize])
    }
}
