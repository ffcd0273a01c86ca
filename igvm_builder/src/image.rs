//! Writing the file.

use crate::component::{Component, GpaRange};
use crate::elf::{ElfError, Program, Role};
use crate::guest::{self, GuestError, GuestFiles};
use crate::layout::{Demand, Layout, OutOfSpace, VTL0_CONFIG};
use crate::manifest::{MEMORY_ALIGNMENT, Manifest};
use crate::registers;
use igvm::hv_defs::Vtl;
use igvm::{
    IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision,
};
use igvm_defs::{
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags,
    IgvmPageDataType, IgvmPlatformType,
};
use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::{
    COMMAND_LINE_CAPACITY, ImportedRegionDescriptor, ImportedRegionsPageHeader,
    MEASURED_VTL0_MAGIC, MEASURED_VTL2_MAGIC, ParavisorCommandLine, ParavisorMeasuredVtl0Config,
    ParavisorMeasuredVtl2Config,
};
use loader_defs::shim::{ShimParamsRaw, SupportedIsolationType};
use page_table::{Attributes, Config, LeafSize, PageTable, Region, build_identity_map};
use std::borrow::Cow;
use std::collections::BTreeMap;
use thiserror::Error;
use x86_defs::long_mode::GDT;
use zerocopy::{FromZeros, IntoBytes};

/// The one platform of the file has this compatibility mask.
const COMPATIBILITY_MASK: u32 = 1;
/// Version of the VSM isolation platform.
const PLATFORM_VERSION: u16 = igvm_defs::IGVM_VSM_ISOLATION_PLATFORM_VERSION;
/// The image may be moved up to here.
const RELOCATION_LIMIT: u64 = page_table::ADDRESS_LIMIT;

/// Why an image cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A resource is not a usable program.
    #[error("{resource}: {error}")]
    Program {
        /// Which one.
        resource: Component,
        /// Why.
        error: ElfError,
    },
    /// A resource is given that the manifest does not name, or the other way round.
    #[error(
        "the manifest {} a sidecar, but the command line {} one",
        if *wanted { "names" } else { "does not name" },
        if *wanted { "does not give" } else { "gives" }
    )]
    Sidecar {
        /// What the manifest says.
        wanted: bool,
    },
    /// A guest is given that the manifest does not have, or the other way round.
    #[error("the manifest's guest has {wanted}, but what is given has {given}")]
    GuestParts {
        /// What the manifest says.
        wanted: &'static str,
        /// What is there.
        given: &'static str,
    },
    /// The guest cannot be carried.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// With its guest, the image would ask for more memory than the format can say.
    #[error("VTL2 memory of {size} bytes with the guest's files, expected less than 4 GiB")]
    GuestTooLarge {
        /// What would be needed.
        size: u64,
    },
    /// The initrd has no bytes.
    #[error("initrd: the file is empty, expected a cpio archive")]
    EmptyInitrd,
    /// Too little memory.
    #[error(transparent)]
    OutOfSpace(#[from] OutOfSpace),
    /// Two parts for one page.
    #[error("{second} and {first} both import the page at {gpa:#x}, expected disjoint parts")]
    Overlap {
        /// The one that came first.
        first: Component,
        /// The one that came second.
        second: Component,
        /// The page.
        gpa: u64,
    },
    /// The list of imported regions does not fit its page.
    #[error("{count} separate imported regions, expected at most {capacity} (one page)")]
    TooManyRegions {
        /// How many there are.
        count: usize,
        /// How many fit.
        capacity: usize,
    },
    /// The page tables could not be built.
    #[error("page tables: {0}")]
    PageTables(#[from] page_table::Error),
    /// The format's own rules are broken.
    #[error("the igvm library refuses the image: {0}")]
    Format(igvm::Error),
}

/// The contents of the parts.
#[derive(Debug, Clone, Copy)]
pub struct Resources<'a> {
    /// `vmlinux`.
    pub kernel: &'a [u8],
    /// The boot shim.
    pub shim: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
    /// The sidecar.
    pub sidecar: Option<&'a [u8]>,
    /// The guest.
    pub guest: Option<GuestFiles<'a>>,
}

