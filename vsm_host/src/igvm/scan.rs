//! One pass over the headers: each is checked by itself and against those before it, and
//! what counts for this platform is kept. Addresses are still those in the file.

use super::error::Detail::{AtMost, Bytes, HeaderAt, Hex, MultipleOf, Number, Range, Text, Within};
use super::error::ImageError;
use super::error::Place;
use super::error::Reason;
use super::header::File;
use super::header::Header;
use super::vp_context;
use super::vp_context::InitialContext;
use crate::platform::MemoryRange;
use crate::platform::PAGE_SIZE;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use igvm_defs::*;

/// The VTL that the host starts.
pub(crate) const VTL2: u8 = 2;
/// First address that four levels of page tables cannot map.
const ADDRESS_LIMIT: u64 = 1 << 48;
const LARGE_PAGE: u64 = 2 << 20;
/// Limits on what is kept per file, so that a hostile one cannot fill the host's heap.
/// Pages that follow one another in the file and in memory count once.
const MAX_RUNS: usize = 1 << 16;
const MAX_AREAS: usize = 1024;
const MAX_PARAMETERS: usize = 1024;
const MAX_REGIONS: usize = 64;
const MAX_REQUIRED: usize = 1024;

/// What counts for this platform.
#[derive(Debug, Default)]
pub(crate) struct Image<'a> {
    pub(crate) regions: Vec<Region>,
    pub(crate) page_tables: Option<PageTableRegion>,
    pub(crate) required: Vec<Required>,
    pub(crate) runs: Vec<Run<'a>>,
    pub(crate) deposits: Vec<Deposit>,
    pub(crate) context: Option<(Place, InitialContext)>,
}

/// A relocatable region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) place: Place,
    pub(crate) range: MemoryRange,
    pub(crate) alignment: u64,
    pub(crate) limits: MemoryRange,
    pub(crate) apply_rip: bool,
    pub(crate) apply_gdtr: bool,
}

/// Where the page tables are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageTableRegion {
    pub(crate) place: Place,
    pub(crate) range: MemoryRange,
    pub(crate) used: u64,
}

/// Memory that must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Required {
    pub(crate) place: Place,
    pub(crate) range: MemoryRange,
    pub(crate) vtl2_protectable: bool,
}

/// Memory that is written, from one directive or from several that follow one another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) range: MemoryRange,
    /// `None`: zeros.
    pub(crate) data: Option<&'a [u8]>,
    pub(crate) kind: IgvmVariableHeaderType,
    /// First directive.
    pub(crate) index: u32,
    /// Bytes that each directive contributes.
    pub(crate) step: u64,
}

impl Run<'_> {
    /// The directive that writes `address`.
    pub(crate) fn place_of(&self, address: u64) -> Place {
        let steps = address.saturating_sub(self.range.start()) / self.step;
        Place::Directive(self.index.saturating_add(steps as u32), self.kind)
    }
}

/// A parameter that goes to a known place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deposit {
    pub(crate) place: Place,
    pub(crate) kind: IgvmVariableHeaderType,
    /// From the parameter's offset to the end of its area.
    pub(crate) room: MemoryRange,
}

#[derive(Debug)]
struct Area<'a> {
    size: u64,
    data: Option<&'a [u8]>,
    parameters: Vec<(Place, IgvmVariableHeaderType, u32)>,
    inserted: bool,
}

/// State of the pass.
struct Scan<'a> {
    file: File<'a>,
    image: Image<'a>,
    /// Bit of our platform, 0 until it is found.
    mask: u32,
    all_masks: u32,
    areas: BTreeMap<u32, Area<'a>>,
    parameter_count: usize,
    /// Region of the last run.
    last_region: Option<Option<usize>>,
}

/// Reads all headers.
pub(crate) fn scan<'a>(file: File<'a>) -> Result<Image<'a>, ImageError> {
    let mut scan = Scan {
        file,
        image: Image::default(),
        mask: 0,
        all_masks: 0,
        areas: BTreeMap::new(),
        parameter_count: 0,
        last_region: None,
    };
    let mut unusable = None;
    for header in file.headers() {
        let header = header?;
        match header.place {
            Place::Platform(..) => scan.platform(&header, &mut unusable)?,
            _ if scan.mask == 0 => break,
            Place::Initialization(..) => scan.initialization(&header)?,
            Place::Directive(..) => scan.directive(&header)?,
            _ => {}
        }
    }
    if scan.mask == 0 {
        return Err(unusable.unwrap_or_else(|| {
            let expected = Text("VSM_ISOLATION with highest VTL 2");
            Reason::NoPlatform.at(Place::File, Text("no platform header"), expected)
        }));
    }
    Ok(scan.image)
}

