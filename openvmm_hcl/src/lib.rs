//! The paravisor process: configuration, policy, diagnostics.
//!
//! PID 1 starts it as the last step of VTL2's boot. It finds out what machine it is in and
//! how it is configured, starts the VM worker as a process of its own, and answers the
//! host's diagnostics. It survives the worker, whatever becomes of that.
//!
//! * Promises: it says [`boot_events::READY`] only after everything that it reports was
//!   read and found consistent and the worker is ready (or has to wait for a client); it
//!   answers the diagnostics in every state of the worker; it ends with code 0 when it is
//!   asked to, after an orderly end of the worker with a deadline, and with a non-zero code
//!   and the reason in the log when it cannot do its work.
//! * Refuses: to guess. A device tree without the nodes of the contract, values that
//!   contradict each other, or a wrong configuration end the start. Only what serves
//!   diagnosis (the boot shim's log, the memory figures, the diagnostics server on a
//!   machine without vsock) may be missing.
//!
//! Modules: [`device_tree`], [`topology`], [`memory`], [`shim_log`] and `configuration` read
//! what there is; `control` is the loop that starts and ends workers, by the rules of
//! [`policy`], and `instance` watches one worker; `diag` answers clients, mostly out of
//! [`state`]. Device tree and configuration are values of the host; every byte of them is
//! treated as untrusted.

#![forbid(unsafe_code)]

pub mod build_info;
mod configuration;
mod control;
pub mod device_tree;
mod diag;
mod events;
mod instance;
pub mod kmsg;
pub mod line_limit;
pub mod memory;
pub mod policy;
pub mod processes;
mod report;
pub mod requests;
pub mod shim_log;
pub mod sidecar;
pub mod state;
pub mod timeline;
pub mod topology;

use boot_events::DIAG_READY;
use boot_events::PARAVISOR_PREFIX;
use boot_events::PARAVISOR_STARTED;
use boot_events::READY;
use control::Controller;
use control::Ending;
use device_tree::Node;
use diag::Diagnostics;
use kernel_log::FACILITY_PARAVISOR;
use kernel_log::KernelLog;
use kernel_log::chain;
use state::ClockPairs;
use state::Paravisor;
use state::Phase;
use state::State;
use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;
use thiserror::Error;
use timeline::Pair;
use timeline::Timeline;
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;
use topology::Topology;
use underhill_core::clock::Ticks;

/// Environment variable: end when ready, for tests and benches of the boot.
const EXIT_AFTER_BOOT: &str = "OPENHCL_EXIT_AFTER_BOOT";

/// Environment variable: the host of an isolated VM is trusted. Only the measured command
/// line can set it there.
const CONFIDENTIAL_DEBUG: &str = "OPENHCL_CONFIDENTIAL_DEBUG";

/// Only images that are built for development have it.
const SHELL: &str = "/bin/sh";

/// The machine was to end after its boot, but did not boot.
#[derive(Debug, Error)]
#[error("VM worker failed during the boot: {0}")]
struct BootFailed(String);

/// Runs the paravisor until it is asked to end.
pub fn main() -> ExitCode {
    let first_line = Ticks::now();
    let log = KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX);
    log.info(own(PARAVISOR_STARTED));
    match start(&log, first_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start(log: &KernelLog, first_line: Ticks) -> Result<(), Box<dyn Error>> {
    let started = timeline::boot_time_now()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(log, first_line, started))
}

async fn run(log: &KernelLog, first_line: Ticks, started: Pair) -> Result<(), Box<dyn Error>> {
    // Before anything else: a request to end that comes during the start must wait, not
    // cut it off.
    let signals = [
        tokio::signal::unix::signal(SignalKind::terminate())?,
        tokio::signal::unix::signal(SignalKind::interrupt())?,
    ];
    let topology = Topology::read(&Node::root(Path::new(device_tree::ROOT)))?;
    let isolated = topology.isolation != "none" && !is_on(CONFIDENTIAL_DEBUG);
    let development_image = Path::new(SHELL).exists();
    let loaded = configuration::load(!isolated, development_image)?;
    let read_configuration = Ticks::now();
    let filter = configuration::install_log(&loaded);
    report::topology(&topology, log)?;

    let paravisor = Arc::new(Paravisor {
        shim_log: report::shim_log(&topology, log),
        development_image,
        config: loaded.config,
        filter,
        diag: Arc::default(),
        clocks: ClockPairs {
            shim: shim_pair(&topology),
            started,
            first_line,
        },
        started: Instant::now(),
        state: Mutex::new(State {
            phase: Phase::WaitingForStart,
            worker: None,
            failure: None,
            guest: None,
            ends: VecDeque::new(),
            crashes: 0,
            automatic_restarts: 0,
            restarts_in_window: 0,
            timeline: first_milestones(&topology, first_line, read_configuration),
            kernel_log_read: false,
        }),
        topology,
    });
    let ending = serve(&paravisor, isolated, signals).await;
    match ending {
        Ending::Asked => Ok(()),
        Ending::Failed(reason) => Err(BootFailed(reason).into()),
        Ending::Crash => {
            log.error("crash on request");
            std::process::abort()
        }
    }
}

