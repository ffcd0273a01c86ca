//! Where the image goes.
//!
//! All relocatable regions, the page tables and VTL2's RAM move by one common offset, so
//! that what was contiguous stays so. The offset is 0 if the image can stay where it was
//! built for, else the lowest one that fits.

use super::error::Detail::{AtLeast, HeaderAt, Within};
use super::error::{ImageError, Place, Reason};
use super::scan::{PageTableRegion, Region, Required, Run};
use crate::Options;
use crate::{MachineInfo, MemoryRange, PAGE_SIZE, normalize};
use alloc::vec::Vec;
use hv_defs::vp_context::HvInitialVpContext;

/// What the file says about places.
#[derive(Clone, Copy)]
pub(crate) struct Layout<'a> {
    pub(crate) vtl: u8,
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
        if self.vtl == 0 {
            return self.stay(machine, options);
        }
        let vtl2_memory = self.vtl2_memory(options)?;
        let mut moved = Vec::from_iter(self.moving().chain([vtl2_memory]));
        normalize(&mut moved);
        // Whatever stays where it is may not be hit either.
        let mut busy = machine.busy.clone();
        let staying = runs.iter().filter(|run| !self.moves(run.range.start()));
        busy.extend(staying.map(|run| run.range));
        normalize(&mut busy);
        let ram = machine.ram_runs();
        let misfit = |offset| self.misfit(vtl2_memory, &ram, &busy, machine, offset);
        let offset = match misfit(0) {
            None => 0,
            Some(error) if self.regions.is_empty() => return Err(error),
            Some(_) => {
                let offset = self.lowest_offset(vtl2_memory, &ram, &busy);
                let offset = offset.filter(|offset| misfit(*offset).is_none());
                let found = "no run of free RAM within the region's limits that is as long";
                let error =
                    Reason::NoPlace.at(self.regions[0].place, found, AtLeast(vtl2_memory.size()));
                offset.ok_or(error)?
            }
        };
        // VTL2's own part was checked above.
        for required in self.required.iter().filter(|r| !r.vtl2_protectable) {
            let start = self.relocated(required.range.start(), offset);
            let range = MemoryRange::new(start, start + required.range.size());
            not_ram(required.place, range, &ram, machine).map_or(Ok(()), Err)?;
        }
        Ok(Placement {
            offset,
            vtl2_memory: vtl2_memory.moved(offset).unwrap_or(vtl2_memory),
            moved,
        })
    }

    /// A guest without a paravisor has all memory, and begins where it was built for:
    /// whoever has built it has told it where memory is.
    fn stay(&self, machine: &MachineInfo, options: &Options<'_>) -> Result<Placement, ImageError> {
        let expected = "none, because there is no VTL2";
        if let Some(size) = options.vtl2_memory {
            let reason = Reason::Field("vtl2_memory=");
            return Err(reason.at(Place::Machine, size, expected));
        }
        let regions = self
            .regions
            .iter()
            .map(|region| (region.place, region.range));
        let tables = self
            .page_tables
            .iter()
            .map(|tables| (tables.place, tables.range));
        if let Some((place, range)) = regions.chain(tables).next() {
            return Err(Reason::Field("relocatable region").at(place, range, expected));
        }
        let ram = machine.ram_runs();
        for required in self.required {
            let expected = "none that VTL2 protects, because there is no VTL2";
            if required.vtl2_protectable {
                return Err(Reason::Vtl2Memory.at(required.place, required.range, expected));
            }
            not_ram(required.place, required.range, &ram, machine).map_or(Ok(()), Err)?;
        }
        Ok(Placement {
            offset: 0,
            vtl2_memory: MemoryRange::new(0, 0),
            moved: Vec::new(),
        })
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
        let required = self.required.iter().filter(|r| r.vtl2_protectable);
        let mut memory = Vec::from_iter(required.map(|r| r.range).chain(self.moving()));
        normalize(&mut memory);
        let (file, machine) = (Place::File, Place::Machine);
        let expected = "one contiguous range that RequiredMemory makes vtl2_protectable";
        let memory = match memory.as_slice() {
            [one] => *one,
            [] => return Err(Reason::Vtl2Memory.at(file, "none", expected)),
            [_, second, ..] => return Err(Reason::Vtl2Memory.at(file, *second, expected)),
        };
        let size = options.vtl2_memory.unwrap_or(memory.size());
        let reason = Reason::Field("vtl2_memory=");
        if size < memory.size() {
            return Err(reason.at(machine, size, AtLeast(memory.size())));
        }
        MemoryRange::with_size(memory.start(), size).ok_or(reason.at(
            machine,
            size,
            "an end below 2^64",
        ))
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
        let required = self.required.iter().find(|r| r.vtl2_protectable);
        let region = self.regions.first();
        let place = required.map(|r| r.place).or(region.map(|r| r.place));
        let place = place.unwrap_or(Place::File);
        if let Some(error) = not_ram(place, vtl2_memory.moved(offset)?, ram, machine) {
            return Some(error);
        }
        for region in self.regions.iter().filter(|_| offset != 0) {
            let range = region.range.moved(offset)?;
            if !region.limits.covers(range) {
                return Some(Reason::NoPlace.at(region.place, range, Within(region.limits)));
            }
        }
        // An image without relocatable regions meets `busy` when its runs are checked.
        self.moving().find_map(|range| {
            let range = range.moved(offset)?;
            let hit = busy.iter().find(|busy| busy.overlaps(range))?;
            Some(Reason::Busy.at(place, *hit, "other memory"))
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
}

/// Sorts what will be written by address and checks that nothing is written twice. This
/// holds wherever the image goes then: what stays is in the way of what moves.
pub(crate) fn check_overlaps(runs: &mut [Run<'_>]) -> Result<(), ImageError> {
    runs.sort_unstable_by_key(|run| (run.range, run.index));
    let pairs = runs.windows(2).map(|pair| (&pair[0], &pair[1]));
    let Some((first, second)) = pairs.into_iter().find(|(a, b)| a.range.overlaps(b.range)) else {
        return Ok(());
    };
    let common = first.range.intersection(second.range);
    // The later directive is the one at fault.
    let (fault, other) = match first.index > second.index {
        true => (first, second),
        false => (second, first),
    };
    let other = HeaderAt(other.place_of(common.start()), other.range);
    Err(Reason::Overlap.at(fault.place_of(common.start()), common, other))
}

/// Checks that all that will be written is RAM, not the host's and not in use.
pub(crate) fn check_memory(runs: &[Run<'_>], machine: &MachineInfo) -> Result<(), ImageError> {
    let ram = machine.ram_runs();
    let mut busy = machine.busy.clone();
    normalize(&mut busy);
    for run in runs {
        let at = |list: &[MemoryRange]| {
            let index = list.partition_point(|range| range.end() <= run.range.start());
            let next = list.get(index).filter(|range| range.overlaps(run.range));
            next.copied().unwrap_or(MemoryRange::new(0, 0))
        };
        let covered = at(&ram);
        if !covered.covers(run.range) {
            let bad = match covered.contains(run.range.start()) {
                true => covered.end(),
                false => run.range.start(),
            };
            let page = MemoryRange::new(bad, bad.saturating_add(PAGE_SIZE));
            not_ram(run.place_of(bad), page, &ram, machine).map_or(Ok(()), Err)?;
        }
        let common = at(&busy).intersection(run.range);
        if !common.is_empty() {
            let place = run.place_of(common.start());
            return Err(Reason::Busy.at(place, common, "other memory"));
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
        return Some(Reason::HostMemory.at(place, range, "memory of the guest"));
    }
    // The longest run helps the person who has to give the machine more memory.
    let longest = ram.iter().max_by_key(|ram| ram.size()).copied();
    let longest = longest.unwrap_or(MemoryRange::new(0, 0));
    Some(Reason::NotRam.at(place, range, Within(longest)))
}

fn align_up(value: i64, alignment: i64) -> Option<i64> {
    match value.rem_euclid(alignment) {
        0 => Some(value),
        rest => value.checked_add(alignment - rest),
    }
}
