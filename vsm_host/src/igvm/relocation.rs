//! Where the image goes.
//!
//! All relocatable regions, the page tables and VTL2's RAM move by one common offset, so
//! that what was contiguous stays so. The offset is 0 if the image can stay where it was
//! built for, else the lowest one that fits.

use super::error::Detail::{AtLeast, Bytes, HeaderAt, Hex, Range, Text};
use super::error::ImageError;
use super::error::Place;
use super::error::Reason;
use super::scan::PageTableRegion;
use super::scan::Region;
use super::scan::Required;
use super::scan::Run;
use crate::options::Options;
use crate::platform::MachineInfo;
use crate::platform::MemoryRange;
use crate::platform::PAGE_SIZE;
use crate::platform::normalize;
use alloc::vec::Vec;
use hv_defs::vp_context::HvInitialVpContext;

/// What the file says about places.
#[derive(Clone, Copy)]
pub(crate) struct Layout<'a> {
    pub(crate) regions: &'a [Region],
    pub(crate) page_tables: Option<&'a PageTableRegion>,
    pub(crate) required: &'a [Required],
}

/// What was decided.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) offset: i64,
    pub(crate) vtl2_memory: MemoryRange,
    /// What moves, as built: regions, page tables and VTL2's RAM; disjoint, sorted.
    pub(crate) moved: Vec<MemoryRange>,
}

