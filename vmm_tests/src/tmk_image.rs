//! Packs the test payload (`tmk`) into an IGVM file that has nothing in common with the
//! real image but the contract.
//!
//! The layout is another one, every kind of parameter is asked for, two parameters share
//! an area, areas have initial data, GDT and selectors differ, registers get values that
//! only the payload knows, pages without content are given as such. Where the image goes
//! and how the host may move it is for the test to choose.
//!
//! This is not a second `igvm_builder`: it packs this one payload, and shares no code with
//! the builder, so that a mistake there cannot hide here.

use crate::artifacts::artifacts;
use igvm::IgvmDirectiveHeader;
use igvm::IgvmFile;
use igvm::IgvmInitializationHeader;
use igvm::IgvmPlatformHeader;
use igvm::IgvmRevision;
use igvm::hv_defs::Vtl;
use igvm::registers::SegmentRegister;
use igvm::registers::TableRegister;
use igvm::registers::X86Register;
use igvm_defs::IGVM_VHS_PARAMETER;
use igvm_defs::IGVM_VHS_PARAMETER_INSERT;
use igvm_defs::IGVM_VHS_SUPPORTED_PLATFORM;
use igvm_defs::IgvmPageDataFlags;
use igvm_defs::IgvmPageDataType;
use igvm_defs::IgvmPlatformType;
use object::LittleEndian;
use object::elf::FileHeader64;
use object::elf::PT_LOAD;
use object::read::elf::FileHeader;
use object::read::elf::ProgramHeader;
use page_table::Attributes;
use page_table::Config;
use page_table::LeafSize;
use page_table::PageTable;
use page_table::Region;
use page_table::build_identity_map;
use page_table::tables_needed;
use tmk::abi::AREA_FILL;
use tmk::abi::ENTRY_PATTERNS;
use tmk::abi::IMAGE_CODE_SELECTOR;
use tmk::abi::IMAGE_DATA_SELECTOR;
use tmk::abi::IMAGE_GDT_ENTRIES;
use tmk::abi::PAGE_SIZE;
use tmk::abi::PARAMETER_KINDS;
use tmk::abi::ParameterKind;
use tmk::abi::ParameterPlace;
use tmk::abi::TMK_INFO_MAGIC;
use tmk::abi::TmkInfo;
use vsm_host_defs::HOST_MEMORY_BASE;
use zerocopy::IntoBytes;

/// Platform that every header is for.
const MASK: u32 = 1;
/// A second platform in the file, which the host must pass over.
const OTHER_MASK: u32 = 2;
/// 1 MiB.
const MIB: u64 = 1 << 20;
/// Size of the VTL2 range.
const RANGE_SIZE: u64 = 16 * MIB;
/// Where in the range the payload is: page aligned, but not more, unlike the real image.
const PAYLOAD_OFFSET: u64 = MIB + 3 * PAGE_SIZE;
/// Default place.
const DEFAULT_BASE: u64 = 128 * MIB;
/// Smallest alignment of a range that is mapped by 2 MiB leaves.
const LARGE_ALIGNMENT: u64 = 2 * MIB;
/// Alignment of a range that is mapped by 4 KiB leaves.
const SMALL_ALIGNMENT: u64 = 64 << 10;
/// Highest address to which the host may move the image.
const RELOCATION_LIMIT: u64 = 1 << 48;
/// Table pages beyond the used ones, for a host that moves the map across a border.
const SPARE_TABLES: u64 = 12;

/// A parameter area and what the host deposits in it, at which offset.
struct Area {
    pages: u64,
    parameters: &'static [(ParameterKind, u64)],
    filled: bool,
}