/// Runs the control loop and the diagnostics until the end.
async fn serve(
    paravisor: &Arc<Paravisor>,
    isolated: bool,
    signals: [tokio::signal::unix::Signal; 2],
) -> Ending {
    let (control, requests) = mesh::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = if *paravisor.config.diag.enabled {
        let handler = Diagnostics::new(paravisor.clone(), control);
        let shutdown = async {
            // Either it is told to stop, or there is nobody left to tell it.
            let _ = stopped.await;
        };
        match diag::serve(handler, isolated, shutdown) {
            Ok(server) => {
                paravisor.stamp("listens");
                KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX).info(own(DIAG_READY));
                Some(server)
            }
            Err(error) => {
                tracing::warn!(%error, "no diagnostics: vsock cannot be used");
                None
            }
        }
    } else {
        None
    };
    let announce = {
        let paravisor = paravisor.clone();
        move || announce(&paravisor)
    };
    let controller = Controller::new(paravisor.clone(), announce, is_on(EXIT_AFTER_BOOT));
    let ending = controller.run(requests, signals).await;
    // Answers that are on their way are delivered; the server limits how long that takes.
    drop(stop);
    if let Some(server) = server {
        let _ = server.await;
    }
    ending
}

/// The paravisor is up.
fn announce(paravisor: &Paravisor) {
    let log = KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX);
    report::memory(&paravisor.topology, &log);
    paravisor.stamp("ready");
    log.info(own(READY));
    if is_on(EXIT_AFTER_BOOT) {
        log.info(&format!("{EXIT_AFTER_BOOT} asks for the end"));
    }
}

/// The moments before the control loop.
fn first_milestones(topology: &Topology, first_line: Ticks, configured: Ticks) -> Timeline {
    let mut timeline = Timeline::default();
    if let (Some(pair), Some((start, _))) = (shim_pair(topology), topology.shim_times) {
        timeline.add_reference("openhcl_boot", "started", timeline::reference_ns(start));
        if let Some((start, end)) = topology.sidecar_times {
            timeline.add_reference("sidecar", "starts", timeline::reference_ns(start));
            timeline.add_reference("sidecar", "started", timeline::reference_ns(end));
        }
        timeline.add("openhcl_boot", "starts_kernel", pair.ticks);
    }
    timeline.add("openvmm_hcl", "started", first_line);
    timeline.add("openvmm_hcl", "configured", configured);
    timeline
}

/// Counter and reference time at the end of the boot shim.
fn shim_pair(topology: &Topology) -> Option<Pair> {
    let (_, end) = topology.shim_times?;
    Some(Pair {
        ticks: Ticks(topology.shim_end_ticks?),
        ns: timeline::reference_ns(end),
    })
}

/// Anything but nothing and `0` switches an option on.
fn is_on(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0")
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
            boot_events::TOPOLOGY_PREFIX,
            boot_events::MEMORY_PREFIX,
            boot_events::SHIM_LOG_PREFIX,
            DIAG_READY,
            boot_events::WORKER_READY_PREFIX,
            boot_events::WORKER_DIED_PREFIX,
            boot_events::GUEST_RESET_PREFIX,
            boot_events::GUEST_POWERED_OFF,
            boot_events::GUEST_CRASHED_PREFIX,
            boot_events::GUEST_STOPPED_PREFIX,
            READY,
        ] {
            assert_eq!(format!("{PARAVISOR_PREFIX}{}", own(event)), event);
            assert_ne!(own(event), event);
        }
    }
}