impl Layout<'_> {
    /// Chooses the offset.
    pub(crate) fn place(
        &self,
        machine: &MachineInfo,
        options: &Options<'_>,
        runs: &[Run<'_>],
    ) -> Result<Placement, ImageError> {
        let vtl2_memory = self.vtl2_memory(options)?;
        let mut moved = Vec::from_iter(self.moving().chain([vtl2_memory]));
        normalize(&mut moved);
        // Whatever stays where it is may not be hit either.
        let mut busy = machine.busy.clone();
        busy.extend(
            runs.iter()
                .map(|run| run.range)
                .filter(|r| !self.moves(r.start())),
        );
        normalize(&mut busy);

        let ram = machine.ram_runs();
        let misfit = |offset| self.misfit(vtl2_memory, &ram, &busy, machine, offset);
        let Some(as_built) = misfit(0) else {
            return self.check_required(
                &ram,
                Placement {
                    offset: 0,
                    vtl2_memory,
                    moved,
                },
            );
        };
        if self.regions.is_empty() {
            return Err(as_built);
        }
        let offset = self
            .lowest_offset(vtl2_memory, &ram, &busy)
            .filter(|offset| misfit(*offset).is_none())
            .ok_or_else(|| {
                Reason::NoPlace.at(
                    self.regions[0].place,
                    Text("no RAM run that is long enough and within the region's limits"),
                    Bytes(vtl2_memory.size()),
                )
            })?;
        let placement = Placement {
            offset,
            vtl2_memory: vtl2_memory.moved(offset).ok_or(as_built)?,
            moved,
        };
        self.check_required(&ram, placement)
    }

    /// An address after relocation.
    pub(crate) fn relocated(&self, address: u64, offset: i64) -> u64 {
        if self.moves(address) {
            address.wrapping_add_signed(offset)
        } else {
            address
        }
    }

    /// Moves what lies in regions or page tables.
    pub(crate) fn relocate_runs(&self, runs: &mut [Run<'_>], offset: i64) {
        for run in runs {
            let start = self.relocated(run.range.start(), offset);
            run.range = MemoryRange::new(start, start + run.range.size());
        }
    }

    /// Adjusts the registers that the regions ask for. Several regions move by the same
    /// offset, so a register that two of them name moves once.
    pub(crate) fn relocate_registers(&self, state: &mut HvInitialVpContext, offset: i64) {
        if self.regions.iter().any(|region| region.apply_rip) {
            state.rip = state.rip.wrapping_add_signed(offset);
        }
        if self.regions.iter().any(|region| region.apply_gdtr) {
            state.gdtr.base = state.gdtr.base.wrapping_add_signed(offset);
        }
    }

    /// Regions and page tables as built. Page tables move only along with a region.
    fn moving(&self) -> impl Iterator<Item = MemoryRange> {
        let tables = self.page_tables.filter(|_| !self.regions.is_empty());
        let regions = self.regions.iter().map(|region| region.range);
        regions.chain(tables.map(|tables| tables.range))
    }

    fn moves(&self, address: u64) -> bool {
        self.moving().any(|range| range.contains(address))
    }

    /// VTL2's RAM as built: what is required for it and what moves, which must be one run;
    /// and more behind it if that was asked for.
    fn vtl2_memory(&self, options: &Options<'_>) -> Result<MemoryRange, ImageError> {
        let required = self
            .required
            .iter()
            .filter(|required| required.vtl2_protectable);
        let mut memory = Vec::from_iter(required.map(|r| r.range).chain(self.moving()));
        normalize(&mut memory);
        let memory = match memory.as_slice() {
            [one] => *one,
            [] => {
                let expected = Text("a RequiredMemory directive that is vtl2_protectable");
                return Err(Reason::Vtl2Memory.at(Place::File, Text("none"), expected));
            }
            [_, second, ..] => {
                let expected = Text("one contiguous range");
                return Err(Reason::Vtl2Memory.at(Place::File, Range(*second), expected));
            }
        };
        let size = options.vtl2_memory.unwrap_or(memory.size());
        if size < memory.size() {
            return Err(Reason::Field("vtl2_memory=").at(
                Place::Machine,
                Hex(size),
                AtLeast(memory.size()),
            ));
        }
        MemoryRange::with_size(memory.start(), size).ok_or_else(|| {
            let expected = Text("an end below 2^64");
            Reason::Field("vtl2_memory=").at(Place::Machine, Hex(size), expected)
        })
    }

    /// What stands against an offset.
    fn misfit(
        &self,
        vtl2_memory: MemoryRange,
        ram: &[MemoryRange],
        busy: &[MemoryRange],
        machine: &MachineInfo,
        offset: i64,
    ) -> Option<ImageError> {
        let place = self
            .required
            .iter()
            .find(|r| r.vtl2_protectable)
            .map(|r| r.place);
        let place = place
            .or(self.regions.first().map(|r| r.place))
            .unwrap_or(Place::File);
        let memory = vtl2_memory.moved(offset)?;
        if let Some(error) = not_ram(place, memory, ram, machine) {
            return Some(error);
        }
        for region in self.regions {
            let range = region.range.moved(offset)?;
            if offset != 0 && !region.limits.covers(range) {
                let expected = super::Detail::Within(region.limits);
                return Some(Reason::NoPlace.at(region.place, Range(range), expected));
            }
        }
        // An image without relocatable regions meets `busy` when its runs are checked.
        self.moving().find_map(|range| {
            let range = range.moved(offset)?;
            let hit = busy.iter().find(|busy| busy.overlaps(range))?;
            Some(Reason::Busy.at(place, Range(*hit), Text("other memory")))
        })
    }

    /// The lowest offset for which all fits.
    fn lowest_offset(
        &self,
        vtl2_memory: MemoryRange,
        ram: &[MemoryRange],
        busy: &[MemoryRange],
    ) -> Option<i64> {
        let alignment = self.regions.iter().map(|r| r.alignment).max()? as i64;
        // All addresses are below 2^48 or checked for overflow, so differences fit.
        let difference = |a: u64, b: u64| i64::try_from(i128::from(a) - i128::from(b)).ok();
        let mut lowest = i64::MIN;
        let mut highest = i64::MAX;
        for region in self.regions {
            lowest = lowest.max(difference(region.limits.start(), region.range.start())?);
            highest = highest.min(difference(region.limits.end(), region.range.end())?);
        }
        for run in ram {
            let first = lowest.max(difference(run.start(), vtl2_memory.start())?);
            let last = highest.min(difference(run.end(), vtl2_memory.end())?);
            let mut offset = align_up(first, alignment)?;
            // Each step passes at least one busy range of the sorted list for one of the
            // moving ranges, so this ends.
            while offset <= last {
                let behind = self.moving().find_map(|range| {
                    let moved = range.moved(offset)?;
                    let hit = busy.partition_point(|busy| busy.end() <= moved.start());
                    let hit = busy.get(hit).filter(|busy| busy.overlaps(moved))?;
                    difference(hit.end(), range.start())
                });
                match behind {
                    None => return Some(offset),
                    Some(behind) => offset = align_up(behind, alignment)?,
                }
            }
        }
        None
    }

    /// Memory that is required outside of VTL2 must be there too.
    fn check_required(
        &self,
        ram: &[MemoryRange],
        placement: Placement,
    ) -> Result<Placement, ImageError> {
        for required in self.required {
            let start = self.relocated(required.range.start(), placement.offset);
            let range = MemoryRange::new(start, start + required.range.size());
            // What is VTL2's moved with VTL2 and has been checked.
            let checked = required.vtl2_protectable;
            if !checked && !ram.iter().any(|ram| ram.covers(range)) {
                let expected = Text("RAM");
                return Err(Reason::NotRam.at(required.place, Range(range), expected));
            }
        }
        Ok(placement)
    }
}

/// Checks all that will be written: RAM, not the host's, not in use, nothing twice. Sorts
/// the runs by address.
pub(crate) fn check_memory(runs: &mut [Run<'_>], machine: &MachineInfo) -> Result<(), ImageError> {
    runs.sort_unstable_by_key(|run| (run.range, run.index));
    for pair in runs.windows(2) {
        let [first, second] = pair else { continue };
        if first.range.overlaps(second.range) {
            // The later directive is the one at fault.
            let common = first.range.intersection(second.range);
            let (at_first, at_second) = (
                first.place_of(common.start()),
                second.place_of(common.start()),
            );
            let (place, other, range) = if first.index > second.index {
                (at_first, at_second, second.range)
            } else {
                (at_second, at_first, first.range)
            };
            return Err(Reason::Overlap.at(place, Range(common), HeaderAt(other, range)));
        }
    }
    let ram = machine.ram_runs();
    let mut busy = machine.busy.clone();
    normalize(&mut busy);
    for run in runs.iter() {
        let from = ram.partition_point(|ram| ram.end() <= run.range.start());
        let covered = ram.get(from).copied().unwrap_or(MemoryRange::new(0, 0));
        if !covered.covers(run.range) {
            let bad = if covered.contains(run.range.start()) {
                covered.end()
            } else {
                run.range.start()
            };
            let page = MemoryRange::new(bad, bad.saturating_add(PAGE_SIZE));
            let place = run.place_of(bad);
            return Err(
                not_ram(place, page, &ram, machine).unwrap_or(Reason::NotRam.at(
                    place,
                    Range(run.range),
                    Text("RAM"),
                )),
            );
        }
        let from = busy.partition_point(|busy| busy.end() <= run.range.start());
        if let Some(hit) = busy.get(from).filter(|busy| busy.overlaps(run.range)) {
            let common = hit.intersection(run.range);
            let place = run.place_of(common.start());
            return Err(Reason::Busy.at(place, Range(common), Text("other memory")));
        }
    }
    Ok(())
}

/// Why a range is not RAM that a VTL may have.
fn not_ram(
    place: Place,
    range: MemoryRange,
    ram: &[MemoryRange],
    machine: &MachineInfo,
) -> Option<ImageError> {
    if ram.iter().any(|ram| ram.covers(range)) {
        return None;
    }
    if machine.own.iter().any(|own| own.overlaps(range)) {
        return Some(Reason::HostMemory.at(place, Range(range), Text("memory of the guest")));
    }
    // The longest run helps the person who has to give the machine more memory.
    let longest = ram.iter().max_by_key(|ram| ram.size()).copied();
    let expected = longest.map_or(Text("RAM"), super::Detail::Within);
    Some(Reason::NotRam.at(place, Range(range), expected))
}

fn align_up(value: i64, alignment: i64) -> Option<i64> {
    match value.rem_euclid(alignment) {
        0 => Some(value),
        rest => value.checked_add(alignment - rest),
    }
}