/// A header type that is not known here is skipped if it says that it may be.
fn skip_or_refuse(header: &Header<'_>) -> Result<(), ImageError> {
    if header.kind.0 & IGVM_VHT_OPTIONAL_BIT != 0 {
        return Ok(());
    }
    let expected = Text("a type of the IGVM specification, or bit 31 set");
    Err(header.error(Reason::UnknownHeader, Hex(header.kind.0.into()), expected))
}

impl<'a> Scan<'a> {
    /// Takes the platform if it is ours; else keeps the reason why it is not.
    fn platform(
        &mut self,
        header: &Header<'_>,
        unusable: &mut Option<ImageError>,
    ) -> Result<(), ImageError> {
        if header.kind != IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM {
            return skip_or_refuse(header);
        }
        let platform: IGVM_VHS_SUPPORTED_PLATFORM = header.structure()?;
        let mask = platform.compatibility_mask;
        if !mask.is_power_of_two() || mask & self.all_masks != 0 {
            let expected = Text("one bit that no other platform has");
            return Err(header.error(Reason::CompatibilityMask, Hex(mask.into()), expected));
        }
        self.all_masks |= mask;
        if platform.platform_type != IgvmPlatformType::VSM_ISOLATION {
            let found = match platform.platform_type {
                IgvmPlatformType::NATIVE => Text("NATIVE"),
                IgvmPlatformType::SEV_SNP => Text("SEV_SNP"),
                IgvmPlatformType::TDX => Text("TDX"),
                IgvmPlatformType::SEV => Text("SEV"),
                IgvmPlatformType::SEV_ES => Text("SEV_ES"),
                IgvmPlatformType::CCA => Text("CCA"),
                other => Number(other.0.into()),
            };
            let expected = Text("VSM_ISOLATION with highest VTL 2");
            unusable.get_or_insert(header.error(Reason::NoPlatform, found, expected));
            return Ok(());
        }
        if self.mask != 0 {
            let expected = Text("it once");
            return Err(header.error(Reason::PlatformRepeated, Text("VSM_ISOLATION"), expected));
        }
        let expect = |reason: Reason, found: u64, expected: u64| {
            if found == expected {
                Ok(())
            } else {
                Err(header.error(reason, Number(found), Number(expected)))
            }
        };
        expect(
            Reason::PlatformVersion,
            platform.platform_version.into(),
            IGVM_VSM_ISOLATION_PLATFORM_VERSION.into(),
        )?;
        expect(Reason::HighestVtl, platform.highest_vtl.into(), VTL2.into())?;
        expect(Reason::SharedBoundary, platform.shared_gpa_boundary, 0)?;
        self.mask = mask;
        Ok(())
    }

    fn initialization(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        match header.kind {
            // Policy of isolated platforms. CoRIM documents, their signatures and the
            // version string are for whoever attests or reads; nothing to load.
            IgvmVariableHeaderType::IGVM_VHT_GUEST_POLICY => {
                let policy: IGVM_VHS_GUEST_POLICY = header.structure()?;
                header.reserved(policy.reserved.into())
            }
            IgvmVariableHeaderType(0x104 | 0x105)
            | IgvmVariableHeaderType::IGVM_VHT_VERSION_STRING => Ok(()),
            IgvmVariableHeaderType::IGVM_VHT_CCA_POLICY => {
                let policy: IGVM_VHS_CCA_POLICY = header.structure()?;
                if policy.compatibility_mask & self.mask == 0 {
                    return Ok(());
                }
                let expected = Text("headers of an x64 platform");
                Err(header.error(Reason::Unsupported, Text("CCA"), expected))
            }
            IgvmVariableHeaderType::IGVM_VHT_RELOCATABLE_REGION => self.region(header),
            IgvmVariableHeaderType::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION => {
                self.page_tables(header)
            }
            _ => skip_or_refuse(header),
        }
    }