/// The areas. Two of them take two parameters, one has no initial data.
const AREAS: [Area; 7] = [
    Area {
        pages: 1,
        parameters: &[
            (ParameterKind::VpCount, 0x10),
            (ParameterKind::MmioRanges, 0x100),
        ],
        filled: true,
    },
    Area {
        pages: 4,
        parameters: &[(ParameterKind::Srat, 0)],
        filled: true,
    },
    Area {
        pages: 2,
        parameters: &[(ParameterKind::Madt, 0x20)],
        filled: true,
    },
    Area {
        pages: 1,
        parameters: &[(ParameterKind::Slit, 0)],
        filled: false,
    },
    Area {
        pages: 2,
        parameters: &[(ParameterKind::Pptt, 0)],
        filled: true,
    },
    Area {
        pages: 3,
        parameters: &[
            (ParameterKind::MemoryMap, 0),
            (ParameterKind::CommandLine, 2 * PAGE_SIZE),
        ],
        filled: true,
    },
    Area {
        pages: 16,
        parameters: &[(ParameterKind::DeviceTree, 0)],
        filled: true,
    },
];

/// The image, before it is packed.
#[derive(Debug, Clone)]
pub struct TmkImage {
    elf: Vec<u8>,
    base: u64,
    lowest: Option<u64>,
    leaf: LeafSize,
    revision: IgvmRevision,
    other_platform: bool,
}

/// The payload as it lies in memory.
struct Payload {
    bytes: Vec<u8>,
    entry: u64,
}

impl TmkImage {
    /// An image of the payload that xtask has built.
    #[track_caller]
    pub fn built() -> Self {
        let path = artifacts().tmk;
        match std::fs::read(&path) {
            Ok(elf) => Self::new(&elf),
            Err(error) => panic!("test payload {}: {error}", path.display()),
        }
    }

    /// An image of this payload for a fixed place, 128 MiB.
    pub fn new(elf: &[u8]) -> Self {
        Self {
            elf: elf.to_vec(),
            base: DEFAULT_BASE,
            lowest: None,
            leaf: LeafSize::Size2M,
            revision: IgvmRevision::V1,
            other_platform: false,
        }
    }

    /// Built for another place.
    pub fn base(mut self, base: u64) -> Self {
        self.base = base;
        self
    }

    /// The host may move it, but not below `lowest`.
    pub fn relocatable(mut self, lowest: u64) -> Self {
        self.lowest = Some(lowest);
        self
    }

    /// Built for where the host itself is, so that it must be moved.
    pub fn must_move(self) -> Self {
        self.base(HOST_MEMORY_BASE).relocatable(LARGE_ALIGNMENT)
    }

    /// Mapped by 4 KiB leaves.
    pub fn small_leaves(mut self) -> Self {
        self.leaf = LeafSize::Size4K;
        self
    }

    /// The file has the second format version.
    pub fn second_version(mut self) -> Self {
        self.revision = IgvmRevision::V2 {
            arch: igvm::Arch::X64,
            page_size: PAGE_SIZE as u32,
        };
        self
    }

    /// The file also has content for SNP, which would do harm if it were loaded.
    pub fn other_platform(mut self) -> Self {
        self.other_platform = true;
        self
    }

