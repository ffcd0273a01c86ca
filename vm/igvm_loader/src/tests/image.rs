//! Small images for tests: valid ones made by the `igvm` crate, and the same taken apart
//! into headers, so that a test can spoil one thing and put a right checksum on it.

use crate::{
    AcpiTables, Cpu, HostMemoryWriter, IoApic, MachineInfo, MemoryRange, RamRange, q35, subtract,
};
use igvm::IgvmDirectiveHeader;
use igvm::IgvmFile;
use igvm::IgvmInitializationHeader;
use igvm::IgvmPlatformHeader;
use igvm::IgvmRevision;
use igvm::hv_defs::Vtl;
use igvm::registers::SegmentRegister;
use igvm::registers::TableRegister;
use igvm::registers::X86Register;
use igvm_defs::*;
use page_table::LeafSize;
use page_table::PageTable;
use page_table::Region;
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// Where the image is built for.
pub(crate) const BASE: u64 = 128 * MIB;
/// RAM of VTL2 that it requires.
pub(crate) const SIZE: u64 = 4 * MIB;
/// Pages of code, each filled with its number.
pub(crate) const CODE_PAGES: u64 = 5;
pub(crate) const GDT: u64 = BASE + 0x8000;
/// One page for every parameter kind, in the order of `PARAMETERS`, then the device tree.
pub(crate) const PARAMETER_AREAS: u64 = BASE + 0x1_0000;
pub(crate) const DEVICE_TREE: u64 = BASE + 0x2_0000;
pub(crate) const DEVICE_TREE_SIZE: u64 = 0x4000;
pub(crate) const PAGE_TABLES: u64 = BASE + MIB;
pub(crate) const PAGE_TABLE_PAGES: u64 = 8;
pub(crate) const ENTRY: u64 = BASE + 0x1234;
pub(crate) const SHIM_PARAMETERS: u64 = 0x7000;
/// A page outside of the relocatable region.
pub(crate) const LOW_PAGE: u64 = 0x3000;
pub(crate) const VSM: u32 = 1;

/// The headers of an image.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) revision: IgvmRevision,
    pub(crate) platforms: Vec<IgvmPlatformHeader>,
    pub(crate) initializations: Vec<IgvmInitializationHeader>,
    pub(crate) directives: Vec<IgvmDirectiveHeader>,
}

impl TestImage {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let file = IgvmFile::new(
            self.revision,
            self.platforms.clone(),
            self.initializations.clone(),
            self.directives.clone(),
        )
        .unwrap();
        let mut bytes = Vec::new();
        file.serialize(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn raw(&self) -> RawImage {
        RawImage::parse(&self.bytes())
    }
}

pub(crate) fn platform(platform_type: IgvmPlatformType, mask: u32) -> IgvmPlatformHeader {
    IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: mask,
        highest_vtl: 2,
        platform_type,
        platform_version: 1,
        shared_gpa_boundary: 0,
    })
}

pub(crate) fn page(gpa: u64, data: Vec<u8>) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask: VSM,
        flags: IgvmPageDataFlags::new(),
        data_type: IgvmPageDataType::NORMAL,
        data,
    }
}

pub(crate) fn relocatable(gpa: u64, size: u64) -> IgvmInitializationHeader {
    IgvmInitializationHeader::RelocatableRegion {
        compatibility_mask: VSM,
        relocation_alignment: 2 * MIB,
        relocation_region_gpa: gpa,
        relocation_region_size: size,
        minimum_relocation_gpa: 128 * MIB,
        maximum_relocation_gpa: 1 << 48,
        is_vtl2: true,
        apply_rip_offset: true,
        apply_gdtr_offset: true,
        vp_index: 0,
        vtl: Vtl::Vtl2,
    }
}

pub(crate) fn required(gpa: u64, size: u64) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::RequiredMemory {
        gpa,
        compatibility_mask: VSM,
        number_of_bytes: size as u32,
        vtl2_protectable: true,
    }
}

fn segment(selector: u16, attributes: u16) -> SegmentRegister {
    SegmentRegister {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        attributes,
    }
}

pub(crate) fn registers() -> Vec<X86Register> {
    let data = segment(0x18, 0xc093);
    vec![
        X86Register::Cs(segment(0x10, 0xa09b)),
        X86Register::Ds(data),
        X86Register::Es(data),
        X86Register::Fs(data),
        X86Register::Gs(data),
        X86Register::Ss(data),
        X86Register::Gdtr(TableRegister {
            base: GDT,
            limit: 31,
        }),
        X86Register::Cr0(0x8000_0021),
        X86Register::Cr3(PAGE_TABLES),
        X86Register::Cr4(0x60),
        X86Register::Efer(0xd00),
        X86Register::Rip(ENTRY),
        X86Register::Rsi(SHIM_PARAMETERS),
        X86Register::MtrrDefType(0xc00),
    ]
}