    fn region(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_RELOCATABLE_REGION = header.structure()?;
        if raw.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        let known = IGVM_VHF_RELOCATABLE_REGION_IS_VTL2
            | IGVM_VHF_RELOCATABLE_REGION_APPLY_RIP
            | IGVM_VHF_RELOCATABLE_REGION_APPLY_GDTR;
        header.reserved((raw.flags & !known).into())?;
        self.expect_vp0(header, raw.vp_index, raw.vtl)?;
        let alignment = raw.relocation_alignment;
        if !alignment.is_power_of_two() || !(PAGE_SIZE..ADDRESS_LIMIT).contains(&alignment) {
            let expected = Text("a power of two from 0x1000");
            return Err(header.error(Reason::Field("alignment"), Hex(alignment), expected));
        }
        for (what, value) in [
            ("region GPA", raw.relocation_region_gpa),
            ("minimum GPA", raw.minimum_relocation_gpa),
            ("maximum GPA", raw.maximum_relocation_gpa),
        ] {
            if !value.is_multiple_of(alignment) {
                let expected = MultipleOf(alignment);
                return Err(header.error(Reason::Unaligned(what), Hex(value), expected));
            }
        }
        let (gpa, size) = (raw.relocation_region_gpa, raw.relocation_region_size);
        let range = self.range(header, gpa, size)?;
        let limits = MemoryRange::new(
            raw.minimum_relocation_gpa,
            raw.maximum_relocation_gpa.min(ADDRESS_LIMIT),
        );
        self.not_in_other_region(header, range)?;
        self.limit(
            header,
            self.image.regions.len(),
            MAX_REGIONS,
            "relocatable regions",
        )?;
        self.image.regions.push(Region {
            place: header.place,
            range,
            alignment,
            limits,
            apply_rip: raw.flags & IGVM_VHF_RELOCATABLE_REGION_APPLY_RIP != 0,
            apply_gdtr: raw.flags & IGVM_VHF_RELOCATABLE_REGION_APPLY_GDTR != 0,
        });
        Ok(())
    }

    fn page_tables(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_PAGE_TABLE_RELOCATION = header.structure()?;
        if raw.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        header.reserved(raw.reserved.into())?;
        self.expect_vp0(header, raw.vp_index, raw.vtl)?;
        let range = self.range(header, raw.gpa, raw.size)?;
        header.page_aligned("used size", raw.used_size)?;
        if raw.used_size > raw.size {
            let (found, most) = (Hex(raw.used_size), AtMost(raw.size));
            return Err(header.error(Reason::Field("used size"), found, most));
        }
        self.not_in_other_region(header, range)?;
        if self.image.page_tables.is_some() {
            let expected = Text("one for each platform");
            return Err(header.error(Reason::Overlap, Text("a second region"), expected));
        }
        self.image.page_tables = Some(PageTableRegion {
            place: header.place,
            range,
            used: raw.used_size,
        });
        Ok(())
    }

    fn directive(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        use IgvmVariableHeaderType as T;
        match header.kind {
            T::IGVM_VHT_PARAMETER_AREA => self.parameter_area(header),
            T::IGVM_VHT_PAGE_DATA => self.page_data(header),
            T::IGVM_VHT_PARAMETER_INSERT => self.parameter_insert(header),
            T::IGVM_VHT_VP_CONTEXT => self.vp_context(header),
            T::IGVM_VHT_REQUIRED_MEMORY => self.required_memory(header),
            T::IGVM_VHT_ERROR_RANGE => self.error_range(header),
            T::IGVM_VHT_VP_COUNT_PARAMETER
            | T::IGVM_VHT_SRAT
            | T::IGVM_VHT_MADT
            | T::IGVM_VHT_MMIO_RANGES
            | T::IGVM_VHT_MEMORY_MAP
            | T::IGVM_VHT_COMMAND_LINE
            | T::IGVM_VHT_SLIT
            | T::IGVM_VHT_PPTT
            | T::IGVM_VHT_DEVICE_TREE
            | T::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER => self.parameter(header),
            // The measurement belongs to a signature that this host has nobody to show to.
            T::IGVM_VHT_VBS_MEASUREMENT => header.structure::<IGVM_VHS_VBS_MEASUREMENT>().map(drop),
            T::IGVM_VHT_SNP_ID_BLOCK => {
                let block: IGVM_VHS_SNP_ID_BLOCK = header.structure()?;
                if block.compatibility_mask & self.mask == 0 {
                    return Ok(());
                }
                let expected = Text("directives of VSM_ISOLATION");
                Err(header.error(Reason::Unsupported, Text("SEV_SNP"), expected))
            }
            _ => skip_or_refuse(header),
        }
    }

