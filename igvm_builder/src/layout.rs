//! Where everything is in VTL2's memory. The order is that of the original, low to high:
//! hosts, usermode and people know it.

use crate::component::{Component, GpaRange, human_size};
use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::{
    PARAVISOR_CONFIG_DEVICE_TREE_PAGE_INDEX, PARAVISOR_CONFIG_DEVICE_TREE_SIZE_PAGES,
    PARAVISOR_CONFIG_PPTT_PAGE_INDEX, PARAVISOR_CONFIG_PPTT_SIZE_PAGES,
    PARAVISOR_CONFIG_SLIT_PAGE_INDEX, PARAVISOR_CONFIG_SLIT_SIZE_PAGES, PARAVISOR_HEAP_PAGES,
    PARAVISOR_LOG_BUFFER_PAGES, PARAVISOR_MEASURED_IMPORTED_REGIONS_PAGE_INDEX,
    PARAVISOR_MEASURED_VTL2_CONFIG_PAGE_INDEX, PARAVISOR_PAGE_HASHES_PAGE_INDEX,
    PARAVISOR_PAGE_HASHES_SIZE_PAGES, PARAVISOR_PARAMETER_REGION_PAGES,
    PARAVISOR_PERSISTED_STATE_REGION_SIZE, PARAVISOR_RESERVED_PAGES,
    PARAVISOR_VTL0_MEASURED_CONFIG_PAGE_X64,
};
use page_table::LeafSize;
use thiserror::Error;

/// The parts do not fit into the memory that the manifest asks for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the image needs {needed} bytes ({}), {available} bytes ({}) are available: memory.size of \
     the manifest is too small; largest parts: {largest}",
    human_size(*needed),
    human_size(*available)
)]
pub struct OutOfSpace {
    /// Bytes from the base to the end of the page tables.
    pub needed: u64,
    /// Size of VTL2's memory.
    pub available: u64,
    /// The largest parts with their sizes.
    pub largest: String,
}

/// What the layout depends on.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// VTL2's memory as built.
    pub memory: GpaRange,
    /// Size of the kernel in memory.
    pub kernel_size: u64,
    /// Size of the sidecar in memory, 0 if there is none.
    pub sidecar_size: u64,
    /// Size of the shim in memory.
    pub shim_size: u64,
    /// What the shim's start has to be a multiple of.
    pub shim_alignment: u64,
    /// Size of the initrd.
    pub initrd_size: u64,
}

/// The place of every part; page aligned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// VTL2's memory as built.
    pub memory: GpaRange,
    /// State that survives servicing.
    pub persisted_state: GpaRange,
    /// Linux.
    pub kernel: GpaRange,
    /// The sidecar.
    pub sidecar: Option<GpaRange>,
    /// The boot shim with BSS.
    pub shim: GpaRange,
    /// The initrd.
    pub initrd: GpaRange,
    /// The GDT.
    pub gdt: GpaRange,
    /// `ShimParamsRaw`.
    pub shim_params: GpaRange,
    /// The measured command line.
    pub command_line: GpaRange,
    /// Pages for isolated platforms.
    pub reserved: GpaRange,
    /// Parameters and measured configuration.
    pub parameter_region: GpaRange,
    /// The shim's log.
    pub log: GpaRange,
    /// The shim's heap.
    pub heap: GpaRange,
    /// The page tables, with spare ones for relocation.
    pub page_tables: GpaRange,
}

/// The measured configuration of VTL0, which has a fixed place.
pub const VTL0_CONFIG: GpaRange = GpaRange::with_size(
    PARAVISOR_VTL0_MEASURED_CONFIG_PAGE_X64 * PAGE_SIZE,
    PAGE_SIZE,
);

impl Layout {
    /// Places everything.
    pub fn new(demand: &Demand) -> Result<Self, OutOfSpace> {
        let memory = demand.memory;
        let large = LeafSize::Size2M.bytes();
        let mut next = memory.start;
        // Sizes come from files, so they are far below 2^63 and the sums cannot overflow;
        // a memory that is too small is found at the end, when the whole need is known.
        let mut take = |size: u64, alignment: u64| {
            let start = next.next_multiple_of(alignment);
            next = start + size.next_multiple_of(PAGE_SIZE);
            GpaRange { start, end: next }
        };
        let pages = |count: u64| count * PAGE_SIZE;

        let persisted_state = take(PARAVISOR_PERSISTED_STATE_REGION_SIZE, large);
        let kernel = take(demand.kernel_size, large);
        let sidecar = (demand.sidecar_size > 0).then(|| take(demand.sidecar_size, large));
        let layout = Self {
            memory,
            persisted_state,
            kernel,
            sidecar,
            shim: take(demand.shim_size, demand.shim_alignment),
            initrd: take(demand.initrd_size, PAGE_SIZE),
            gdt: take(PAGE_SIZE, PAGE_SIZE),
            shim_params: take(PAGE_SIZE, PAGE_SIZE),
            command_line: take(PAGE_SIZE, PAGE_SIZE),
            reserved: take(pages(PARAVISOR_RESERVED_PAGES), PAGE_SIZE),
            parameter_region: take(pages(PARAVISOR_PARAMETER_REGION_PAGES), PAGE_SIZE),
            log: take(pages(PARAVISOR_LOG_BUFFER_PAGES), PAGE_SIZE),
            heap: take(pages(PARAVISOR_HEAP_PAGES), PAGE_SIZE),
            page_tables: take(pages(page_table_pages(memory.size())), PAGE_SIZE),
        };
        if layout.page_tables.end > memory.end {
            let mut parts = layout.components();
            parts.sort_by_key(|(_, range)| std::cmp::Reverse(range.size()));
            let largest: Vec<_> = parts
                .iter()
                .take(3)
                .map(|(part, range)| format!("{part} {}", human_size(range.size())))
                .collect();
            return Err(OutOfSpace {
                needed: layout.page_tables.end - memory.start,
                available: memory.size(),
                largest: largest.join(", "),
            });
        }
        Ok(layout)
    }

