//! Lines of the log that tell what was found. Tests and benches read them.

use crate::memory;
use crate::memory::MemInfo;
use crate::memory::MemoryReport;
use crate::own;
use crate::shim_log;
use crate::shim_log::ShimLog;
use crate::topology::Topology;
use boot_events::MEMORY_PREFIX;
use boot_events::SHIM_LOG_PREFIX;
use boot_events::TOPOLOGY_PREFIX;
use kernel_log::KernelLog;
use kernel_log::Level;
use kernel_log::chain;
use std::error::Error;
use thiserror::Error;

/// The report of the machine is longer than a record of the kernel's log.
#[derive(Debug, Error)]
#[error("topology with {vps} VPs does not fit into {capacity} bytes")]
struct TopologyTooLong {
    vps: usize,
    capacity: usize,
}

/// The machine.
pub(crate) fn topology(topology: &Topology, log: &KernelLog) -> Result<(), Box<dyn Error>> {
    for memory in &topology.memory {
        let range = memory.range;
        log.debug(&format!(
            "memory {:#x} to {:#x}: {:?}",
            range.start,
            range.start + range.size,
            memory.kind
        ));
    }
    let command_line = std::fs::read("/proc/cmdline")?;
    let prefix = own(TOPOLOGY_PREFIX);
    let capacity = log.record_capacity() - prefix.len();
    let json = topology
        .to_json(&String::from_utf8_lossy(&command_line), capacity)
        .ok_or(TopologyTooLong {
            vps: topology.vps.len(),
            capacity,
        })?;
    log.info(&format!("{prefix}{json}"));
    Ok(())
}

/// What the boot shim logged, which is also the result.
pub(crate) fn shim_log(topology: &Topology, log: &KernelLog) -> Option<ShimLog> {
    let Some(range) = topology.shim_log() else {
        log.warning("the boot shim left no log");
        return None;
    };
    match shim_log::read(range) {
        Ok(shim) => {
            let prefix = own(SHIM_LOG_PREFIX);
            for line in shim.text.lines() {
                log.debug(&format!("{prefix}{line}"));
            }
            let level = if shim.dropped == 0 {
                Level::Debug
            } else {
                Level::Warning
            };
            log.write(
                level,
                &format!("the boot shim dropped {} messages", shim.dropped),
            );
            Some(shim)
        }
        Err(error) => {
            log.warning(&chain(&error));
            None
        }
    }
}

/// VTL2's use of memory.
pub(crate) fn memory(topology: &Topology, log: &KernelLog) {
    match memory_report(topology) {
        Ok(report) => log.info(&format!("{}{}", own(MEMORY_PREFIX), report.to_json())),
        Err(error) => log.warning(&chain(error.as_ref())),
    }
}

fn memory_report(topology: &Topology) -> Result<MemoryReport, Box<dyn Error>> {
    let text = std::fs::read_to_string(memory::MEMINFO)?;
    Ok(MemoryReport::new(
        MemInfo::parse(&text)?,
        topology.vtl2_bytes(),
    )?)
}
