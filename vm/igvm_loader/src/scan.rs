//! One pass over the headers: each is checked by itself and against those before it, and
//! what counts for this platform is kept. Addresses are still those in the file.

use super::error::Detail::{AtMost, HeaderAt, Within};
use super::error::Reason::{self, Field, Overlap};
use super::error::{ImageError, Place};
use super::header::{File, Header};
use super::vp_context::{self, InitialContext};
use crate::{MemoryRange, PAGE_SIZE};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use igvm_defs::*;
use zerocopy::{FromBytes, Immutable, KnownLayout};

type Result<T = ()> = core::result::Result<T, ImageError>;

/// The VTL that the host starts: the guest alone, or the paravisor.
pub(crate) const HIGHEST_VTLS: [u8; 2] = [0, 2];
/// End of the lower half of virtual addresses: images are identity-mapped.
const ADDRESS_LIMIT: u64 = 1 << 47;
const LARGE_PAGE: u64 = 2 << 20;
/// What the host offers.
const PLATFORM: &str = "VSM_ISOLATION with highest VTL 0 or 2";
/// Limits on what is kept, so that a hostile file cannot fill the host's heap. Pages that
/// follow one another in the file and in memory count once.
const MAX_RUNS: u64 = 1 << 16;
const MAX_OTHER_HEADERS: u64 = 4096;
const MAX_REGIONS: u64 = 64;

/// What counts for this platform.
#[derive(Debug, Default)]
pub(crate) struct Image<'a> {
    /// The VTL that starts.
    pub(crate) vtl: u8,
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
    parameters: Vec<(Place, IgvmVariableHeaderType, u64)>,
    inserted: bool,
}

/// A header that belongs to some platforms only.
trait Masked: FromBytes + KnownLayout + Immutable {
    fn mask(&self) -> u32;
}

macro_rules! masked {
    ($($header:ty)*) => {
        $(impl Masked for $header {
            fn mask(&self) -> u32 {
                self.compatibility_mask
            }
        })*
    };
}
masked!(IGVM_VHS_RELOCATABLE_REGION IGVM_VHS_PAGE_TABLE_RELOCATION IGVM_VHS_CCA_POLICY);
masked!(IGVM_VHS_PAGE_DATA IGVM_VHS_PARAMETER_INSERT IGVM_VHS_REQUIRED_MEMORY);
masked!(IGVM_VHS_ERROR_RANGE IGVM_VHS_VP_CONTEXT IGVM_VHS_SNP_ID_BLOCK);

/// State of the pass.
struct Scan<'a> {
    file: File<'a>,
    image: Image<'a>,
    /// Bit of our platform, 0 until it is found.
    mask: u32,
    all_masks: u32,
    /// Why a platform that is in the file is not ours.
    unusable: Option<ImageError>,
    areas: BTreeMap<u32, Area<'a>>,
    /// Region of the last run.
    last_region: Option<u64>,
    /// Headers that are not page data.
    others: u64,
}

/// Reads all headers.
pub(crate) fn scan<'a>(file: File<'a>) -> Result<Image<'a>> {
    let mut scan = Scan {
        file,
        image: Image::default(),
        mask: 0,
        all_masks: 0,
        unusable: None,
        areas: BTreeMap::new(),
        last_region: None,
        others: 0,
    };
    for header in file.headers() {
        let header = header?;
        match header.place {
            Place::Platform(..) => scan.platform(&header)?,
            _ if scan.mask == 0 => break,
            _ => scan.header(&header)?,
        }
    }
    if scan.mask == 0 {
        let none = Reason::Platform.at(Place::File, "no platform header", PLATFORM);
        return Err(scan.unusable.unwrap_or(none));
    }
    Ok(scan.image)
}

/// A header type that is not known here is skipped if it says that it may be.
fn skip_or_refuse(header: &Header<'_>) -> Result {
    let kind = header.kind.0;
    let expected = "a type of the IGVM specification, or bit 31 set";
    let optional = kind & IGVM_VHT_OPTIONAL_BIT != 0;
    header.ensure(optional, Reason::UnknownHeader, kind, expected)
}

/// A range with page-aligned ends, not empty and below the limit.
fn range(header: &Header<'_>, gpa: u64, size: u64) -> Result<MemoryRange> {
    header.aligned("GPA", gpa, PAGE_SIZE)?;
    header.aligned("size", size, PAGE_SIZE)?;
    header.ensure(size != 0, Field("size"), size, "at least one page")?;
    let range = MemoryRange::new(gpa, gpa.saturating_add(size));
    let all = MemoryRange::new(0, ADDRESS_LIMIT);
    header.ensure(all.covers(range), Field("range"), range, Within(all))?;
    Ok(range)
}