    /// The area that holds anything, from the first byte of VTL2's memory.
    pub const fn used(&self) -> GpaRange {
        GpaRange {
            start: self.memory.start,
            end: self.page_tables.end,
        }
    }

    /// The pieces of the parameter region.
    pub const fn parameters(&self) -> [(Component, GpaRange); 6] {
        Self::parameters_of(self.parameter_region)
    }

    /// The pieces of a parameter region that is at `region`.
    pub const fn parameters_of(region: GpaRange) -> [(Component, GpaRange); 6] {
        [
            (
                Component::Slit,
                parameter(
                    region,
                    PARAVISOR_CONFIG_SLIT_PAGE_INDEX,
                    PARAVISOR_CONFIG_SLIT_SIZE_PAGES,
                ),
            ),
            (
                Component::Pptt,
                parameter(
                    region,
                    PARAVISOR_CONFIG_PPTT_PAGE_INDEX,
                    PARAVISOR_CONFIG_PPTT_SIZE_PAGES,
                ),
            ),
            (
                Component::DeviceTree,
                parameter(
                    region,
                    PARAVISOR_CONFIG_DEVICE_TREE_PAGE_INDEX,
                    PARAVISOR_CONFIG_DEVICE_TREE_SIZE_PAGES,
                ),
            ),
            (
                Component::ImportedRegions,
                parameter(region, PARAVISOR_MEASURED_IMPORTED_REGIONS_PAGE_INDEX, 1),
            ),
            (
                Component::Vtl2Config,
                parameter(region, PARAVISOR_MEASURED_VTL2_CONFIG_PAGE_INDEX, 1),
            ),
            (
                Component::PageHashes,
                parameter(
                    region,
                    PARAVISOR_PAGE_HASHES_PAGE_INDEX,
                    PARAVISOR_PAGE_HASHES_SIZE_PAGES,
                ),
            ),
        ]
    }

    /// The page with the list of imported regions.
    pub const fn imported_regions(&self) -> GpaRange {
        parameter(
            self.parameter_region,
            PARAVISOR_MEASURED_IMPORTED_REGIONS_PAGE_INDEX,
            1,
        )
    }

    /// The page with the measured configuration of VTL2.
    pub const fn vtl2_config(&self) -> GpaRange {
        parameter(
            self.parameter_region,
            PARAVISOR_MEASURED_VTL2_CONFIG_PAGE_INDEX,
            1,
        )
    }

    /// Every part with its place, sorted by address; gaps are left by alignment only.
    pub fn components(&self) -> Vec<(Component, GpaRange)> {
        let mut parts = vec![
            (Component::Vtl0Config, VTL0_CONFIG),
            (Component::PersistedState, self.persisted_state),
            (Component::Kernel, self.kernel),
            (Component::Shim, self.shim),
            (Component::Initrd, self.initrd),
            (Component::Gdt, self.gdt),
            (Component::ShimParams, self.shim_params),
            (Component::CommandLine, self.command_line),
            (Component::Reserved, self.reserved),
            (Component::Log, self.log),
            (Component::Heap, self.heap),
            (Component::PageTables, self.page_tables),
        ];
        parts.extend(self.sidecar.map(|range| (Component::Sidecar, range)));
        parts.extend(self.parameters());
        if self.page_tables.end < self.memory.end {
            let free = GpaRange {
                start: self.page_tables.end,
                end: self.memory.end,
            };
            parts.push((Component::Free, free));
        }
        parts.retain(|(_, range)| range.size() > 0);
        parts.sort_by_key(|(_, range)| *range);
        parts
    }
}

/// A piece of a parameter region.
const fn parameter(region: GpaRange, page_index: u64, pages: u64) -> GpaRange {
    GpaRange::with_size(
        region.start.saturating_add(page_index * PAGE_SIZE),
        pages * PAGE_SIZE,
    )
}

/// Pages set aside for the page tables. A host that relocates the image rewrites the
/// tables in place, and at another address the same memory may need more of them: one
/// table more on each level where it crosses a border.
const fn page_table_pages(memory_size: u64) -> u64 {
    5 + 2 * memory_size.div_ceil(LeafSize::Size1G.bytes())
}
