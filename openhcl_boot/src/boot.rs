//! The boot, step by step, over a machine that tests can replace.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use hv_defs::vsm::{VsmCapabilities, VsmVpStatus};
use loader_defs::linux::E820Entry;
use loader_defs::memory_type::MemoryVtlType;
use minimal_rt::hypercall::HypercallError;
use sidecar_defs::SidecarParams;
use thiserror::Error;

use crate::host_dt::{HostDeviceTree, HostDtError};
use crate::imported::{self, ImportedRegion};
use crate::isolation::{Isolation, Trust};
use crate::linux::command_line;
use crate::linux::device_tree::{self, Arch, Contents};
use crate::log::{BootLog, Level};
use crate::memory::map::{e820, partition_map};
use crate::memory::space::{AddressSpace, SpaceBuilder, allocate_pool};
use crate::memory::{MemoryError, NodeRange, gpa_pool, mmio, select};
use crate::numa::NumaNodes;
use crate::options::{BootOptions, CommandLineError, MeasuredCommandLine};
use crate::params::ShimParams;
use crate::partition::{PartitionError, PartitionInfo};
use crate::persisted;
use crate::range::GpaRange;
use crate::sidecar::{Circumstances, Failure, Plan, Sidecar};

/// Page of the header at the start of the persisted state.
const PERSISTED_HEADER_SIZE: u64 = loader_defs::PAGE_SIZE;

/// The VTL in which the shim is at home.
pub(crate) const VTL2: u8 = 2;

/// What the shim needs from the machine below it.
pub trait Machine {
    /// The isolation that the hypervisor reports.
    fn isolation(&self) -> Isolation;
    /// The reference counter in units of 100 ns.
    fn reference_time(&mut self) -> Option<u64>;
    /// The counter that programs read without help, in its own units.
    fn time_stamp_counter(&mut self) -> Option<u64> {
        None
    }
    /// The state of this VP's VTLs.
    fn vp_status(&mut self) -> Result<VsmVpStatus, HypercallError>;
    /// What the hypervisor offers to VTL2.
    fn vsm_capabilities(&mut self) -> Result<VsmCapabilities, HypercallError>;
    /// Tells the VP index of each hardware id, in order.
    fn vp_indices(
        &mut self,
        hardware_ids: &[u32],
        found: &mut dyn FnMut(usize, u32),
    ) -> Result<(), HypercallError>;
    /// Bits of a physical address.
    fn physical_address_bits(&self) -> u8;
    /// VTL2's serial port, set up.
    fn serial(&mut self, rate: u32) -> Option<Box<dyn Write>>;
    /// Calls the sidecar kernel at `entry`: how many CPUs it has started. What of the
    /// parameters only the machine knows is filled in.
    fn start_sidecar(
        &mut self,
        entry: u64,
        params: &mut SidecarParams,
    ) -> Result<u32, Box<Failure>>;
}

/// The parts of the image that the shim reads.
#[derive(Debug, Clone, Copy)]
pub struct ImageMemory<'a> {
    /// The host's device tree.
    pub device_tree: &'a [u8],
    /// The measured command line page.
    pub command_line: &'a [u8],
    /// The list of imported regions.
    pub imported_regions: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
    /// The header of the persisted state.
    pub persisted_state_header: &'a [u8],
}

/// What the kernel gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handoff {
    /// Its entry point.
    pub kernel_entry: u64,
    /// The initrd.
    pub initrd: GpaRange,
    /// The command line.
    pub command_line: String,
    /// The device tree.
    pub device_tree: Vec<u8>,
    /// The memory map (x86).
    pub e820: Vec<E820Entry>,
}