/// An image that has been built.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// The IGVM file.
    pub bytes: Vec<u8>,
    /// The same before it was serialized.
    pub file: IgvmFile,
    /// Where the parts are.
    pub layout: Layout,
}

/// Builds an image.
pub fn build(manifest: &Manifest, resources: &Resources<'_>) -> Result<BuiltImage, BuildError> {
    if manifest.sidecar != resources.sidecar.is_some() {
        return Err(BuildError::Sidecar {
            wanted: manifest.sidecar,
        });
    }
    if resources.initrd.is_empty() {
        return Err(BuildError::EmptyInitrd);
    }
    let WithGuest {
        initrd,
        memory_size,
    } = WithGuest::new(manifest, resources)?;
    let program = |resource, file, role| {
        Program::parse(file, role, memory_size)
            .map_err(|error| BuildError::Program { resource, error })
    };
    let kernel = program(Component::Kernel, resources.kernel, Role::Kernel)?;
    let shim = program(Component::Shim, resources.shim, Role::Shim)?;
    let sidecar = resources
        .sidecar
        .map(|file| program(Component::Sidecar, file, Role::Sidecar))
        .transpose()?;

    let layout = Layout::new(&Demand {
        memory: GpaRange::with_size(manifest.memory_base, memory_size),
        kernel_size: kernel.memory_size,
        sidecar_size: sidecar.as_ref().map_or(0, |s| s.memory_size),
        shim_size: shim.memory_size,
        shim_alignment: shim.alignment,
        initrd_size: initrd.len() as u64,
    })?;

    let mut pages = Pages::default();
    pages.add_program(Component::Kernel, layout.kernel, &kernel)?;
    pages.add_program(Component::Shim, layout.shim, &shim)?;
    if let (Some(sidecar), Some(range)) = (&sidecar, layout.sidecar) {
        pages.add_program(Component::Sidecar, range, sidecar)?;
    }
    pages.add(Component::Initrd, layout.initrd.start, &initrd)?;
    pages.add(Component::Gdt, layout.gdt.start, GDT.as_bytes())?;
    let params = shim_params(
        &layout,
        kernel.entry,
        sidecar.as_ref().map(|s| s.entry),
        &initrd,
    );
    pages.add(
        Component::ShimParams,
        layout.shim_params.start,
        params.as_bytes(),
    )?;
    pages.add(
        Component::CommandLine,
        layout.command_line.start,
        command_line(manifest).as_bytes(),
    )?;
    pages.add(
        Component::Vtl2Config,
        layout.vtl2_config().start,
        vtl2_config().as_bytes(),
    )?;
    pages.add(
        Component::Vtl0Config,
        VTL0_CONFIG.start,
        vtl0_config().as_bytes(),
    )?;
    for (component, range) in [(Component::Log, layout.log), (Component::Heap, layout.heap)] {
        pages.add(component, range.start, &vec![0; range.size() as usize])?;
    }
    let (tables, tables_used) = page_tables(&layout)?;
    pages.add(
        Component::PageTables,
        layout.page_tables.start,
        tables.as_bytes(),
    )?;
    let parameters = parameters(&layout);
    for (component, range, _) in &parameters {
        pages.claim(*component, *range)?;
    }
    // Last, because it lists everything, itself included.
    pages.add_imported_regions(layout.imported_regions())?;

    let mut directives = vec![IgvmDirectiveHeader::RequiredMemory {
        gpa: layout.memory.start,
        compatibility_mask: COMPATIBILITY_MASK,
        number_of_bytes: memory_size as u32,
        vtl2_protectable: true,
    }];
    for (index, (_, range, kind)) in (0..).zip(&parameters) {
        directives.push(IgvmDirectiveHeader::ParameterArea {
            number_of_bytes: range.size(),
            parameter_area_index: index,
            initial_data: Vec::new(),
        });
        directives.push(kind(IGVM_VHS_PARAMETER {
            parameter_area_index: index,
            byte_offset: 0,
        }));
    }
    directives.push(IgvmDirectiveHeader::X64VbsVpContext {
        vtl: Vtl::Vtl2,
        registers: registers::entry_state(&layout, shim.entry),
        compatibility_mask: COMPATIBILITY_MASK,
    });
    for (index, (_, range, _)) in (0..).zip(&parameters) {
        directives.push(IgvmDirectiveHeader::ParameterInsert(
            IGVM_VHS_PARAMETER_INSERT {
                gpa: range.start,
                compatibility_mask: COMPATIBILITY_MASK,
                parameter_area_index: index,
            },
        ));
    }
    directives.extend(pages.into_directives());

    let file = IgvmFile::new(
        IgvmRevision::V1,
        vec![IgvmPlatformHeader::SupportedPlatform(
            IGVM_VHS_SUPPORTED_PLATFORM {
                compatibility_mask: COMPATIBILITY_MASK,
                highest_vtl: 2,
                platform_type: IgvmPlatformType::VSM_ISOLATION,
                platform_version: PLATFORM_VERSION,
                shared_gpa_boundary: 0,
            },
        )],
        initialization(manifest, &layout, tables_used),
        directives,
    )
    .map_err(BuildError::Format)?;
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).map_err(BuildError::Format)?;
    Ok(BuiltImage {
        bytes,
        file,
        layout,
    })
}