    /// The IGVM file. Panics if the payload does not fit or the file would not be valid:
    /// both are mistakes in this repository.
    pub fn pack(&self) -> Vec<u8> {
        let payload = Payload::read(&self.elf);
        let image_base = self.base + PAYLOAD_OFFSET;
        // Behind the payload: info, GDT, the zero page, the parameter areas.
        let info_gpa = image_base + payload.bytes.len() as u64;
        let gdt_gpa = info_gpa + PAGE_SIZE;
        let zero_gpa = gdt_gpa + PAGE_SIZE;
        let mut next = zero_gpa + PAGE_SIZE;
        let (mut places, mut area_gpas) = ([ParameterPlace::default(); PARAMETER_KINDS], vec![]);
        for area in &AREAS {
            for (index, (kind, offset)) in area.parameters.iter().enumerate() {
                let end = area.parameters.get(index + 1);
                let end = end.map_or(area.pages * PAGE_SIZE, |(_, next)| *next);
                places[*kind as usize] = ParameterPlace {
                    offset: next + offset - image_base,
                    size: end - offset,
                };
            }
            area_gpas.push(next);
            next += area.pages * PAGE_SIZE;
        }
        // At the end of the range: the page tables.
        let range_end = self.base + RANGE_SIZE;
        let map = [Region::new(self.base, range_end, Attributes::SUPERVISOR)];
        let used = tables_needed(&map, self.leaf).expect("the range can be mapped");
        let tables_gpa = range_end - (used + SPARE_TABLES) * PAGE_SIZE;
        assert!(next <= tables_gpa, "the payload does not fit");
        let mut tables = vec![PageTable::EMPTY; used as usize];
        build_identity_map(&mut tables, tables_gpa, &map, Config::supervisor(self.leaf))
            .expect("the tables suffice");

        let info = TmkInfo {
            magic: TMK_INFO_MAGIC,
            built_base: image_base,
            relocatable: self.lowest.is_some().into(),
            base_in_range: PAYLOAD_OFFSET,
            range_size: RANGE_SIZE,
            page_tables_offset: tables_gpa - image_base,
            zero_page_offset: zero_gpa - image_base,
            parameters: places,
        };

        let mut directives = vec![IgvmDirectiveHeader::RequiredMemory {
            gpa: self.base,
            compatibility_mask: MASK,
            number_of_bytes: RANGE_SIZE as u32,
            vtl2_protectable: true,
        }];
        if self.other_platform {
            // Over the host's own memory.
            directives.push(page(HOST_MEMORY_BASE, OTHER_MASK, b"not for this platform"));
        }
        parameters(&mut directives, &area_gpas);
        directives.push(IgvmDirectiveHeader::X64VbsVpContext {
            vtl: Vtl::Vtl2,
            registers: registers(
                image_base + payload.entry,
                info_gpa - image_base,
                gdt_gpa,
                tables_gpa,
            ),
            compatibility_mask: MASK,
        });
        pages(&mut directives, image_base, &payload.bytes);
        pages(&mut directives, info_gpa, info.as_bytes());
        pages(&mut directives, gdt_gpa, gdt().as_bytes());
        pages(&mut directives, zero_gpa, &[0; PAGE_SIZE as usize]);
        pages(&mut directives, tables_gpa, tables.as_bytes());

        let file = IgvmFile::new(
            self.revision,
            self.platforms(),
            self.initialization(tables_gpa, used * PAGE_SIZE),
            directives,
        )
        .expect("the headers are consistent");
        let mut bytes = Vec::new();
        file.serialize(&mut bytes).expect("the file is small");
        bytes
    }

    fn platforms(&self) -> Vec<IgvmPlatformHeader> {
        let platform = |compatibility_mask, platform_type, shared_gpa_boundary| {
            IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
                compatibility_mask,
                highest_vtl: 2,
                platform_type,
                platform_version: 1,
                shared_gpa_boundary,
            })
        };
        let mut platforms = vec![platform(MASK, IgvmPlatformType::VSM_ISOLATION, 0)];
        if self.other_platform {
            platforms.push(platform(OTHER_MASK, IgvmPlatformType::SEV_SNP, 1 << 46));
        }
        platforms
    }

    fn initialization(&self, tables_gpa: u64, used_size: u64) -> Vec<IgvmInitializationHeader> {
        let Some(lowest) = self.lowest else {
            return vec![];
        };
        let range_end = self.base + RANGE_SIZE;
        vec![
            IgvmInitializationHeader::RelocatableRegion {
                compatibility_mask: MASK,
                relocation_alignment: match self.leaf {
                    LeafSize::Size4K => SMALL_ALIGNMENT,
                    _ => LARGE_ALIGNMENT,
                },
                relocation_region_gpa: self.base,
                relocation_region_size: tables_gpa - self.base,
                minimum_relocation_gpa: lowest,
                maximum_relocation_gpa: RELOCATION_LIMIT,
                is_vtl2: true,
                apply_rip_offset: true,
                apply_gdtr_offset: true,
                vp_index: 0,
                vtl: Vtl::Vtl2,
            },
            IgvmInitializationHeader::PageTableRelocationRegion {
                compatibility_mask: MASK,
                gpa: tables_gpa,
                size: range_end - tables_gpa,
                used_size,
                vp_index: 0,
                vtl: Vtl::Vtl2,
            },
        ]
    }
}