/// Why the boot ends.
#[derive(Debug, Error)]
pub enum BootError {
    /// No hypervisor that speaks the TLFS.
    #[error("CPUID names no hypervisor with the \"Microsoft Hv\" interface")]
    NoHypervisor,
    /// A hypercall failed.
    #[error("{what}: {error}")]
    Hypercall {
        /// What it was for.
        what: &'static str,
        /// How it failed.
        error: HypercallError,
    },
    /// The measured command line.
    #[error(transparent)]
    MeasuredCommandLine(#[from] CommandLineError),
    /// The host's tree.
    #[error(transparent)]
    HostDeviceTree(#[from] HostDtError),
    /// The VM that the tree describes.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// VTL2's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A hardware id that the hypervisor cannot be asked for.
    #[error("processor {index} has hardware id {hardware_id:#x}, expected 32 bits")]
    HardwareId {
        /// Its place in the tree.
        index: usize,
        /// The id.
        hardware_id: u64,
    },
    /// The order of processors is not the order of VPs.
    #[error("processor {index} (hardware id {hardware_id:#x}) is VP {found}, expected VP {index}")]
    VpIndex {
        /// Its place in the tree.
        index: usize,
        /// Its hardware id.
        hardware_id: u32,
        /// The index that the hypervisor gives.
        found: u32,
    },
    /// The sidecar has failed half-way. Linux can neither have the memory that its CPUs use
    /// nor start them.
    #[error("sidecar: {failure}; {} CPUs run it already", failure.started)]
    Sidecar {
        /// What has happened.
        failure: Box<Failure>,
    },
    /// The initrd is damaged.
    #[error("initrd CRC-32 is {found:#010x}, expected {expected:#010x}")]
    InitrdCrc {
        /// Of what is in memory.
        found: u32,
        /// Of what was packed.
        expected: u32,
    },
    /// The kernel's command line.
    #[error(transparent)]
    CommandLine(#[from] command_line::CommandLineError),
    /// The kernel's device tree.
    #[error("device tree for the kernel: {0}")]
    DeviceTree(vm_fdt::Error),
}

/// Does everything but the jump. `start` is the reference time at which the shim began.
pub fn prepare(
    params: &ShimParams,
    image: &ImageMemory<'_>,
    machine: &mut dyn Machine,
    start: Option<u64>,
    log: &BootLog<'_>,
) -> Result<Handoff, BootError> {
    log.info(format_args!("{}", boot_events::SHIM_STARTED));
    let status = machine.vp_status().map_err(|error| BootError::Hypercall {
        what: "own VTL",
        error,
    })?;
    let vtl = status.active_vtl();

    let measured = MeasuredCommandLine::parse(image.command_line)?;
    let mut options = BootOptions::default();
    options.apply(measured.text);
    let trust = Trust::new(machine.isolation(), options.confidential_debug);

    let partition = PartitionInfo::new(HostDeviceTree::parse(image.device_tree)?, trust)?;
    if let Some(port) = partition.com3()
        && let Some(serial) = machine.serial(port.current_speed)
    {
        log.attach_serial(serial);
    }
    if !partition.dropped.is_empty() {
        log.warn(format_args!(
            "isolated VM: dropped from the host: {:?}",
            partition.dropped
        ));
    }
    if measured.append_host {
        let debug = options.confidential_debug;
        options.apply(&partition.command_line);
        // Only the measured text can give up confidentiality.
        options.confidential_debug = debug;
    }

    let vtl0_alias_map = alias_map(&partition, vtl, machine)?;
    validate_vp_hardware_ids(&partition, vtl, machine)?;

    let imported = imported::read(image.imported_regions, params.imported_regions);
    if imported.is_none() {
        log.detail(format_args!(
            "image relocated to {}; imported regions are not listed",
            params.memory
        ));
    }
    let regions: Option<Vec<GpaRange>> = imported
        .as_ref()
        .map(|list| list.iter().map(|r| r.range).collect());
    let ram = select::select(&partition, params.memory, regions.as_deref())?;
    let mmio = mmio::select(&partition)?;
    let mut space = partition_space(params, &ram)?;

    if let Err(refusal) = persisted::check(image.persisted_state_header, trust) {
        log.warn(format_args!("{refusal}; starting fresh"));
    }
    let pool = if trust.is_isolated() {
        0
    } else {
        gpa_pool::pool_pages(
            options.pool(),
            partition.device_dma_pages,
            partition.cpus.len() as u32,
            space.total(),
        )
    };
    let pool_ranges = allocate_pool(&mut space, pool, options.split_pool)?;
    log.detail(format_args!(
        "{} VPs, VTL2 RAM {} KiB in {} ranges, GPA pool {pool} pages in {} ranges, isolation {}",
        partition.cpus.len(),
        space.total() / 1024,
        ram.len(),
        pool_ranges.len(),
        trust.isolation()
    ));
    let nodes = NumaNodes::of(&partition);
    if nodes.count() > 1 {
        log.detail(format_args!("{nodes}"));
    }
    let circumstances = Circumstances {
        arch: Arch::NATIVE,
        vtl,
        params,
        options: options.sidecar,
        partition: &partition,
        // Without a restored state nobody has a claim.
        excluded: &[],
    };
    let sidecar = start_sidecar(&circumstances, &mut space, machine, log)?;

    check_initrd(image.initrd, params.initrd_crc)?;
    let command_line =
        command_line::build(&partition, &measured, &options, pool > 0, sidecar.is_some())?;
    let map = partition_map(&partition.memory, &space.typed_ranges(), &mmio);
    let accepted: Vec<ImportedRegion> = imported.unwrap_or_default();
    // Read together, so that usermode can tell reference time from its own counter.
    let tsc_end = start.and_then(|_| machine.time_stamp_counter());
    let reftime_end = start.and_then(|_| machine.reference_time());
    let device_tree = device_tree::build(&Contents {
        arch: Arch::NATIVE,
        partition: &partition,
        vtl2_ram: &ram,
        map: &map,
        imported: &accepted,
        vtl2_mmio: &mmio.vtl2,
        vtl0_alias_map,
        reftime_start: start,
        reftime_end,
        tsc_end,
        sidecar: sidecar.as_ref(),
        command_line: &command_line,
        initrd: params.initrd,
    })
    .map_err(BootError::DeviceTree)?;
    Ok(Handoff {
        kernel_entry: params.kernel_entry,
        initrd: params.initrd,
        command_line,
        device_tree,
        e820: e820(&map, &partition.memory),
    })
}

// Where VTL0's memory appears a second time, for access from VTL2 under VTL0's own
// protections. Only hypervisors that say so have it.
fn alias_map(
    partition: &PartitionInfo,
    vtl: u8,
    machine: &mut dyn Machine,
) -> Result<Option<u64>, BootError> {
    if partition.trust.is_isolated() || vtl != VTL2 {
        return Ok(None);
    }
    let capabilities = machine
        .vsm_capabilities()
        .map_err(|error| BootError::Hypercall {
            what: "VSM capabilities",
            error,
        })?;
    if !capabilities.vtl0_alias_map_available() {
        return Ok(None);
    }
    // Without a word from the host it is the highest address bit.
    let highest_bit = || {
        let bit = u32::from(machine.physical_address_bits()).checked_sub(1)?;
        1u64.checked_shl(bit)
    };
    Ok(partition.vtl0_alias_map.or_else(highest_bit))
}

// The kernel numbers processors in the order of the tree, the hypervisor by VP index;
// all that follows takes both for the same.
fn validate_vp_hardware_ids(
    partition: &PartitionInfo,
    vtl: u8,
    machine: &mut dyn Machine,
) -> Result<(), BootError> {
    let mut ids = Vec::with_capacity(partition.cpus.len());
    for (index, cpu) in partition.cpus.iter().enumerate() {
        ids.push(
            u32::try_from(cpu.hardware_id).map_err(|_| BootError::HardwareId {
                index,
                hardware_id: cpu.hardware_id,
            })?,
        );
    }
    if vtl != VTL2 {
        return Ok(());
    }
    let mut wrong = None;
    machine
        .vp_indices(&ids, &mut |index, found| {
            if found as usize != index && wrong.is_none() {
                wrong = Some((index, found));
            }
        })
        .map_err(|error| BootError::Hypercall {
            what: "VP indices of the processors",
            error,
        })?;
    match wrong {
        None => Ok(()),
        Some((index, found)) => Err(BootError::VpIndex {
            index,
            hardware_id: ids[index],
            found,
        }),
    }
}

// Reserves what must stay after the shim. The host's device tree is not among it: it has
// been read, and its pages are RAM again. The shim's code is, although nobody needs it: an
// emulator forgets each piece of code that it has translated when its place is written, which
// QEMU tells all processors: 0.3 s of a boot with 64 of them.
fn partition_space(params: &ShimParams, ram: &[NodeRange]) -> Result<AddressSpace, MemoryError> {
    let part = |start, end| GpaRange::from_bounds(start, end).unwrap_or(GpaRange::EMPTY);
    let (config, tree) = (params.parameter_region, params.device_tree);
    let state = params.persisted_state;
    let payload = state.start() + PERSISTED_HEADER_SIZE;
    let mut builder = SpaceBuilder::new(ram, params.used);
    for (what, range, purpose) in [
        (
            "parameters",
            part(config.start(), tree.start()),
            MemoryVtlType::VTL2_CONFIG,
        ),
        (
            "measured configuration",
            part(tree.end(), config.end()),
            MemoryVtlType::VTL2_CONFIG,
        ),
        ("code", params.code, MemoryVtlType::VTL2_RESERVED),
        (
            "log buffer",
            params.log_buffer,
            MemoryVtlType::BOOTSHIM_LOG_BUFFER,
        ),
        (
            "persisted state header",
            part(state.start(), payload),
            MemoryVtlType::PERSISTED_STATE_HEADER,
        ),
        (
            "persisted state",
            part(payload, state.end()),
            MemoryVtlType::PERSISTED_STATE_PROTOBUF,
        ),
    ] {
        builder.reserve(what, range, purpose)?;
    }
    Ok(builder.finish())
}

// Without a sidecar Linux boots all processors, and one line says why.
fn start_sidecar(
    circumstances: &Circumstances<'_>,
    space: &mut AddressSpace,
    machine: &mut dyn Machine,
    log: &BootLog<'_>,
) -> Result<Option<Sidecar>, BootError> {
    let without = space.clone();
    let plan = match Plan::new(circumstances, space) {
        Ok(plan) => plan,
        Err(off) => {
            let level = match off.is_surprising() {
                true => Level::Warn,
                false => Level::Detail,
            };
            log.line(level, format_args!("sidecar off: {off}"));
            return Ok(None);
        }
    };
    match plan.start(machine) {
        Ok(sidecar) => {
            let microseconds = sidecar
                .times
                .map_or(0, |(start, end)| end.saturating_sub(start) / 10);
            log.detail(format_args!(
                "sidecar on: {} of {} VPs in {} nodes, started in {microseconds} us",
                sidecar.started,
                circumstances.partition.cpus.len(),
                sidecar.nodes.len(),
            ));
            Ok(Some(sidecar))
        }
        Err(failure) if failure.started == 0 => {
            // CPUs that have left are still in its memory, for the last instructions.
            if !failure.begun {
                *space = without;
            }
            log.warn(format_args!("sidecar off: {failure}"));
            Ok(None)
        }
        Err(failure) => Err(BootError::Sidecar { failure }),
    }
}

fn check_initrd(initrd: &[u8], expected: u32) -> Result<(), BootError> {
    let found = crc32fast::hash(initrd);
    if found == expected {
        Ok(())
    } else {
        Err(BootError::InitrdCrc { found, expected })
    }
}

#[cfg(test)]
mod tests;