/// What the guest changes.
struct WithGuest<'a> {
    /// The initrd with the guest's files.
    initrd: Cow<'a, [u8]>,
    /// VTL2's memory.
    memory_size: u64,
}

impl<'a> WithGuest<'a> {
    fn new(manifest: &Manifest, resources: &Resources<'a>) -> Result<Self, BuildError> {
        let parts = |initrd: Option<bool>| match initrd {
            None => "no kernel",
            Some(false) => "a kernel and no initrd",
            Some(true) => "a kernel and an initrd",
        };
        let wanted = parts(manifest.guest.as_ref().map(|guest| guest.initrd));
        let given = parts(resources.guest.map(|guest| guest.initrd.is_some()));
        if wanted != given {
            return Err(BuildError::GuestParts { wanted, given });
        }
        let (Some(guest), Some(files)) = (&manifest.guest, &resources.guest) else {
            return Ok(Self {
                initrd: resources.initrd.into(),
                memory_size: manifest.memory_size,
            });
        };
        let segment = guest::segment(files, &guest.command_line)?;
        let more = guest::additional_memory(segment.len(), MEMORY_ALIGNMENT);
        let size = manifest.memory_size.saturating_add(more);
        if size > u64::from(u32::MAX) {
            return Err(BuildError::GuestTooLarge { size });
        }
        let mut initrd = resources.initrd.to_vec();
        initramfs::append_segment(&mut initrd, &segment);
        Ok(Self {
            initrd: initrd.into(),
            memory_size: size,
        })
    }
}

/// Makes the directive that tells the host what to deposit in a parameter area.
type ParameterKind = fn(IGVM_VHS_PARAMETER) -> IgvmDirectiveHeader;

/// What the host fills in, where, and by which directive.
fn parameters(layout: &Layout) -> Vec<(Component, GpaRange, ParameterKind)> {
    layout
        .parameters()
        .into_iter()
        .filter_map(|(component, range)| {
            let kind: ParameterKind = match component {
                Component::Slit => IgvmDirectiveHeader::Slit,
                Component::Pptt => IgvmDirectiveHeader::Pptt,
                Component::DeviceTree => IgvmDirectiveHeader::DeviceTree,
                _ => return None,
            };
            Some((component, range, kind))
        })
        .collect()
}

/// How the host may relocate the image.
fn initialization(
    manifest: &Manifest,
    layout: &Layout,
    tables_used: usize,
) -> Vec<IgvmInitializationHeader> {
    if !manifest.relocatable {
        return Vec::new();
    }
    vec![
        IgvmInitializationHeader::RelocatableRegion {
            compatibility_mask: COMPATIBILITY_MASK,
            relocation_alignment: MEMORY_ALIGNMENT,
            relocation_region_gpa: layout.memory.start,
            // The page tables have a header of their own, and regions must not overlap.
            relocation_region_size: layout.page_tables.start - layout.memory.start,
            minimum_relocation_gpa: layout.memory.start,
            maximum_relocation_gpa: RELOCATION_LIMIT,
            is_vtl2: true,
            apply_rip_offset: true,
            apply_gdtr_offset: true,
            vp_index: 0,
            vtl: Vtl::Vtl2,
        },
        IgvmInitializationHeader::PageTableRelocationRegion {
            compatibility_mask: COMPATIBILITY_MASK,
            gpa: layout.page_tables.start,
            size: layout.page_tables.size(),
            used_size: tables_used as u64 * PAGE_SIZE,
            vp_index: 0,
            vtl: Vtl::Vtl2,
        },
    ]
}