/// The parameter kinds that get one page each.
pub(crate) const PARAMETERS: [fn(IGVM_VHS_PARAMETER) -> IgvmDirectiveHeader; 9] = [
    IgvmDirectiveHeader::VpCount,
    IgvmDirectiveHeader::EnvironmentInfo,
    IgvmDirectiveHeader::Srat,
    IgvmDirectiveHeader::Madt,
    IgvmDirectiveHeader::Slit,
    IgvmDirectiveHeader::Pptt,
    IgvmDirectiveHeader::MmioRanges,
    IgvmDirectiveHeader::MemoryMap,
    IgvmDirectiveHeader::CommandLine,
];

/// Identity map of the required memory by 2 MiB leaves, as the contract has it.
pub(crate) fn identity_map(start: u64, end: u64) -> Vec<Vec<u8>> {
    let regions = [Region::new(start, end, page_table::Attributes::SUPERVISOR)];
    let mut tables = vec![PageTable::EMPTY; PAGE_TABLE_PAGES as usize];
    let config = page_table::Config::supervisor(LeafSize::Size2M);
    let map = page_table::build_identity_map(&mut tables, PAGE_TABLES, &regions, config).unwrap();
    tables.truncate(map.tables_used);
    tables
        .iter()
        .map(|table| table.as_bytes().to_vec())
        .collect()
}

/// An image with everything that the contract has: relocatable, all parameter kinds, page
/// tables, a page that does not move.
pub(crate) fn image() -> TestImage {
    let tables = identity_map(BASE, BASE + SIZE);
    let mut directives = vec![required(BASE, SIZE), page(LOW_PAGE, b"low".to_vec())];
    for number in 0..CODE_PAGES {
        directives.push(page(BASE + number * 4096, vec![number as u8 + 1; 4096]));
    }
    directives.push(page(GDT, vec![0xdd; 32]));
    // Zero pages.
    directives.push(page(GDT + 0x1000, vec![]));
    directives.push(page(GDT + 0x2000, vec![]));
    for (index, table) in tables.iter().enumerate() {
        directives.push(page(PAGE_TABLES + index as u64 * 4096, table.clone()));
    }
    let area = |index: u32, size: u64, initial_data: Vec<u8>| IgvmDirectiveHeader::ParameterArea {
        number_of_bytes: size,
        parameter_area_index: index,
        initial_data,
    };
    let insert = |index: u32, gpa: u64| {
        IgvmDirectiveHeader::ParameterInsert(IGVM_VHS_PARAMETER_INSERT {
            gpa,
            compatibility_mask: VSM,
            parameter_area_index: index,
        })
    };
    for (index, parameter) in PARAMETERS.iter().enumerate() {
        let parameter_area_index = index as u32;
        directives.push(area(parameter_area_index, 4096, vec![0xee; 4096]));
        directives.push(parameter(IGVM_VHS_PARAMETER {
            parameter_area_index,
            byte_offset: 16,
        }));
        directives.push(insert(
            parameter_area_index,
            PARAMETER_AREAS + index as u64 * 4096,
        ));
    }
    directives.push(area(100, DEVICE_TREE_SIZE, vec![]));
    directives.push(IgvmDirectiveHeader::DeviceTree(IGVM_VHS_PARAMETER {
        parameter_area_index: 100,
        byte_offset: 0,
    }));
    directives.push(insert(100, DEVICE_TREE));
    directives.push(IgvmDirectiveHeader::ErrorRange {
        gpa: BASE + 0x3_0000,
        compatibility_mask: VSM,
        size_bytes: 4096,
    });
    directives.push(IgvmDirectiveHeader::X64VbsVpContext {
        vtl: Vtl::Vtl2,
        registers: registers(),
        compatibility_mask: VSM,
    });
    TestImage {
        revision: IgvmRevision::V1,
        platforms: vec![platform(IgvmPlatformType::VSM_ISOLATION, VSM)],
        initializations: vec![
            relocatable(BASE, MIB),
            IgvmInitializationHeader::PageTableRelocationRegion {
                compatibility_mask: VSM,
                gpa: PAGE_TABLES,
                size: PAGE_TABLE_PAGES * 4096,
                used_size: tables.len() as u64 * 4096,
                vp_index: 0,
                vtl: Vtl::Vtl2,
            },
        ],
        directives,
    }
}

impl TestImage {
    /// Header types of all directives, in order.
    pub(crate) fn index_of(&self, is: impl Fn(&IgvmDirectiveHeader) -> bool) -> usize {
        self.directives.iter().position(is).unwrap()
    }
}

