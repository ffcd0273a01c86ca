//! Reading of a file, and recognising the parts in it.
//!
//! An IGVM file has no names: it is a list of pages. The names are found as the boot shim
//! finds them. The registers of VP 0 give RSI, the distance from the shim's image base to
//! the page of `ShimParamsRaw`; the image base itself is not stated. So each page of the
//! file is tried as that page: it is the right one if, with the base that follows from
//! it, its own statement about VTL2's memory equals the required memory of the file. From
//! there every offset is known. A file in which no page fits is still shown, its pages
//! then belong to `unknown`.

use crate::check::{CheckError, check};
use crate::component::{Component, GpaRange};
use crate::guest::{self, GuestFile};
use crate::layout::{Layout, VTL0_CONFIG};
use igvm::hv_defs::Vtl;
use igvm::registers::X86Register;
use igvm::{IgvmDirectiveHeader, IgvmFile};
use igvm_defs::IgvmPageDataFlags;
use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::{
    MEASURED_VTL0_MAGIC, ParavisorCommandLine, ParavisorMeasuredVtl0Config,
};
use loader_defs::shim::ShimParamsRaw;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use thiserror::Error;
use zerocopy::FromBytes;

/// Why a file cannot be shown.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The structure of the file is broken.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The parser refuses it.
    #[error("the igvm library refuses the file: {0}")]
    Parse(igvm::Error),
    /// A page is imported twice.
    #[error("directive {directive}: the page at {gpa:#x} was imported before, expected once")]
    Overlap {
        /// Index of the directive.
        directive: usize,
        /// The page.
        gpa: u64,
    },
}

/// A page whose contents are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page<'a> {
    /// Index of its directive.
    pub directive: usize,
    /// Its flags.
    pub flags: IgvmPageDataFlags,
    /// Its contents; empty for a zero page.
    pub data: &'a [u8],
}

/// Memory that the host fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Where.
    pub range: GpaRange,
    /// Index of the area.
    pub area: u32,
}

/// A file that has been read.
#[derive(Debug)]
pub struct Image {
    /// The file, parsed.
    pub file: IgvmFile,
    /// Its size.
    pub file_bytes: usize,
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// The parts, sorted by address.
    pub components: Vec<(Component, GpaRange)>,
    /// The shim's image base and parameters, if recognised.
    pub shim: Option<(u64, ShimParamsRaw)>,
    /// The guest's files, if the image carries a guest.
    pub guest: Vec<GuestFile>,
    /// The first register list.
    pub registers: Option<(Vtl, Vec<X86Register>)>,
    /// Memory that the host fills.
    pub parameters: Vec<Parameter>,
    /// Page address to index of the directive.
    pages: BTreeMap<u64, usize>,
}

impl Image {
    /// Reads a file.
    pub fn read(bytes: &[u8]) -> Result<Self, ViewError> {
        check(bytes)?;
        let file = IgvmFile::new_from_binary(bytes, None).map_err(ViewError::Parse)?;
        let mut pages = BTreeMap::new();
        let mut areas = BTreeMap::new();
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut registers = None;
        for (directive, header) in file.directives().iter().enumerate() {
            let overlap = |gpa| ViewError::Overlap { directive, gpa };
            match header {
                IgvmDirectiveHeader::PageData { gpa, .. } => {
                    let taken = parameters.iter().any(|p| p.range.contains(*gpa));
                    if taken || pages.insert(*gpa, directive).is_some() {
                        return Err(overlap(*gpa));
                    }
                }
                IgvmDirectiveHeader::ParameterArea {
                    number_of_bytes,
                    parameter_area_index,
                    ..
                } => {
                    areas.insert(*parameter_area_index, *number_of_bytes);
                }
                IgvmDirectiveHeader::ParameterInsert(insert) => {
                    let area = insert.parameter_area_index;
                    let size = areas.get(&area).copied().unwrap_or_default();
                    let range = GpaRange::with_size(insert.gpa, size);
                    let other = parameters
                        .iter()
                        .any(|p| p.range.start < range.end && range.start < p.range.end);
                    let page = pages.range(range.start..range.end).next();
                    if other || page.is_some() {
                        return Err(overlap(page.map_or(range.start, |(gpa, _)| *gpa)));
                    }
                    parameters.push(Parameter { range, area });
                }
                IgvmDirectiveHeader::X64VbsVpContext {
                    vtl,
                    registers: list,
                    ..
                } if registers.is_none() => registers = Some((*vtl, list.clone())),
                _ => {}
            }
        }
        let mut image = Self {
            file,
            file_bytes: bytes.len(),
            sha256: Sha256::digest(bytes).into(),
            components: Vec::new(),
            shim: None,
            guest: Vec::new(),
            registers,
            parameters,
            pages,
        };
        image.shim = image.find_shim();
        image.components = image.recognise().unwrap_or_else(|| image.unrecognised());
        image.tell_guest_from_initrd();
        Ok(image)
    }

