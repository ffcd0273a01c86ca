//! From an IGVM file to a plan of what to write where.
//!
//! [`plan`] is the only way in. It reads headers, chooses where the image goes, and
//! checks every byte that would be written against RAM, the host's memory and every
//! other byte; what it yields can be executed without looking at the file again. It
//! allocates per run of pages, not per page, and never copies page data.
//!
//! Own parsing on top of `igvm_defs`, because the `igvm` crate needs `std`, panics on some
//! malformed files and copies every page.

mod error;
mod header;
mod page_tables;
mod relocation;
mod scan;
mod vp_context;

#[cfg(test)]
pub(crate) mod test_image;
#[cfg(test)]
mod tests;

pub use error::Detail;
pub use error::ImageError;
pub use error::Place;
pub use error::Reason;
pub use vp_context::InitialContext;

use crate::options::Options;
use crate::params::Parameters;
use crate::platform::MachineInfo;
use crate::platform::MemoryRange;
use alloc::vec::Vec;
use igvm_defs::IgvmVariableHeaderType;
use page_tables::RewrittenTables;
use relocation::Layout;
use scan::Image;
use scan::Run;

/// Writes the memory of the machine. The plan only writes RAM that is not the host's.
pub trait HostMemoryWriter {
    /// Copies `data` to `address`.
    fn write(&mut self, address: u64, data: &[u8]);
    /// Zeroes `size` bytes at `address`.
    fn zero(&mut self, address: u64, size: u64);
}

/// A file that can be loaded, and where.
#[derive(Debug)]
pub struct LoadPlan<'a> {
    runs: Vec<Run<'a>>,
    page_tables: Option<RewrittenTables>,
    parameters: Vec<(u64, Vec<u8>)>,
    context: InitialContext,
    vtl2_memory: MemoryRange,
    offset: i64,
}

impl LoadPlan<'_> {
    /// Writes everything. What was validated cannot fail any more.
    pub fn execute(&self, memory: &mut impl HostMemoryWriter) {
        for run in &self.runs {
            match run.data {
                Some(data) => memory.write(run.range.start(), data),
                None => memory.zero(run.range.start(), run.range.size()),
            }
        }
        if let Some(tables) = &self.page_tables {
            memory.write(tables.address, &tables.bytes);
        }
        // Behind the runs: the areas that they go to are among those.
        for (address, bytes) in &self.parameters {
            memory.write(*address, bytes);
        }
    }

    /// What VP 0 starts VTL2 with.
    pub fn initial_context(&self) -> &InitialContext {
        &self.context
    }

    /// RAM of VTL2.
    pub fn vtl2_memory(&self) -> MemoryRange {
        self.vtl2_memory
    }

    /// By how much the image was moved from where it was built for.
    pub fn relocation_offset(&self) -> i64 {
        self.offset
    }

    /// Bytes that are written, zeros included.
    pub fn loaded_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.range.size()).sum()
    }
}

/// Validates a file for this machine.
pub fn plan<'a>(
    file: &'a [u8],
    machine: &MachineInfo,
    options: &Options<'_>,
) -> Result<LoadPlan<'a>, ImageError> {
    let vps = machine.vps(options.park);
    if vps.is_empty() {
        let expected = Detail::Text("at least 1, beside the first CPU, which is parked");
        return Err(Reason::NoVp.at(Place::Machine, Detail::Number(0), expected));
    }
    let Image {
        regions,
        page_tables,
        required,
        mut runs,
        deposits,
        context,
    } = scan::scan(header::File::parse(file)?)?;
    let Some((context_place, mut context)) = context else {
        let expected = Detail::Text("a VpContext directive for VP 0 in VTL2");
        return Err(Reason::VpContext.at(Place::File, Detail::Text("none"), expected));
    };

    let layout = Layout {
        regions: &regions,
        page_tables: page_tables.as_ref(),
        required: &required,
    };
    let placement = layout.place(machine, options, &runs)?;
    let offset = placement.offset;
    let rewritten = match page_tables {
        Some(tables) if offset != 0 => Some(page_tables::relocate(
            &tables,
            &mut runs,
            context_place,
            &context.state,
            offset,
            &placement.moved,
        )?),
        _ => None,
    };
    layout.relocate_runs(&mut runs, offset);
    relocation::check_memory(&mut runs, machine)?;
    layout.relocate_registers(&mut context.state, offset);
    if let Some(tables) = &rewritten {
        context.state.cr3 = tables.cr3;
    }
    if !placement.vtl2_memory.contains(context.state.rip) {
        let (found, expected) = (context.state.rip, placement.vtl2_memory);
        return Err(
            Reason::Register(hv_defs::registers::HvRegisterName::RIP).at(
                context_place,
                Detail::Hex(found),
                Detail::Within(expected),
            ),
        );
    }

    let parameters = Parameters {
        machine,
        vps: &vps,
        vtl2_memory: placement.vtl2_memory,
        bootargs: options.bootargs,
    };
    let parameters = deposits
        .iter()
        .map(|deposit| {
            let start = layout.relocated(deposit.room.start(), offset);
            Ok((start, parameter(&parameters, deposit)?))
        })
        .collect::<Result<_, ImageError>>()?;
    Ok(LoadPlan {
        runs,
        page_tables: rewritten,
        parameters,
        context,
        vtl2_memory: placement.vtl2_memory,
        offset,
    })
}

/// Makes one parameter and checks that it fits.
fn parameter(parameters: &Parameters<'_>, deposit: &scan::Deposit) -> Result<Vec<u8>, ImageError> {
    use IgvmVariableHeaderType as T;
    let bytes = match deposit.kind {
        T::IGVM_VHT_VP_COUNT_PARAMETER => parameters.vp_count(),
        T::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER => parameters.environment_info(),
        T::IGVM_VHT_MADT => parameters.madt(),
        T::IGVM_VHT_SRAT => parameters.srat(),
        T::IGVM_VHT_SLIT => parameters.slit(),
        T::IGVM_VHT_PPTT => parameters.pptt(),
        T::IGVM_VHT_MMIO_RANGES => parameters.mmio_ranges(),
        T::IGVM_VHT_MEMORY_MAP => parameters.memory_map(),
        T::IGVM_VHT_COMMAND_LINE => parameters.command_line(),
        // The scan lets only parameters become deposits; this is the last kind.
        _ => parameters.device_tree().map_err(|what| {
            let expected = Detail::Text("a tree that can be written");
            Reason::DeviceTree.at(deposit.place, Detail::Text(what), expected)
        })?,
    };
    if bytes.len() as u64 > deposit.room.size() {
        return Err(Reason::ParameterSize.at(
            deposit.place,
            Detail::Bytes(bytes.len() as u64),
            Detail::AtMost(deposit.room.size()),
        ));
    }
    Ok(bytes)
}