    fn page_data(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let page: IGVM_VHS_PAGE_DATA = header.structure()?;
        if page.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        header.reserved(page.reserved.into())?;
        header.reserved(page.flags.reserved().into())?;
        if page.data_type != IgvmPageDataType::NORMAL {
            let found = match page.data_type {
                IgvmPageDataType::SECRETS => Text("SECRETS"),
                IgvmPageDataType::CPUID_DATA => Text("CPUID_DATA"),
                IgvmPageDataType::CPUID_XF => Text("CPUID_XF"),
                other => Number(other.0.into()),
            };
            let expected = Text("NORMAL, the only type of VSM_ISOLATION");
            return Err(header.error(Reason::PageDataType, found, expected));
        }
        let size = if page.flags.is_2mb_page() {
            LARGE_PAGE
        } else {
            PAGE_SIZE
        };
        if !page.gpa.is_multiple_of(size) {
            let expected = MultipleOf(size);
            return Err(header.error(Reason::Unaligned("GPA"), Hex(page.gpa), expected));
        }
        let data = match page.file_offset {
            0 => None,
            offset => Some(self.file.data(header, offset, size)?),
        };
        let range = self.range(header, page.gpa, size)?;
        self.run(header, range, data)
    }

    /// Adds memory that is written. Joins it to the last run if it continues that one
    /// in memory, in the file and in the count of directives.
    fn run(
        &mut self,
        header: &Header<'_>,
        range: MemoryRange,
        data: Option<&'a [u8]>,
    ) -> Result<(), ImageError> {
        let region = self.region_of(header, range)?;
        let previous = self.last_region.replace(region);
        if let Some(last) = self.image.runs.last_mut()
            && previous == Some(region)
            && last.kind == header.kind
            && last.kind == IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA
            && last.step == range.size()
            && last.range.end() == range.start()
            && u64::from(header.index - last.index) == last.range.size() / last.step
        {
            let joined = match (last.data, data) {
                (None, None) => Some(None),
                (Some(before), Some(data)) => self.file.join(before, data).map(Some),
                _ => None,
            };
            if let Some(data) = joined {
                last.data = data;
                last.range = MemoryRange::new(last.range.start(), range.end());
                return Ok(());
            }
        }
        self.limit(
            header,
            self.image.runs.len(),
            MAX_RUNS,
            "separate pieces of memory",
        )?;
        self.image.runs.push(Run {
            range,
            data,
            kind: header.kind,
            index: header.index,
            step: range.size(),
        });
        Ok(())
    }

    /// Which region a range belongs to; it must not be partly in one.
    fn region_of(
        &self,
        header: &Header<'_>,
        range: MemoryRange,
    ) -> Result<Option<usize>, ImageError> {
        let tables = self.image.page_tables.iter().map(|tables| tables.range);
        let mut regions = tables.chain(self.image.regions.iter().map(|region| region.range));
        let Some((index, region)) = regions
            .by_ref()
            .enumerate()
            .find(|(_, region)| region.overlaps(range))
        else {
            return Ok(None);
        };
        if region.covers(range) {
            return Ok(Some(index));
        }
        let reason = Reason::Field("range that is partly in a relocatable region");
        Err(header.error(reason, Range(range), Within(region)))
    }

    fn parameter_area(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_PARAMETER_AREA = header.structure()?;
        let size = self.range(header, 0, raw.number_of_bytes)?.size();
        let data = match raw.file_offset {
            0 => None,
            offset => Some(self.file.data(header, offset, size)?),
        };
        self.limit(header, self.areas.len(), MAX_AREAS, "parameter areas")?;
        let index = raw.parameter_area_index;
        let area = Area {
            size,
            data,
            parameters: Vec::new(),
            inserted: false,
        };
        if self.areas.insert(index, area).is_some() {
            let expected = Text("every index once");
            return Err(header.error(Reason::AreaRepeated, Number(index.into()), expected));
        }
        Ok(())
    }