impl<'a> Scan<'a> {
    /// Takes the platform if it is ours; else keeps the reason why it is not.
    fn platform(&mut self, header: &Header<'_>) -> Result {
        if header.kind != IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM {
            return skip_or_refuse(header);
        }
        let raw: IGVM_VHS_SUPPORTED_PLATFORM = header.structure()?;
        let mask = raw.compatibility_mask;
        let right = mask.is_power_of_two() && mask & self.all_masks == 0;
        let expected = "one bit that no other platform has";
        header.ensure(right, Field("compatibility mask"), mask, expected)?;
        self.all_masks |= mask;
        if raw.platform_type != IgvmPlatformType::VSM_ISOLATION {
            let found = match raw.platform_type {
                IgvmPlatformType::NATIVE => "NATIVE",
                IgvmPlatformType::SEV_SNP => "SEV_SNP",
                IgvmPlatformType::TDX => "TDX",
                _ => "another platform type",
            };
            let error = Reason::Platform.at(header.place, found, PLATFORM);
            self.unusable.get_or_insert(error);
            return Ok(());
        }
        header.ensure(self.mask == 0, Overlap, "the platform again", "it once")?;
        let version = IGVM_VSM_ISOLATION_PLATFORM_VERSION.into();
        header.equal("platform version", raw.platform_version.into(), version)?;
        let vtl = raw.highest_vtl;
        let right = HIGHEST_VTLS.contains(&vtl);
        header.ensure(right, Field("highest VTL"), u64::from(vtl), "0 or 2")?;
        header.equal("shared GPA boundary", raw.shared_gpa_boundary, 0)?;
        self.mask = mask;
        self.image.vtl = vtl;
        Ok(())
    }

    /// The image has a context for VP 0 in its highest VTL only, so that is what registers
    /// belong to.
    fn expect_vp0(&self, header: &Header<'_>, vp_index: u16, vtl: u8) -> Result {
        header.equal("VP index", vp_index.into(), 0)?;
        header.equal("VTL", vtl.into(), self.image.vtl.into())
    }

    /// An initialization header or directive.
    fn header(&mut self, header: &Header<'_>) -> Result {
        use IgvmVariableHeaderType as T;
        if header.kind == T::IGVM_VHT_PAGE_DATA {
            return self.ours(header, Self::page_data);
        }
        self.others += 1;
        let (n, most) = (self.others, MAX_OTHER_HEADERS);
        header.ensure(n <= most, Reason::TooMany("headers"), n, AtMost(most))?;
        match header.kind {
            T::IGVM_VHT_RELOCATABLE_REGION => self.ours(header, Self::region),
            T::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION => self.ours(header, Self::page_tables),
            T::IGVM_VHT_PARAMETER_AREA => self.parameter_area(header),
            T::IGVM_VHT_PARAMETER_INSERT => self.ours(header, Self::parameter_insert),
            T::IGVM_VHT_VP_CONTEXT => self.ours(header, Self::vp_context),
            T::IGVM_VHT_REQUIRED_MEMORY => self.ours(header, Self::required_memory),
            T::IGVM_VHT_ERROR_RANGE => self.ours(header, Self::error_range),
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
            T::IGVM_VHT_CCA_POLICY => self.ours(header, Self::foreign::<IGVM_VHS_CCA_POLICY>),
            T::IGVM_VHT_SNP_ID_BLOCK => self.ours(header, Self::foreign::<IGVM_VHS_SNP_ID_BLOCK>),
            // Policy of isolated platforms; CoRIM document and signature (which have names
            // only behind a feature of `igvm_defs`), version text and measurement, which
            // are for whoever attests or reads.
            T::IGVM_VHT_GUEST_POLICY
            | T(0x104 | 0x105)
            | T::IGVM_VHT_VERSION_STRING
            | T::IGVM_VHT_VBS_MEASUREMENT => Ok(()),
            _ => skip_or_refuse(header),
        }
    }