/// A file taken apart.
#[derive(Clone)]
pub(crate) struct RawImage {
    pub(crate) fixed: Vec<u8>,
    pub(crate) headers: Vec<(u32, Vec<u8>)>,
    pub(crate) data: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl RawImage {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let (start, size) = (u32_at(bytes, 8) as usize, u32_at(bytes, 12) as usize);
        let mut rest = &bytes[start..start + size];
        let mut headers = Vec::new();
        while !rest.is_empty() {
            let length = u32_at(rest, 4) as usize;
            headers.push((u32_at(rest, 0), rest[8..8 + length].to_vec()));
            rest = &rest[8 + length.next_multiple_of(8)..];
        }
        Self {
            fixed: bytes[..start].to_vec(),
            headers,
            data: bytes[start + size..].to_vec(),
        }
    }

    /// Puts the file together with right sizes and checksum. The number of headers must
    /// not change: file offsets stay as they are.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.fixed.clone();
        for (kind, body) in &self.headers {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let size = (bytes.len() - self.fixed.len()) as u32;
        bytes[12..16].copy_from_slice(&size.to_le_bytes());
        bytes.extend(&self.data);
        let total = bytes.len() as u32;
        bytes[16..20].copy_from_slice(&total.to_le_bytes());
        fix_checksum(&mut bytes);
        bytes
    }

    /// The `n`th header of a type.
    pub(crate) fn header(&mut self, kind: IgvmVariableHeaderType, n: usize) -> &mut Vec<u8> {
        let found = self.headers.iter_mut().filter(|(k, _)| *k == kind.0).nth(n);
        &mut found.unwrap().1
    }

    /// Overwrites bytes of a header.
    pub(crate) fn patch(
        mut self,
        kind: IgvmVariableHeaderType,
        n: usize,
        at: usize,
        bytes: &[u8],
    ) -> Self {
        self.header(kind, n)[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

/// Makes the checksum right, if there are headers where the file says.
pub(crate) fn fix_checksum(bytes: &mut [u8]) {
    let (start, size) = (u32_at(bytes, 8) as usize, u32_at(bytes, 12) as usize);
    let fixed = if u32_at(bytes, 4) == 2 { 32 } else { 24 };
    bytes[20..24].fill(0);
    let end = start.saturating_add(size);
    if let (Some(fixed), Some(headers)) = (bytes.get(..fixed), bytes.get(start..end)) {
        let mut crc = crc32fast::Hasher::new();
        crc.update(fixed);
        crc.update(headers);
        let crc = crc.finalize();
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A machine with 4 VPs on two nodes and the RAM that is given, without the host's own.
pub(crate) fn machine(ram: &[(u64, u64)]) -> MachineInfo {
    let own = vsm_host_defs::HOST_MEMORY_BASE;
    let own = MemoryRange::new(own, own + vsm_host_defs::HOST_MEMORY_SIZE);
    let mut ranges = ram.iter().map(|r| MemoryRange::new(r.0, r.1)).collect();
    subtract(&mut ranges, own);
    MachineInfo {
        vps: (1..5)
            .map(|apic_id| Cpu {
                apic_id,
                node: apic_id / 3,
            })
            .collect(),
        ram: ranges
            .into_iter()
            .map(|range| RamRange { range, node: 0 })
            .collect(),
        own: vec![own],
        busy: vec![],
        io_apics: vec![IoApic {
            address: 0xfec0_0000,
            gsi_base: 0,
        }],
        mmio: [
            MemoryRange::new(2 * GIB, 3 * GIB),
            MemoryRange::new(16 * GIB, 1 << 40),
        ],
        tables: AcpiTables {
            madt: b"MADT-content".to_vec(),
            srat: None,
            slit: Some(b"SLIT-content".to_vec()),
            pptt: Some(b"PPTT-content".to_vec()),
        },
        entropy: (0..64).collect(),
        com3: true,
    }
}

/// 512 MiB, as QEMU lays them out.
pub(crate) fn small_machine() -> MachineInfo {
    let ram: Vec<_> = q35::ram(512 * MIB)
        .iter()
        .map(|range| (range.start(), range.end()))
        .collect();
    machine(&ram)
}

/// Pages that a plan has written.
#[derive(Default)]
pub(crate) struct FakeMemory {
    pub(crate) pages: BTreeMap<u64, Vec<u8>>,
}

impl FakeMemory {
    pub(crate) fn read(&self, address: u64, size: usize) -> Vec<u8> {
        (address..address + size as u64)
            .map(|at| self.pages[&(at & !4095)][(at & 4095) as usize])
            .collect()
    }

    pub(crate) fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address, 8).try_into().unwrap())
    }

    fn put(&mut self, address: u64, bytes: impl Iterator<Item = u8>) {
        for (at, byte) in (address..).zip(bytes) {
            let page = self
                .pages
                .entry(at & !4095)
                .or_insert_with(|| vec![0xcc; 4096]);
            page[(at & 4095) as usize] = byte;
        }
    }
}

impl HostMemoryWriter for FakeMemory {
    fn write(&mut self, address: u64, data: &[u8]) {
        self.put(address, data.iter().copied());
    }

    fn zero(&mut self, address: u64, size: u64) {
        self.put(address, (0..size).map(|_| 0));
    }
}