impl Payload {
    /// Lays the loadable segments out, zeros included.
    fn read(elf: &[u8]) -> Self {
        let little = LittleEndian;
        let header = FileHeader64::<LittleEndian>::parse(elf).expect("the payload is an ELF file");
        let mut bytes = Vec::new();
        let segments = header.program_headers(little, elf);
        for segment in segments.expect("the payload has segments") {
            if segment.p_type(little) != PT_LOAD {
                continue;
            }
            let start = segment.p_vaddr(little) as usize;
            let end = start + segment.p_memsz(little) as usize;
            let data = segment
                .data(little, elf)
                .expect("the segment is in the file");
            bytes.resize(bytes.len().max(end), 0);
            bytes[start..start + data.len()].copy_from_slice(data);
        }
        bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
        Self {
            bytes,
            entry: header.e_entry(little),
        }
    }
}

/// Areas, deposits, then inserts.
fn parameters(directives: &mut Vec<IgvmDirectiveHeader>, gpas: &[u64]) {
    // Numbered from 7 downwards: numbers are names, not positions.
    let number = |index: usize| 7 - index as u32;
    for (index, area) in AREAS.iter().enumerate() {
        let size = area.pages * PAGE_SIZE;
        directives.push(IgvmDirectiveHeader::ParameterArea {
            number_of_bytes: size,
            parameter_area_index: number(index),
            initial_data: if area.filled {
                vec![AREA_FILL; size as usize]
            } else {
                vec![]
            },
        });
        for (kind, byte_offset) in area.parameters {
            let directive = match kind {
                ParameterKind::VpCount => IgvmDirectiveHeader::VpCount,
                ParameterKind::Srat => IgvmDirectiveHeader::Srat,
                ParameterKind::Madt => IgvmDirectiveHeader::Madt,
                ParameterKind::Slit => IgvmDirectiveHeader::Slit,
                ParameterKind::Pptt => IgvmDirectiveHeader::Pptt,
                ParameterKind::MmioRanges => IgvmDirectiveHeader::MmioRanges,
                ParameterKind::MemoryMap => IgvmDirectiveHeader::MemoryMap,
                ParameterKind::CommandLine => IgvmDirectiveHeader::CommandLine,
                ParameterKind::DeviceTree => IgvmDirectiveHeader::DeviceTree,
            };
            directives.push(directive(IGVM_VHS_PARAMETER {
                parameter_area_index: number(index),
                byte_offset: *byte_offset as u32,
            }));
        }
    }
    for (index, gpa) in gpas.iter().enumerate() {
        directives.push(IgvmDirectiveHeader::ParameterInsert(
            IGVM_VHS_PARAMETER_INSERT {
                gpa: *gpa,
                compatibility_mask: MASK,
                parameter_area_index: number(index),
            },
        ));
    }
}

/// One directive for each page; pages of zeros have no data.
fn pages(directives: &mut Vec<IgvmDirectiveHeader>, gpa: u64, bytes: &[u8]) {
    for (index, data) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
        let data = if data.iter().all(|byte| *byte == 0) {
            &[]
        } else {
            data
        };
        directives.push(page(gpa + index as u64 * PAGE_SIZE, MASK, data));
    }
}

fn page(gpa: u64, compatibility_mask: u32, data: &[u8]) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask,
        flags: IgvmPageDataFlags::new(),
        data_type: IgvmPageDataType::NORMAL,
        data: data.to_vec(),
    }
}