    /// Handles a header if it is for our platform.
    fn ours<T: Masked>(
        &mut self,
        header: &Header<'_>,
        handle: fn(&mut Self, &Header<'_>, T) -> Result,
    ) -> Result {
        let raw: T = header.structure()?;
        match raw.mask() & self.mask {
            0 => Ok(()),
            _ => handle(self, header, raw),
        }
    }

    /// A header of an isolation technology that this host is not.
    fn foreign<T>(&mut self, header: &Header<'_>, _: T) -> Result {
        header.ensure(false, Reason::Platform, "a header for it", PLATFORM)
    }

    fn region(&mut self, header: &Header<'_>, raw: IGVM_VHS_RELOCATABLE_REGION) -> Result {
        let (rip, gdtr) = (
            IGVM_VHF_RELOCATABLE_REGION_APPLY_RIP,
            IGVM_VHF_RELOCATABLE_REGION_APPLY_GDTR,
        );
        let known = IGVM_VHF_RELOCATABLE_REGION_IS_VTL2 | rip | gdtr;
        header.reserved((raw.flags & !known).into())?;
        self.expect_vp0(header, raw.vp_index, raw.vtl)?;
        let alignment = raw.relocation_alignment;
        let right = alignment.is_power_of_two() && alignment < ADDRESS_LIMIT;
        let expected = "a power of two from 0x1000";
        header.ensure(right, Field("alignment"), alignment, expected)?;
        header.aligned("alignment", alignment, PAGE_SIZE)?;
        let (gpa, size) = (raw.relocation_region_gpa, raw.relocation_region_size);
        let (minimum, maximum) = (raw.minimum_relocation_gpa, raw.maximum_relocation_gpa);
        header.aligned("region GPA", gpa, alignment)?;
        header.aligned("minimum GPA", minimum, alignment)?;
        header.aligned("maximum GPA", maximum, alignment)?;
        let range = range(header, gpa, size)?;
        self.not_in_other_region(header, range)?;
        self.image.regions.push(Region {
            place: header.place,
            range,
            alignment,
            limits: MemoryRange::new(minimum, maximum.min(ADDRESS_LIMIT)),
            apply_rip: raw.flags & rip != 0,
            apply_gdtr: raw.flags & gdtr != 0,
        });
        let (n, most) = (self.image.regions.len() as u64, MAX_REGIONS);
        header.ensure(n <= most, Reason::TooMany("regions"), n, AtMost(most))
    }

    fn page_tables(&mut self, header: &Header<'_>, raw: IGVM_VHS_PAGE_TABLE_RELOCATION) -> Result {
        header.reserved(raw.reserved.into())?;
        self.expect_vp0(header, raw.vp_index, raw.vtl)?;
        let range = range(header, raw.gpa, raw.size)?;
        let (used, most) = (raw.used_size, raw.size);
        header.aligned("used size", used, PAGE_SIZE)?;
        header.ensure(used <= most, Field("used size"), used, AtMost(most))?;
        self.not_in_other_region(header, range)?;
        let first = self.image.page_tables.is_none();
        header.ensure(first, Overlap, "a second region", "one region")?;
        let place = header.place;
        self.image.page_tables = Some(PageTableRegion { place, range, used });
        Ok(())
    }

    fn not_in_other_region(&self, header: &Header<'_>, range: MemoryRange) -> Result {
        let regions = self.image.regions.iter().map(|r| (r.place, r.range));
        let tables = self.image.page_tables.iter().map(|t| (t.place, t.range));
        let mut others = regions.chain(tables);
        match others.find(|(_, other)| other.overlaps(range)) {
            Some((place, other)) => header.ensure(false, Overlap, range, HeaderAt(place, other)),
            None => Ok(()),
        }
    }

    fn page_data(&mut self, header: &Header<'_>, raw: IGVM_VHS_PAGE_DATA) -> Result {
        header.reserved(raw.reserved.into())?;
        header.reserved(raw.flags.reserved().into())?;
        // The other types belong to SNP.
        let data_type = raw.data_type.0.into();
        header.equal(
            "page data type",
            data_type,
            IgvmPageDataType::NORMAL.0.into(),
        )?;
        let size = match raw.flags.is_2mb_page() {
            true => LARGE_PAGE,
            false => PAGE_SIZE,
        };
        header.aligned("GPA", raw.gpa, size)?;
        let data = self.data(header, raw.file_offset, size)?;
        self.run(header, range(header, raw.gpa, size)?, data)
    }

    /// File data, or `None` for zeros.
    fn data(&self, header: &Header<'_>, offset: u32, size: u64) -> Result<Option<&'a [u8]>> {
        match offset {
            0 => Ok(None),
            _ => self.file.data(header, offset, Some(size)).map(Some),
        }
    }

    /// Adds memory that is written. Joins it to the last run if it continues that one
    /// in memory, in the file and in the count of directives.
    fn run(&mut self, header: &Header<'_>, range: MemoryRange, data: Option<&'a [u8]>) -> Result {
        let region = self.region_of(header, range)?;
        let previous = core::mem::replace(&mut self.last_region, region);
        if let Some(last) = self.image.runs.last_mut()
            && previous == region
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
        self.image.runs.push(Run {
            range,
            data,
            kind: header.kind,
            index: header.index,
            step: range.size(),
        });
        let (n, most) = (self.image.runs.len() as u64, MAX_RUNS);
        header.ensure(n <= most, Reason::TooMany("pieces"), n, AtMost(most))
    }

    /// Which region a range belongs to; it must not be partly in one.
    fn region_of(&self, header: &Header<'_>, range: MemoryRange) -> Result<Option<u64>> {
        let tables = self.image.page_tables.iter().map(|tables| tables.range);
        let regions = self.image.regions.iter().map(|region| region.range);
        let mut regions = tables.chain(regions);
        let Some(region) = regions.find(|region| region.overlaps(range)) else {
            return Ok(None);
        };
        let reason = Field("range that is partly in a relocatable region");
        header.ensure(region.covers(range), reason, range, Within(region))?;
        Ok(Some(region.start()))
    }

    fn parameter_area(&mut self, header: &Header<'_>) -> Result {
        let raw: IGVM_VHS_PARAMETER_AREA = header.structure()?;
        let size = range(header, 0, raw.number_of_bytes)?.size();
        let area = Area {
            size,
            data: self.data(header, raw.file_offset, size)?,
            parameters: Vec::new(),
            inserted: false,
        };
        let index = raw.parameter_area_index;
        let first = self.areas.insert(index, area).is_none();
        header.ensure(first, Reason::ParameterArea, index, "every index once")
    }

    /// The area with this index, if it can still be filled.
    fn area(&mut self, header: &Header<'_>, index: u32) -> Result<&mut Area<'a>> {
        let expected = "an index that is declared before and not yet inserted";
        let error = Reason::ParameterArea.at(header.place, index, expected);
        let area = self.areas.get_mut(&index);
        area.filter(|area| !area.inserted).ok_or(error)
    }

    fn parameter(&mut self, header: &Header<'_>) -> Result {
        let raw: IGVM_VHS_PARAMETER = header.structure()?;
        let area = self.area(header, raw.parameter_area_index)?;
        let (offset, most) = (u64::from(raw.byte_offset), area.size - 1);
        let reason = Field("offset in the parameter area");
        header.ensure(offset <= most, reason, offset, AtMost(most))?;
        area.parameters.push((header.place, header.kind, offset));
        Ok(())
    }

    fn parameter_insert(&mut self, header: &Header<'_>, raw: IGVM_VHS_PARAMETER_INSERT) -> Result {
        let area = self.area(header, raw.parameter_area_index)?;
        area.inserted = true;
        let (size, data) = (area.size, area.data);
        let parameters = core::mem::take(&mut area.parameters);
        let range = range(header, raw.gpa, size)?;
        let tables = self.image.page_tables;
        let right = tables.is_none_or(|tables| !tables.range.overlaps(range));
        let reason = Field("parameter insert inside the page tables");
        header.ensure(right, reason, range, "memory outside of their region")?;
        self.run(header, range, data)?;
        let deposits = parameters.into_iter().map(|(place, kind, offset)| Deposit {
            place,
            kind,
            room: MemoryRange::new(range.start() + offset, range.end()),
        });
        self.image.deposits.extend(deposits);
        Ok(())
    }

    fn required_memory(&mut self, header: &Header<'_>, raw: IGVM_VHS_REQUIRED_MEMORY) -> Result {
        header.reserved(raw.reserved.into())?;
        header.reserved(raw.flags.reserved().into())?;
        self.image.required.push(Required {
            place: header.place,
            range: range(header, raw.gpa, raw.number_of_bytes.into())?,
            vtl2_protectable: raw.flags.vtl2_protectable(),
        });
        Ok(())
    }

    fn error_range(&mut self, header: &Header<'_>, raw: IGVM_VHS_ERROR_RANGE) -> Result {
        self.run(header, range(header, raw.gpa, raw.size_bytes.into())?, None)
    }

    fn vp_context(&mut self, header: &Header<'_>, raw: IGVM_VHS_VP_CONTEXT) -> Result {
        let first = self.image.context.is_none();
        header.ensure(first, Overlap, "a second VP context", "one")?;
        let context = vp_context::parse(&self.file, header, &raw, self.image.vtl)?;
        self.image.context = Some((header.place, context));
        Ok(())
    }
}
