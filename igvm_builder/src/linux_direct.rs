//! An image without a paravisor: a Linux that the host starts in VTL0, alone with the
//! devices of QEMU's q35.
//!
//! The same loader as the paravisor's decides where everything goes; here its plan becomes
//! pages of an IGVM file whose highest VTL is 0. Nobody is there to tell the guest what
//! machine it is on, so the file is made for one: its amount of memory and its processors
//! stand in tables inside.

use crate::image::BuildError;
use igvm::hv_defs::Vtl;
use igvm::registers::{SegmentRegister, TableRegister, X86Register};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_VHS_SUPPORTED_PLATFORM, IGVM_VSM_ISOLATION_PLATFORM_VERSION, IgvmPageDataFlags,
    IgvmPageDataType, IgvmPlatformType,
};
use igvm_loader::{MachineInfo, MemoryRange, q35};
use loader_defs::PAGE_SIZE;
use loader_defs::range::GpaRange;
use std::collections::BTreeMap;
use thiserror::Error;
use vm_loader::acpi::{
    Chipset, Devices, FixedPower, GpeBlock, InterruptOverride, IoApic, PciRoot, PciRoute, PmTimer,
    Power, PowerButton, Processor, Reset, Rtc, SerialPort, Signal,
};
use vm_loader::plan::Tail;
use vm_loader::x86_64::{self, LoadError, Registers};
use vm_loader::{MemoryLayout, Ram};
use x86_defs::long_mode::{DescriptorTable, Segment};

/// Bit of the only platform.
const COMPATIBILITY_MASK: u32 = 1;
/// What headers and tables of the file add to kernel and initrd, at most.
const FILE_ROOM: u64 = 4 << 20;
/// The interrupts of PCI devices on q35: four, for all devices up to this one (the others
/// are the chipset's own).
const PCI_FIRST_GSI: u32 = 20;
const PCI_LAST_DEVICE: u8 = 24;
const PCI_PINS: u8 = 4;