/// Descriptors at the selectors that the payload expects; the first ones are unused.
fn gdt() -> [u64; IMAGE_GDT_ENTRIES] {
    let mut gdt = [0; IMAGE_GDT_ENTRIES];
    gdt[usize::from(IMAGE_CODE_SELECTOR / 8)] = 0x00af_9b00_0000_ffff;
    gdt[usize::from(IMAGE_DATA_SELECTOR / 8)] = 0x00cf_9300_0000_ffff;
    gdt
}

/// Registers of VP 0. RSP is a pattern: the payload brings its own stack.
fn registers(rip: u64, rsi: u64, gdt: u64, cr3: u64) -> Vec<X86Register> {
    let segment = |selector, attributes| SegmentRegister {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes,
    };
    let code = segment(IMAGE_CODE_SELECTOR, 0xa09b);
    let data = segment(IMAGE_DATA_SELECTOR, 0xc093);
    let [rbp, r8, r9, r10, r11, r12, rsp] = ENTRY_PATTERNS;
    vec![
        X86Register::Cr0(0x8000_0021),
        X86Register::Cr3(cr3),
        X86Register::Cr4(0x60),
        X86Register::Efer(0xd00),
        X86Register::Pat(0x0007_0406_0007_0406),
        X86Register::Cs(code),
        X86Register::Ds(data),
        X86Register::Es(data),
        X86Register::Fs(data),
        X86Register::Gs(data),
        X86Register::Ss(data),
        X86Register::Tr(SegmentRegister {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attributes: 0x8b,
        }),
        X86Register::Gdtr(TableRegister {
            base: gdt,
            limit: (IMAGE_GDT_ENTRIES * 8 - 1) as u16,
        }),
        X86Register::Rip(rip),
        X86Register::Rsi(rsi),
        X86Register::Rbp(rbp),
        X86Register::R8(r8),
        X86Register::R9(r9),
        X86Register::R10(r10),
        X86Register::R11(r11),
        X86Register::R12(r12),
        X86Register::Rsp(rsp),
        X86Register::Rflags(2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of one segment with one page of data and one of zeros.
    fn elf() -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        bytes[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        bytes[0x10..0x14].copy_from_slice(&[3, 0, 62, 0]);
        bytes[0x18] = 0x80;
        bytes[0x20] = 64;
        bytes[0x36] = 56;
        bytes[0x38] = 1;
        bytes[0x40] = 1;
        bytes[0x60..0x68].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes[0x68..0x70].copy_from_slice(&0x2000u64.to_le_bytes());
        bytes
    }

    #[test]
    fn every_variant_is_a_valid_file() {
        let image = TmkImage::new(&elf());
        for image in [
            image.clone(),
            image.clone().base(256 * MIB),
            image.clone().must_move(),
            image.clone().must_move().small_leaves(),
            image.clone().second_version(),
            image.clone().other_platform(),
        ] {
            let bytes = image.pack();
            let file = IgvmFile::new_from_binary(&bytes, None).unwrap();
            assert!(file.directives().len() > AREAS.len());
        }
    }

    #[test]
    fn places_are_inside_of_their_areas() {
        let bytes = TmkImage::new(&elf()).pack();
        let file = IgvmFile::new_from_binary(&bytes, None).unwrap();
        let info = file
            .directives()
            .iter()
            .find_map(|directive| match directive {
                IgvmDirectiveHeader::PageData { data, .. }
                    if data.starts_with(TMK_INFO_MAGIC.as_bytes()) =>
                {
                    zerocopy::FromBytes::read_from_prefix(data).ok()
                }
                _ => None,
            });
        let (info, _): (TmkInfo, &[u8]) = info.unwrap();
        let image_base = info.built_base;
        for directive in file.directives() {
            if let IgvmDirectiveHeader::ParameterInsert(insert) = directive {
                assert!(insert.gpa > image_base);
            }
        }
        for place in info.parameters {
            assert!(place.size > 0 && place.offset + place.size <= info.page_tables_offset);
        }
    }
}
