//! The paravisor process.
//!
//! PID 1 starts it as the last step of VTL2's boot. It will own policy, management and
//! the VM worker; at this stage it finds out what machine it is in, reports that, and
//! stays until it is told to end.
//!
//! * Promises: it says [`boot_events::READY`] only after everything that it reports was
//!   read and found consistent; it ends with code 0 when PID 1 asks it to (SIGTERM), and
//!   with a non-zero code and the reason in the log when it cannot do its work.
//! * Refuses: to guess. A device tree without the nodes of the contract, or with values
//!   that contradict each other, ends the start. Only what serves diagnosis (the boot
//!   shim's log, the memory figures) may be missing.
//!
//! The device tree is made of values of the host; `device_tree` treats every byte of it
//! as untrusted.

#![forbid(unsafe_code)]

pub mod device_tree;
pub mod memory;
pub mod shim_log;
pub mod topology;

use boot_events::MEMORY_PREFIX;
use boot_events::PARAVISOR_PREFIX;
use boot_events::PARAVISOR_STARTED;
use boot_events::READY;
use boot_events::SHIM_LOG_PREFIX;
use boot_events::TOPOLOGY_PREFIX;
use device_tree::Node;
use kernel_log::FACILITY_PARAVISOR;
use kernel_log::KernelLog;
use kernel_log::Level;
use kernel_log::chain;
use memory::MemInfo;
use memory::MemoryReport;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use thiserror::Error;
use topology::Topology;

/// Environment variable: end when ready, for tests and benches of the boot.
const EXIT_AFTER_BOOT: &str = "OPENHCL_EXIT_AFTER_BOOT";

/// The report of the machine is longer than a record of the kernel's log.
#[derive(Debug, Error)]
#[error("topology with {vps} VPs does not fit into {capacity} bytes")]
struct TopologyTooLong {
    vps: usize,
    capacity: usize,
}

/// Runs the paravisor until it is asked to end.
pub fn main() -> ExitCode {
    let log = KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX);
    log.info(own(PARAVISOR_STARTED));
    match run(&log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(log: &KernelLog) -> Result<(), Box<dyn Error>> {
    // Before anything else: a request to end that comes during the start must wait, not
    // cut it off.
    let requests: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    requests.thread_block()?;

    let topology = Topology::read(&Node::root(Path::new(device_tree::ROOT)))?;
    report_topology(&topology, log)?;
    report_shim_log(&topology, log);
    report_memory(&topology, log);
    log.info(own(READY));

    if std::env::var_os(EXIT_AFTER_BOOT).is_some_and(|value| !value.is_empty() && value != "0") {
        log.info(&format!("{EXIT_AFTER_BOOT} asks for the end"));
        return Ok(());
    }
    let signal = requests.wait()?;
    log.info(&format!("{signal} asks for the end"));
    Ok(())
}

fn report_topology(topology: &Topology, log: &KernelLog) -> Result<(), Box<dyn Error>> {
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

fn report_shim_log(topology: &Topology, log: &KernelLog) {
    let Some(range) = topology.shim_log() else {
        return log.warning("the boot shim left no log");
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
        }
        Err(error) => log.warning(&chain(&error)),
    }
}

fn report_memory(topology: &Topology, log: &KernelLog) {
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

/// An event of this process without the prefix, which the log adds.
fn own(event: &'static str) -> &'static str {
    event.strip_prefix(PARAVISOR_PREFIX).unwrap_or(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_the_prefix_of_the_process() {
        for event in [
            PARAVISOR_STARTED,
            TOPOLOGY_PREFIX,
            MEMORY_PREFIX,
            SHIM_LOG_PREFIX,
            READY,
        ] {
            assert_eq!(format!("{PARAVISOR_PREFIX}{}", own(event)), event);
            assert_ne!(own(event), event);
        }
    }
}