fn shim_params(
    layout: &Layout,
    kernel_entry: u64,
    sidecar_entry: Option<u64>,
    initrd: &[u8],
) -> ShimParamsRaw {
    let offset = |gpa: u64| gpa.wrapping_sub(layout.shim.start) as i64;
    let (sidecar, sidecar_entry) = match (layout.sidecar, sidecar_entry) {
        (Some(range), Some(entry)) => (range, range.start + entry),
        // Size 0 says that there is none; the offsets are then zero.
        _ => (GpaRange::with_size(layout.shim.start, 0), layout.shim.start),
    };
    ShimParamsRaw {
        kernel_entry_offset: offset(layout.kernel.start + kernel_entry),
        cmdline_offset: offset(layout.command_line.start),
        initrd_offset: offset(layout.initrd.start),
        initrd_size: initrd.len() as u64,
        initrd_crc: crc32fast::hash(initrd),
        supported_isolation_type: SupportedIsolationType::VBS.0,
        memory_start_offset: offset(layout.memory.start),
        memory_size: layout.memory.size(),
        parameter_region_offset: offset(layout.parameter_region.start),
        parameter_region_size: layout.parameter_region.size(),
        vtl2_reserved_region_offset: offset(layout.reserved.start),
        vtl2_reserved_region_size: layout.reserved.size(),
        sidecar_offset: offset(sidecar.start),
        sidecar_size: sidecar.size(),
        sidecar_entry_offset: offset(sidecar_entry),
        used_start: offset(layout.used().start),
        used_end: offset(layout.used().end),
        bounce_buffer_start: 0,
        bounce_buffer_size: 0,
        log_buffer_start: offset(layout.log.start),
        log_buffer_size: layout.log.size(),
        heap_start_offset: offset(layout.heap.start),
        heap_size: layout.heap.size(),
        persisted_state_region_offset: offset(layout.persisted_state.start),
        persisted_state_region_size: layout.persisted_state.size(),
    }
}

fn command_line(manifest: &Manifest) -> ParavisorCommandLine {
    let bytes = manifest.command_line.as_bytes();
    let mut text = [0; COMMAND_LINE_CAPACITY];
    text[..bytes.len()].copy_from_slice(bytes);
    ParavisorCommandLine {
        policy: manifest.command_line_policy.0,
        length: bytes.len() as u16,
        text,
    }
}

fn vtl2_config() -> ParavisorMeasuredVtl2Config {
    ParavisorMeasuredVtl2Config {
        magic: MEASURED_VTL2_MAGIC,
        ..ParavisorMeasuredVtl2Config::new_zeroed()
    }
}

/// Nothing is carried for VTL0 yet; the page says so.
fn vtl0_config() -> ParavisorMeasuredVtl0Config {
    ParavisorMeasuredVtl0Config {
        magic: MEASURED_VTL0_MAGIC,
        ..ParavisorMeasuredVtl0Config::new_zeroed()
    }
}

/// The tables, spare ones included, and the number in use.
fn page_tables(layout: &Layout) -> Result<(Vec<PageTable>, usize), page_table::Error> {
    let mut tables = vec![PageTable::EMPTY; layout.page_tables.pages() as usize];
    let memory = Region::new(
        layout.memory.start,
        layout.memory.end,
        Attributes::SUPERVISOR,
    );
    let map = build_identity_map(
        &mut tables,
        layout.page_tables.start,
        &[memory],
        Config::supervisor(LeafSize::Size2M),
    )?;
    Ok((tables, map.tables_used))
}

/// Every page that is present at launch. A page without data is one that the host fills.
#[derive(Default)]
struct Pages {
    pages: BTreeMap<u64, (Component, Option<Vec<u8>>)>,
}

