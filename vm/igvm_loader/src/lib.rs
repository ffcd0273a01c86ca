//! From an IGVM file to a plan of what to write where.
//!
//! Two programs ask: `vsm_host`, which executes the plan before VTL2 begins, and `igvm
//! check`, which shows it on the build machine. [`plan`] is the only way in. It reads
//! headers, chooses where the image goes, makes what the file wants to know of the machine
//! (`params`), and checks every byte that would be written against RAM, the host's
//! memory and every other byte; what it yields can be executed without looking at the
//! file again. It allocates per run of pages, not per page, and never copies page data.
//!
//! What it promises: a file that cannot be loaded is refused with the header, the reason,
//! what was found and what was expected, and the plan of another one writes nothing but
//! RAM of the machine that it was given. It trusts nothing in the file.
//!
//! What it refuses: to know a processor's virtualization, or how memory is written.
//!
//! Own parsing on top of `igvm_defs`, because the `igvm` crate needs `std`, panics on some
//! malformed files and copies every page.

#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;
mod header;
mod machine;
mod options;
mod page_tables;
mod params;
pub mod q35;
mod range;
mod relocation;
mod scan;
mod start_context;
mod vp_context;

#[cfg(test)]
mod tests;

pub use error::{Detail, ImageError, Place, Reason};
pub use machine::{AcpiTables, Cpu, IoApic, MachineInfo, RamRange};
pub use options::{OptionError, Options, SIZE_FORM, parse_size};
pub use range::{MemoryRange, PAGE_SIZE, normalize, subtract};
pub use start_context::{ContextError, EFER_GUEST, Gprs, StartContext};

use alloc::string::String;
use alloc::vec::Vec;
use hv_defs::registers::HvRegisterName;
use igvm_defs::IgvmVariableHeaderType;
use page_tables::RewrittenTables;
use params::Parameters;
use relocation::{Layout, Placement};
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
    parameters: Vec<Parameter>,
    context: StartContext,
    vtl: u8,
    vtl2_memory: MemoryRange,
    offset: i64,
}

/// What the host tells the image.
#[derive(Debug)]
pub struct Parameter {
    /// Which parameter.
    pub kind: IgvmVariableHeaderType,
    /// Where it goes, and how much room is there.
    pub room: MemoryRange,
    /// What is written there.
    pub bytes: Vec<u8>,
}

impl Parameter {
    /// The name of its kind in the specification.
    pub fn name(&self) -> String {
        error::header_name(self.kind).unwrap_or_default()
    }
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
        for parameter in &self.parameters {
            memory.write(parameter.room.start(), &parameter.bytes);
        }
    }

    /// The VTL that VP 0 starts in: 2, or 0 for a guest without a paravisor.
    pub fn vtl(&self) -> u8 {
        self.vtl
    }

    /// What VP 0 starts with.
    pub fn context(&self) -> &StartContext {
        &self.context
    }

    /// Memory that is written, ascending; whether it comes from the file, or is zeroed.
    pub fn runs(&self) -> impl Iterator<Item = (MemoryRange, bool)> {
        self.runs.iter().map(|run| (run.range, run.data.is_some()))
    }

    /// What is told to the image.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// RAM of VTL2; empty without a paravisor.
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
    if machine.vps.is_empty() {
        let expected = "at least 1, beside the first CPU, which is parked";
        return Err(Reason::Field("number of VPs").at(Place::Machine, 0u64, expected));
    }
    let mut image = scan::scan(header::File::parse(file)?)?;
    let Some((context_place, mut context)) = image.context else {
        let expected = "a VpContext directive for VP 0";
        return Err(Reason::Field("VP context").at(Place::File, "none", expected));
    };
    relocation::check_overlaps(&mut image.runs)?;
    let layout = Layout {
        vtl: image.vtl,
        regions: &image.regions,
        page_tables: image.page_tables.as_ref(),
        required: &image.required,
    };
    let Placement {
        offset,
        vtl2_memory,
        moved,
    } = layout.place(machine, options, &image.runs)?;
    let state = &mut context.state;
    let page_tables = match &image.page_tables {
        Some(tables) if offset != 0 => Some(page_tables::relocate(
            tables,
            &image.runs,
            context_place,
            state,
            offset,
            &moved,
        )?),
        _ => None,
    };
    layout.relocate_runs(&mut image.runs, offset);
    relocation::check_memory(&image.runs, machine)?;
    layout.relocate_registers(state, offset);
    if let Some(tables) = &page_tables {
        state.cr3 = tables.cr3;
    }
    let start = StartContext::new(*state)
        .map_err(|error| Reason::Context.at(context_place, error, "what the processor takes"))?;
    check_entry(image.vtl, state.rip, vtl2_memory, machine).map_err(|expected| {
        let reason = Reason::Register(HvRegisterName::RIP);
        reason.at(context_place, state.rip, expected)
    })?;
    let parameters = Parameters {
        machine,
        vtl2_memory,
        bootargs: options.bootargs,
    };
    let deposits = image.deposits.iter().map(|deposit| {
        let start = layout.relocated(deposit.room.start(), offset);
        Ok(Parameter {
            kind: deposit.kind,
            room: MemoryRange::new(start, start + deposit.room.size()),
            bytes: parameter(&parameters, deposit)?,
        })
    });
    Ok(LoadPlan {
        parameters: deposits.collect::<Result<_, ImageError>>()?,
        vtl: image.vtl,
        runs: image.runs,
        page_tables,
        context: StartContext {
            gprs: context.gprs,
            cr2: context.cr2,
            ..start
        },
        vtl2_memory,
        offset,
    })
}

/// Whether the first instruction is in memory of the VTL that starts, or where that is.
fn check_entry(
    vtl: u8,
    rip: u64,
    vtl2_memory: MemoryRange,
    machine: &MachineInfo,
) -> Result<(), Detail> {
    let inside = match vtl {
        0 => machine.ram_runs().iter().any(|ram| ram.contains(rip)),
        _ => vtl2_memory.contains(rip),
    };
    match (inside, vtl) {
        (true, _) => Ok(()),
        (false, 0) => Err("an address in RAM".into()),
        (false, _) => Err(Detail::Within(vtl2_memory)),
    }
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
        _ => parameters.device_tree().map_err(|found| {
            let reason = Reason::Field("host device tree");
            reason.at(deposit.place, found, "a tree that can be written")
        })?,
    };
    let (size, room) = (bytes.len() as u64, deposit.room.size());
    if size > room {
        return Err(Reason::ParameterSize.at(deposit.place, size, Detail::AtMost(room)));
    }
    Ok(bytes)
}