/// A guest and the machine that it is for.
#[derive(Debug, Clone, Copy)]
pub struct LinuxDirect<'a> {
    /// `vmlinux` or `bzImage`.
    pub kernel: &'a [u8],
    /// The initrd.
    pub initrd: Option<&'a [u8]>,
    /// Without a zero.
    pub command_line: &'a str,
    /// RAM of the machine in bytes, the host's included.
    pub memory: u64,
    /// Number of VPs.
    pub vps: u32,
    /// The local APIC's id of VP 0.
    pub first_apic_id: u32,
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum LinuxDirectError {
    /// No Linux could be loaded from these files into this machine.
    #[error("guest {0}")]
    Load(#[from] LoadError),
    /// The file cannot be written.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl LinuxDirect<'_> {
    /// Makes the IGVM file.
    pub fn build(&self) -> Result<Vec<u8>, LinuxDirectError> {
        let size = |file: &[u8]| file.len() as u64;
        let file_size = size(self.kernel) + self.initrd.map_or(0, size) + FILE_ROOM;
        let machine = q35::machine(self.first_apic_id, self.vps, self.memory, file_size);
        let ram: Vec<Ram> = q35::ram(self.memory)
            .into_iter()
            .filter_map(|range| {
                Some(Ram {
                    range: gpa_range(range)?,
                    node: 0,
                })
            })
            .collect();
        let reserved: Vec<GpaRange> = machine.own.iter().copied().filter_map(gpa_range).collect();
        let mut pages = Pages::default();
        let registers = self.load(&machine, &ram, &reserved, &mut pages)?;
        let mut directives = vec![IgvmDirectiveHeader::X64VbsVpContext {
            vtl: Vtl::Vtl0,
            registers: register_list(&registers),
            compatibility_mask: COMPATIBILITY_MASK,
        }];
        directives.extend(pages.into_directives());
        let file = IgvmFile::new(
            IgvmRevision::V1,
            vec![IgvmPlatformHeader::SupportedPlatform(
                IGVM_VHS_SUPPORTED_PLATFORM {
                    compatibility_mask: COMPATIBILITY_MASK,
                    highest_vtl: 0,
                    platform_type: IgvmPlatformType::VSM_ISOLATION,
                    platform_version: IGVM_VSM_ISOLATION_PLATFORM_VERSION,
                    shared_gpa_boundary: 0,
                },
            )],
            vec![],
            directives,
        )
        .map_err(BuildError::Format)?;
        let mut bytes = Vec::new();
        file.serialize(&mut bytes).map_err(BuildError::Format)?;
        Ok(bytes)
    }

    /// Puts everything into pages.
    fn load(
        &self,
        machine: &MachineInfo,
        ram: &[Ram],
        reserved: &[GpaRange],
        pages: &mut Pages,
    ) -> Result<Registers, LoadError> {
        let processors: Vec<Processor> = machine
            .vps
            .iter()
            .map(|cpu| Processor {
                apic_id: cpu.apic_id,
                node: 0,
            })
            .collect();
        let windows: Vec<GpaRange> = machine.mmio.iter().copied().filter_map(gpa_range).collect();
        let routes = pci_routes();
        let pci = PciRoot {
            last_bus: u8::MAX,
            windows: &windows,
            routes: &routes,
        };
        let chipset = chipset(&processors, pci);
        let direct = x86_64::LinuxDirect {
            kernel: self.kernel,
            initrd: self.initrd,
            command_line: self.command_line,
            memory: MemoryLayout {
                ram,
                reserved,
                // The host reads the file while it writes memory.
                limit: machine
                    .busy
                    .iter()
                    .map(|busy| busy.start())
                    .min()
                    .unwrap_or(u64::MAX),
            },
            chipset: Some(&chipset),
        };
        let plan = direct.plan()?;
        for piece in plan.pieces() {
            let size = piece.data.len() as u64;
            pages.put(piece.range.start(), &piece.data);
            if piece.tail == Tail::Zero {
                pages.clear(piece.range.start() + size, piece.range.len() - size);
            }
        }
        Ok(*plan.registers())
    }
}

/// q35 as QEMU makes it and its firmware leaves it.
fn chipset<'a>(processors: &'a [Processor], pci: PciRoot<'a>) -> Chipset<'a> {
    Chipset {
        processors,
        local_apic: 0xfee0_0000,
        has_pic: true,
        io_apics: &[IoApic {
            id: 0,
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
            pm1_event: 0x600,
            pm1_control: 0x604,
            timer: Some(PmTimer {
                port: 0x608,
                is_32_bit: false,
            }),
            gpe0: Some(GpeBlock {
                port: 0x620,
                length: 16,
            }),
            sleep_type_s5: 0,
            reset: Some(Reset {
                port: 0xcf9,
                value: 0xf,
            }),
        }),
        devices: Devices {
            serial_ports: &[SerialPort {
                port: 0x3f8,
                gsi: 4,
            }],
            rtc: Some(Rtc {
                gsi: 8,
                century: Some(0x32),
            }),
            has_keyboard_controller: false,
            power_button: PowerButton::Fixed,
            pci: Some(pci),
        },
        numa: None,
    }
}

/// The pins of all devices, turned by one from device to device.
fn pci_routes() -> Vec<PciRoute> {
    (0..=PCI_LAST_DEVICE)
        .flat_map(|device| (0..PCI_PINS).map(move |pin| (device, pin)))
        .map(|(device, pin)| PciRoute {
            device,
            pin,
            gsi: PCI_FIRST_GSI + u32::from((device + pin) % PCI_PINS),
        })
        .collect()
}

fn gpa_range(range: MemoryRange) -> Option<GpaRange> {
    GpaRange::from_bounds(range.start(), range.end()).filter(|range| !range.is_empty())
}

fn register_list(registers: &Registers) -> Vec<X86Register> {
    let segment = |segment: Segment| SegmentRegister {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        attributes: segment.attributes,
    };
    let table = |table: DescriptorTable| TableRegister {
        base: table.base,
        limit: table.limit,
    };
    let data = segment(registers.data);
    vec![
        X86Register::Gdtr(table(registers.gdtr)),
        X86Register::Idtr(table(registers.idtr)),
        X86Register::Ds(data),
        X86Register::Es(data),
        X86Register::Fs(data),
        X86Register::Gs(data),
        X86Register::Ss(data),
        X86Register::Cs(segment(registers.cs)),
        X86Register::Tr(segment(registers.tr)),
        X86Register::Cr0(registers.cr0),
        X86Register::Cr3(registers.cr3),
        X86Register::Cr4(registers.cr4),
        X86Register::Efer(registers.efer),
        X86Register::Pat(registers.pat),
        X86Register::Rflags(registers.rflags),
        X86Register::Rip(registers.rip),
        X86Register::Rsi(registers.rsi),
        X86Register::MtrrDefType(registers.mtrr_def_type),
    ]
}

/// Pages that have contents. Pieces need not begin or end with a page, so two of them can
/// meet in one.
#[derive(Default)]
struct Pages(BTreeMap<u64, Vec<u8>>);

impl Pages {
    fn put(&mut self, gpa: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = gpa;
        while !rest.is_empty() {
            let offset = (at % PAGE_SIZE) as usize;
            let (part, behind) = rest.split_at(rest.len().min(PAGE_SIZE as usize - offset));
            self.page(at)[offset..offset + part.len()].copy_from_slice(part);
            at += part.len() as u64;
            rest = behind;
        }
    }

    /// Makes sure that there are zeros.
    fn clear(&mut self, gpa: u64, length: u64) {
        let first = gpa / PAGE_SIZE * PAGE_SIZE;
        for at in (first..gpa.saturating_add(length)).step_by(PAGE_SIZE as usize) {
            self.page(at);
        }
    }

    fn page(&mut self, gpa: u64) -> &mut Vec<u8> {
        let page = self.0.entry(gpa / PAGE_SIZE * PAGE_SIZE);
        page.or_insert_with(|| vec![0; PAGE_SIZE as usize])
    }

    fn into_directives(self) -> impl Iterator<Item = IgvmDirectiveHeader> {
        self.0.into_iter().map(|(gpa, data)| {
            let empty = data.iter().all(|byte| *byte == 0);
            IgvmDirectiveHeader::PageData {
                gpa,
                compatibility_mask: COMPATIBILITY_MASK,
                flags: IgvmPageDataFlags::new(),
                data_type: IgvmPageDataType::NORMAL,
                // An empty data field stands for a zero page.
                data: if empty { Vec::new() } else { data },
            }
        })
    }
}