impl Pages {
    fn add_program(
        &mut self,
        component: Component,
        range: GpaRange,
        program: &Program,
    ) -> Result<(), BuildError> {
        for (offset, contents) in program.runs() {
            self.add(component, range.start + offset, contents)?;
        }
        Ok(())
    }

    /// Adds contents, zero-filled to whole pages.
    fn add(&mut self, component: Component, gpa: u64, contents: &[u8]) -> Result<(), BuildError> {
        for (gpa, chunk) in (gpa..)
            .step_by(PAGE_SIZE as usize)
            .zip(contents.chunks(PAGE_SIZE as usize))
        {
            let mut data = Vec::new();
            // An empty data field stands for a zero page.
            if chunk.iter().any(|byte| *byte != 0) {
                data.extend_from_slice(chunk);
                data.resize(PAGE_SIZE as usize, 0);
            }
            self.insert(component, gpa, Some(data))?;
        }
        Ok(())
    }

    /// Marks pages that the host fills.
    fn claim(&mut self, component: Component, range: GpaRange) -> Result<(), BuildError> {
        for gpa in (range.start..range.end).step_by(PAGE_SIZE as usize) {
            self.insert(component, gpa, None)?;
        }
        Ok(())
    }

    fn insert(
        &mut self,
        second: Component,
        gpa: u64,
        data: Option<Vec<u8>>,
    ) -> Result<(), BuildError> {
        match self.pages.insert(gpa, (second, data)) {
            None => Ok(()),
            Some((first, _)) => Err(BuildError::Overlap { first, second, gpa }),
        }
    }

    fn add_imported_regions(&mut self, place: GpaRange) -> Result<(), BuildError> {
        // The page itself first, so that it is in the list.
        self.add(Component::ImportedRegions, place.start, &[0])?;
        let mut regions: Vec<ImportedRegionDescriptor> = Vec::new();
        for page in self.pages.keys().map(|gpa| gpa / PAGE_SIZE) {
            match regions.last_mut() {
                Some(last) if last.base_page_number + last.page_count == page => {
                    last.page_count += 1;
                }
                _ => regions.push(ImportedRegionDescriptor {
                    base_page_number: page,
                    page_count: 1,
                    accepted: 1,
                    padding: [0; 7],
                }),
            }
        }
        // One descriptor is the terminator, which is zero.
        let capacity = (PAGE_SIZE as usize - size_of::<ImportedRegionsPageHeader>())
            / size_of::<ImportedRegionDescriptor>()
            - 1;
        if regions.len() > capacity {
            return Err(BuildError::TooManyRegions {
                count: regions.len(),
                capacity,
            });
        }
        let header = ImportedRegionsPageHeader {
            sha384_hash: [0; 48],
        };
        let mut data = header.as_bytes().to_vec();
        data.extend_from_slice(regions.as_bytes());
        data.resize(PAGE_SIZE as usize, 0);
        self.pages
            .insert(place.start, (Component::ImportedRegions, Some(data)));
        Ok(())
    }

    fn into_directives(self) -> impl Iterator<Item = IgvmDirectiveHeader> {
        self.pages.into_iter().filter_map(|(gpa, (_, data))| {
            Some(IgvmDirectiveHeader::PageData {
                gpa,
                compatibility_mask: COMPATIBILITY_MASK,
                flags: IgvmPageDataFlags::new(),
                data_type: IgvmPageDataType::NORMAL,
                data: data?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_import_of_a_page_is_refused_with_both_parts() {
        let mut pages = Pages::default();
        pages
            .add(Component::Kernel, 0x10_0000, &[1; 0x2000])
            .expect("the pages are free");

        let data = pages.add(Component::Initrd, 0x10_1000, &[2]);
        let parameter = pages.claim(
            Component::DeviceTree,
            GpaRange::with_size(0x10_0000, 0x1000),
        );

        for (result, part, page) in [
            (data, "initrd", "0x101000"),
            (parameter, "device-tree", "0x100000"),
        ] {
            let error = result.expect_err("the page is taken").to_string();
            assert!(error.contains("kernel"), "{error}");
            assert!(error.contains(part) && error.contains(page), "{error}");
        }
    }
}