    /// The area with this index, if it can still be filled.
    fn area(&mut self, header: &Header<'_>, index: u32) -> Result<&mut Area<'a>, ImageError> {
        let error = |reason, expected| Err(header.error(reason, Number(index.into()), expected));
        match self.areas.get_mut(&index) {
            None => error(
                Reason::AreaUnknown,
                Text("an index that a directive before declares"),
            ),
            Some(area) if area.inserted => {
                error(Reason::AreaInserted, Text("all before the insert"))
            }
            Some(area) => Ok(area),
        }
    }

    fn parameter(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_PARAMETER = header.structure()?;
        self.limit(header, self.parameter_count, MAX_PARAMETERS, "parameters")?;
        self.parameter_count += 1;
        let area = self.area(header, raw.parameter_area_index)?;
        if u64::from(raw.byte_offset) >= area.size {
            let (found, most) = (Hex(raw.byte_offset.into()), AtMost(area.size - 1));
            return Err(header.error(Reason::Field("offset in the parameter area"), found, most));
        }
        area.parameters
            .push((header.place, header.kind, raw.byte_offset));
        Ok(())
    }

    fn parameter_insert(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_PARAMETER_INSERT = header.structure()?;
        if raw.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        header.page_aligned("GPA", raw.gpa)?;
        let area = self.area(header, raw.parameter_area_index)?;
        area.inserted = true;
        let (size, data) = (area.size, area.data);
        let parameters = core::mem::take(&mut area.parameters);
        let range = self.range(header, raw.gpa, size)?;
        if let Some(tables) = self.image.page_tables
            && tables.range.overlaps(range)
        {
            let expected = Text("memory outside of the page table region");
            return Err(header.error(Reason::InsertInPageTables, Range(range), expected));
        }
        self.run(header, range, data)?;
        for (place, kind, offset) in parameters {
            self.image.deposits.push(Deposit {
                place,
                kind,
                room: MemoryRange::new(range.start() + u64::from(offset), range.end()),
            });
        }
        Ok(())
    }

    fn required_memory(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_REQUIRED_MEMORY = header.structure()?;
        if raw.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        header.reserved(raw.reserved.into())?;
        header.reserved(raw.flags.reserved().into())?;
        let range = self.range(header, raw.gpa, raw.number_of_bytes.into())?;
        self.limit(
            header,
            self.image.required.len(),
            MAX_REQUIRED,
            "memory ranges",
        )?;
        self.image.required.push(Required {
            place: header.place,
            range,
            vtl2_protectable: raw.flags.vtl2_protectable(),
        });
        Ok(())
    }

    fn error_range(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_ERROR_RANGE = header.structure()?;
        if raw.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        let range = self.range(header, raw.gpa, raw.size_bytes.into())?;
        self.run(header, range, None)
    }

    fn vp_context(&mut self, header: &Header<'_>) -> Result<(), ImageError> {
        let raw: IGVM_VHS_VP_CONTEXT = header.structure()?;
        if raw.compatibility_mask & self.mask == 0 {
            return Ok(());
        }
        if self.image.context.is_some() {
            return Err(header.error(Reason::VpContext, Text("a second one"), Text("one")));
        }
        let context = vp_context::parse(&self.file, header, &raw)?;
        self.image.context = Some((header.place, context));
        Ok(())
    }

    /// A range with page-aligned ends, not empty and below the limit.
    fn range(&self, header: &Header<'_>, gpa: u64, size: u64) -> Result<MemoryRange, ImageError> {
        header.page_aligned("GPA", gpa)?;
        header.page_aligned("size", size)?;
        if size == 0 {
            return Err(header.error(Reason::Field("size"), Bytes(0), Text("at least one page")));
        }
        match MemoryRange::with_size(gpa, size) {
            Some(range) if range.end() <= ADDRESS_LIMIT => Ok(range),
            range => Err(header.error(
                Reason::AddressSpace("the range"),
                Range(range.unwrap_or(MemoryRange::new(gpa, u64::MAX))),
                Within(MemoryRange::new(0, ADDRESS_LIMIT)),
            )),
        }
    }

    /// The image has a context for VP 0 in VTL2 only, so that is what registers belong to.
    fn expect_vp0(&self, header: &Header<'_>, vp_index: u16, vtl: u8) -> Result<(), ImageError> {
        if vp_index != 0 {
            let found = Number(vp_index.into());
            return Err(header.error(Reason::Field("VP index"), found, Number(0)));
        }
        if vtl != VTL2 {
            let found = Number(vtl.into());
            return Err(header.error(Reason::Field("VTL"), found, Number(VTL2.into())));
        }
        Ok(())
    }

    fn not_in_other_region(
        &self,
        header: &Header<'_>,
        range: MemoryRange,
    ) -> Result<(), ImageError> {
        let regions = self.image.regions.iter().map(|r| (r.place, r.range));
        let tables = self.image.page_tables.iter().map(|t| (t.place, t.range));
        for (place, other) in regions.chain(tables) {
            if other.overlaps(range) {
                let expected = HeaderAt(place, other);
                return Err(header.error(Reason::Overlap, Range(range), expected));
            }
        }
        Ok(())
    }

    fn limit(
        &self,
        header: &Header<'_>,
        count: usize,
        most: usize,
        what: &'static str,
    ) -> Result<(), ImageError> {
        if count < most {
            return Ok(());
        }
        let (found, most) = (Number(count as u64 + 1), Number(most as u64));
        Err(header.error(Reason::TooMany(what), found, most))
    }
}