    /// The pages whose contents are in the file, by address.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Page<'_>)> {
        self.pages
            .iter()
            .filter_map(|(gpa, directive)| Some((*gpa, self.page_of(*directive)?)))
    }

    /// The pages of a range whose contents are in the file.
    pub fn pages_in(&self, range: GpaRange) -> impl Iterator<Item = (u64, Page<'_>)> {
        self.pages
            .range(range.start..range.end.max(range.start))
            .filter_map(|(gpa, directive)| Some((*gpa, self.page_of(*directive)?)))
    }

    /// The page at an address.
    pub fn page(&self, gpa: u64) -> Option<Page<'_>> {
        self.page_of(*self.pages.get(&gpa)?)
    }

    /// The place of a part.
    pub fn place(&self, component: Component) -> Option<GpaRange> {
        self.components
            .iter()
            .find(|(c, _)| *c == component)
            .map(|(_, range)| *range)
    }

    /// The memory that the file asks for in VTL2.
    pub fn required_memory(&self) -> Option<GpaRange> {
        self.file
            .directives()
            .iter()
            .find_map(|header| match header {
                IgvmDirectiveHeader::RequiredMemory {
                    gpa,
                    number_of_bytes,
                    vtl2_protectable: true,
                    ..
                } => Some(GpaRange::with_size(*gpa, u64::from(*number_of_bytes))),
                _ => None,
            })
    }

    /// The measured command line: policy and text.
    pub fn command_line(&self) -> Option<(u16, String)> {
        let page: ParavisorCommandLine =
            self.structure(self.place(Component::CommandLine)?.start)?;
        let text = page.text.get(..page.length.into())?;
        Some((page.policy, String::from_utf8_lossy(text).into_owned()))
    }

    /// A structure at the start of a page.
    pub fn structure<T: FromBytes>(&self, gpa: u64) -> Option<T> {
        let data = self.page(gpa)?.data;
        if data.is_empty() {
            return Some(T::new_zeroed()).filter(|_| size_of::<T>() as u64 <= PAGE_SIZE);
        }
        T::read_from_prefix(data).ok().map(|(value, _)| value)
    }

    fn page_of(&self, directive: usize) -> Option<Page<'_>> {
        match self.file.directives().get(directive)? {
            IgvmDirectiveHeader::PageData { flags, data, .. } => Some(Page {
                directive,
                flags: *flags,
                data,
            }),
            _ => None,
        }
    }

    fn register(&self, pick: impl Fn(&X86Register) -> Option<u64>) -> Option<u64> {
        self.registers.as_ref()?.1.iter().find_map(pick)
    }

    /// Finds the shim's parameters, see the module's text.
    fn find_shim(&self) -> Option<(u64, ShimParamsRaw)> {
        let memory = self.required_memory()?;
        let distance = self.shim_params_distance()?;
        self.pages_in(memory).find_map(|(gpa, page)| {
            // A zero page cannot be it, and there are many.
            if page.data.is_empty() {
                return None;
            }
            let params: ShimParamsRaw = self.structure(gpa)?;
            let base = gpa.checked_sub(distance)?;
            let start = base.checked_add_signed(params.memory_start_offset)?;
            let right = start == memory.start && params.memory_size == memory.size();
            right.then_some((base, params))
        })
    }

    /// Names every part; `None` if the shim was not found or its parameters contradict
    /// the memory.
    fn recognise(&self) -> Option<Vec<(Component, GpaRange)>> {
        let (base, params) = &self.shim?;
        let memory = self.required_memory()?;
        let at = |offset: i64, size: u64| {
            let start = base.checked_add_signed(offset)?;
            let end = start.checked_add(size.checked_next_multiple_of(PAGE_SIZE)?)?;
            Some(GpaRange { start, end }).filter(|range| memory.encloses(range))
        };
        let end_of_used = at(params.used_end, 0)?.start;
        let page_of = |gpa: u64| {
            let start = gpa / PAGE_SIZE * PAGE_SIZE;
            memory
                .contains(gpa)
                .then(|| GpaRange::with_size(start, PAGE_SIZE))
        };
        let gdt = self.register(|r| match r {
            X86Register::Gdtr(table) => Some(table.base),
            _ => None,
        });
        let cr3 = self.register(|r| match r {
            X86Register::Cr3(value) => Some(*value),
            _ => None,
        });

        let persisted = at(
            params.persisted_state_region_offset,
            params.persisted_state_region_size,
        )?;
        let initrd = at(params.initrd_offset, params.initrd_size)?;
        let sidecar = at(params.sidecar_offset, params.sidecar_size)?;
        let has_sidecar = params.sidecar_size > 0;
        // The kernel has no size of its own: it is what is imported between the persisted
        // state and the next part.
        let behind_kernel = if has_sidecar { sidecar.start } else { *base };
        let between = GpaRange {
            start: persisted.end,
            end: behind_kernel,
        };
        let kernel = self.pages_in(between).fold(None, |range, (gpa, _)| {
            let start = range.map_or(gpa, |r: GpaRange| r.start);
            Some(GpaRange {
                start,
                end: gpa.saturating_add(PAGE_SIZE),
            })
        });

        let parameter_region = at(params.parameter_region_offset, params.parameter_region_size)?;
        let mut parts = vec![
            (Component::PersistedState, persisted),
            (
                Component::Shim,
                GpaRange {
                    start: *base,
                    end: initrd.start.max(*base),
                },
            ),
            (Component::Initrd, initrd),
            (
                Component::ShimParams,
                page_of(base.checked_add(self.shim_params_distance()?)?)?,
            ),
            (
                Component::CommandLine,
                at(params.cmdline_offset, PAGE_SIZE)?,
            ),
            (
                Component::Reserved,
                at(
                    params.vtl2_reserved_region_offset,
                    params.vtl2_reserved_region_size,
                )?,
            ),
            (
                Component::Log,
                at(params.log_buffer_start, params.log_buffer_size)?,
            ),
            (
                Component::Heap,
                at(params.heap_start_offset, params.heap_size)?,
            ),
            (
                Component::Free,
                GpaRange {
                    start: end_of_used,
                    end: memory.end,
                },
            ),
        ];
        parts.extend(
            Layout::parameters_of(parameter_region)
                .into_iter()
                .filter(|(_, range)| parameter_region.encloses(range)),
        );
        parts.extend(kernel.map(|range| (Component::Kernel, range)));
        parts.extend(has_sidecar.then_some((Component::Sidecar, sidecar)));
        parts.extend(gdt.and_then(page_of).map(|range| (Component::Gdt, range)));
        parts.extend(cr3.and_then(page_of).map(|first| {
            let end = end_of_used.max(first.end);
            (Component::PageTables, GpaRange { end, ..first })
        }));
        let vtl0: Option<ParavisorMeasuredVtl0Config> = self.structure(VTL0_CONFIG.start);
        if vtl0.is_some_and(|config| config.magic == MEASURED_VTL0_MAGIC) {
            parts.push((Component::Vtl0Config, VTL0_CONFIG));
        }
        parts.retain(|(_, range)| range.size() > 0);
        parts.sort_by_key(|(_, range)| *range);
        Some(parts)
    }

    /// Makes the guest's files a part of their own.
    fn tell_guest_from_initrd(&mut self) {
        let Some(initrd) = self.place(Component::Initrd) else {
            return;
        };
        // No larger than the file: zero pages take no room in it, but a segment of a few
        // zeros is none.
        let mut bytes = Vec::new();
        for (gpa, page) in self.pages_in(initrd) {
            let offset = (gpa - initrd.start) as usize;
            if offset > bytes.len() + self.file_bytes {
                break;
            }
            bytes.resize(offset, 0);
            bytes.extend_from_slice(page.data);
        }
        let Some((guest, files)) = guest::find(&bytes, initrd) else {
            return;
        };
        self.guest = files;
        for part in &mut self.components {
            if part.0 == Component::Initrd {
                part.1.end = guest.start;
            }
        }
        self.components.push((Component::Guest, guest));
        self.components.sort_by_key(|(_, range)| *range);
    }

    /// What the shim finds in RSI: how far its parameters are behind its image base.
    fn shim_params_distance(&self) -> Option<u64> {
        self.register(|r| match r {
            X86Register::Rsi(value) => Some(*value),
            _ => None,
        })
    }

    /// Runs of pages without a name.
    fn unrecognised(&self) -> Vec<(Component, GpaRange)> {
        let mut runs: Vec<GpaRange> = Vec::new();
        for gpa in self.pages.keys() {
            match runs.last_mut() {
                Some(run) if run.end == *gpa => run.end = gpa.saturating_add(PAGE_SIZE),
                _ => runs.push(GpaRange::with_size(*gpa, PAGE_SIZE)),
            }
        }
        runs.extend(self.parameters.iter().map(|p| p.range));
        runs.retain(|range| range.size() > 0);
        runs.sort();
        runs.into_iter()
            .map(|range| (Component::Unknown, range))
            .collect()
    }
}
