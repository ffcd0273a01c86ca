//! `bench paravisor`: how soon the paravisor answers, how fast it answers, what its
//! processes cost.
//!
//! Three things are compared, each within one run: the boot to the first answer with the
//! same kernel on plain QEMU, an answer with an echo of the same size by a program that
//! does nothing else, and a call between processes with a bare pair of sockets.

use super::boot::Bench;
use super::boot::MEMORY;
use super::boot::command_line_for_plain;
use super::figure::Figure;
use super::figure::Report;
use super::figure::Unit;
use super::figure::median;
use super::figure::ms;
use crate::artifacts;
use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::cache::Cache;
use crate::cargo;
use crate::process;
use crate::run::event_json;
use crate::vmm_tests::workspace_root;
use crate::vsock;
use anyhow::Context as _;
use boot_events::Event;
use diag_client::Client;
use diag_client::Exec;
use diag_client::Process;
use inspect::Node;
use qemu::Exit;
use qemu::Machine;
use qemu::Vm;
use qemu::Vsock;
use serde::Deserialize;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;
use vmm_tests::diag_address;
use vsm_host_defs::ExitReason;
use vsock_peer::ECHO_PORT;
use vsock_peer::LISTENING;

/// A hang is not a figure.
const DEADLINE: Duration = Duration::from_secs(180);

/// Limits of the specification.
const MAX_RATIO_TO_PLAIN: f64 = 2.0;
const MAX_RATIO_TO_ECHO: f64 = 3.0;
const MAX_RATIO_TO_SOCKETPAIR: f64 = 2.0;
const MAX_BINARY_BYTES: f64 = 6.0 * MIB;
/// What the original's processes need.
const MAX_CONTROL_PSS: f64 = 5.3 * MIB;
const MAX_WORKER_PSS: f64 = 13.2 * MIB;

const MIB: f64 = 1_048_576.0;

/// Bytes of an echo: about those of a ping's request with its header.
const ECHO_BYTES: usize = 64;

/// Pings and echoes take turns, so that a noisy moment hits both.
const TURNS: usize = 20;
const TURN: usize = 20;

/// One boot of the release image.
struct Boot {
    ping_answered: Duration,
    control_pss: f64,
    worker_pss: f64,
}

/// Round trips of one machine, in milliseconds.
#[derive(Default)]
struct RoundTrips {
    pings: Vec<f64>,
    echoes: Vec<f64>,
}

/// What mesh's own bench prints.
#[derive(Deserialize)]
struct MeshReport {
    payloads: Vec<MeshPayload>,
}

#[derive(Deserialize)]
struct MeshPayload {
    bytes: u32,
    mesh_rpc_ns: f64,
    seqpacket_ns: f64,
    ratio: f64,
}

/// Boots the machines in turns and makes figures of what was seen.
pub(super) fn measure(rounds: usize) -> anyhow::Result<Report> {
    let bench = Bench::new()?;
    let test = artifacts::ensure(ImageProfile::Test)?;
    let cache = Cache::open()?;
    let vsock = vsock::ensure(&cache)?;
    let _lock = bench.lock()?;
    let plain_initrd = bench.write_plain_initrd()?;

    let mut boots = Vec::new();
    let mut plain = Vec::new();
    let mut trips = RoundTrips::default();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let (boot, command_line) = bench.boot_to_ping(&vsock)?;
        plain.push(ms(bench.boot_plain(&plain_initrd, &command_line)?));
        boots.push(boot);
        bench.round_trips(&test, &vsock, &mut trips)?;
    }

    let mut report = Report::default();
    times(&mut report, &boots, plain, trips);
    mesh(&mut report, &cache)?;
    sizes(&mut report, &boots, &bench.artifacts.user_binary)?;
    Ok(report)
}

fn times(report: &mut Report, boots: &[Boot], plain: Vec<f64>, trips: RoundTrips) {
    let answered = median(boots.iter().map(|boot| ms(boot.ping_answered)));
    let plain = median(plain);
    let (ping, echo) = (median(trips.pings), median(trips.echoes));
    let limited = [
        (
            "ping_answered_ratio_to_plain",
            "QEMU start to ping answered, against plain QEMU to init",
            answered / plain,
            MAX_RATIO_TO_PLAIN,
        ),
        (
            "ping_ratio_to_echo",
            "ping, against a bare echo of 64 bytes over vsock",
            ping / echo,
            MAX_RATIO_TO_ECHO,
        ),
    ];
    for (name, what, value, limit) in limited {
        report.push(Figure::new(name, what, Unit::Ratio, value).at_most(limit));
    }
    for (name, what, unit, value) in [
        (
            "ping_answered_ms",
            "QEMU start to ping answered",
            Unit::Ms,
            answered,
        ),
        (
            "plain_init_ms",
            "QEMU start to init, plain QEMU",
            Unit::Ms,
            plain,
        ),
        ("ping_us", "  ping", Unit::Us, ping * 1e3),
        ("echo_us", "  bare echo", Unit::Us, echo * 1e3),
    ] {
        report.push(Figure::new(name, what, unit, value));
    }
}

/// Runs mesh's bench, which compares within itself.
fn mesh(report: &mut Report, cache: &Cache) -> anyhow::Result<()> {
    let example = |verb: &str| {
        let mut command = cargo::cargo(&workspace_root());
        command.args([verb, "--quiet", "--locked", "--release"]);
        command.args(["--package", "mesh", "--example", "mesh_bench"]);
        command
    };
    crate::ui::step("build the bench of mesh", |step| {
        process::run_logged(cache, "mesh-bench", step, &mut example("build"))
    })?;
    let text = process::capture(&mut example("run"))?;
    let results: MeshReport = serde_json::from_str(&text).context("output of mesh_bench")?;
    for MeshPayload {
        bytes,
        mesh_rpc_ns,
        seqpacket_ns,
        ratio,
    } in results.payloads
    {
        let what = format!("mesh call of {bytes} bytes, against a socket pair");
        let name = format!("mesh_rpc_ratio_{bytes}_bytes");
        report.push(Figure::new(&name, &what, Unit::Ratio, ratio).at_most(MAX_RATIO_TO_SOCKETPAIR));
        for (name, what, ns) in [
            ("mesh_rpc", "  mesh call", mesh_rpc_ns),
            ("socketpair", "  socket pair", seqpacket_ns),
        ] {
            let name = format!("{name}_{bytes}_bytes_us");
            report.push(Figure::new(&name, what, Unit::Us, ns / 1e3));
        }
    }
    Ok(())
}

fn sizes(report: &mut Report, boots: &[Boot], binary: &Path) -> anyhow::Result<()> {
    let binary =
        std::fs::metadata(binary).with_context(|| format!("reading {}", binary.display()))?;
    for (name, what, value, limit) in [
        (
            "control_pss_bytes",
            "openvmm_hcl, idle (PSS)",
            median(boots.iter().map(|boot| boot.control_pss)),
            MAX_CONTROL_PSS,
        ),
        (
            "worker_pss_bytes",
            "underhill_vm, idle (PSS)",
            median(boots.iter().map(|boot| boot.worker_pss)),
            MAX_WORKER_PSS,
        ),
        (
            "static_binary_bytes",
            "static binary of all personas",
            binary.len() as f64,
            MAX_BINARY_BYTES,
        ),
    ] {
        report.push(Figure::new(name, what, Unit::Bytes, value).at_most(limit));
    }
    Ok(())
}

impl Bench {
    /// Boots the release image until a ping is answered; also the command line for the
    /// same kernel on plain QEMU.
    fn boot_to_ping(&self, vsock: &Vsock) -> anyhow::Result<(Boot, String)> {
        let artifacts = &self.artifacts;
        let mut vm = Machine::vsm(&artifacts.vsm_host, &artifacts.igvm)
            .memory(MEMORY)
            .vsock(vsock.clone())
            .start(&self.qemu, &self.consoles.join("ping"))?;
        let client = connect(&mut vm)?;
        client.ping()?;
        let ping_answered = vm.elapsed();
        let processes = client.inspect("proc", 2)?;
        client.power_off()?;
        let exit = vm.wait_exit(DEADLINE)?;
        anyhow::ensure!(
            exit == Exit::Host(ExitReason::PowerOff),
            "{exit}, expected an orderly power-off\n{}",
            vm.report()
        );
        let boot = Boot {
            ping_answered,
            control_pss: pss(&processes, "openvmm_hcl")?,
            worker_pss: pss(&processes, "underhill_vm")?,
        };
        let topology = event_json(&vm, |event| match event {
            Event::Topology(json) => Some(json),
            _ => None,
        });
        Ok((boot, command_line_for_plain(&topology)?))
    }

    /// Pings and echoes of one machine, in turns.
    fn round_trips(
        &self,
        artifacts: &Artifacts,
        vsock: &Vsock,
        trips: &mut RoundTrips,
    ) -> anyhow::Result<()> {
        let mut vm = Machine::vsm(&artifacts.vsm_host, &artifacts.igvm)
            .memory(MEMORY)
            .vsock(vsock.clone())
            .start(&self.qemu, &self.consoles.join("echo"))?;
        let client = connect(&mut vm)?;
        let _peer = start_peer(&client)?;
        let address = vm.vsock().context("the machine has no vsock")?;
        let mut echo = address.connect(ECHO_PORT)?;
        let mut bytes = [0; ECHO_BYTES];
        for turn in 0..=TURNS {
            for _ in 0..TURN {
                let ping = ms(client.ping()?);
                let started = Instant::now();
                echo.write_all(&bytes)?;
                echo.read_exact(&mut bytes)?;
                // The first turn warms up.
                if turn > 0 {
                    trips.pings.push(ping);
                    trips.echoes.push(ms(started.elapsed()));
                }
            }
        }
        Ok(())
    }
}

/// A client, once the paravisor is ready.
pub(super) fn connect(vm: &mut Vm) -> anyhow::Result<Client> {
    vm.wait_for_event(Event::Ready, DEADLINE)?;
    let address = vm.vsock().context("the machine has no vsock")?;
    Ok(Client::connect_within(diag_address(address), DEADLINE)?)
}

/// Starts the program that echoes; it runs as long as the result lives.
fn start_peer(client: &Client) -> anyhow::Result<Process> {
    let mut peer = client.exec(&Exec {
        command: "/bin/vsock_peer".to_owned(),
        stdout: true,
        ..Exec::default()
    })?;
    let output = peer.stdout.as_mut().context("vsock_peer has no output")?;
    let mut said = Vec::new();
    while !said.ends_with(LISTENING.as_bytes()) {
        let mut byte = [0];
        let count = output.read(&mut byte).context("output of vsock_peer")?;
        anyhow::ensure!(
            count == 1,
            "vsock_peer said {:?} and ended, expected {LISTENING:?}",
            String::from_utf8_lossy(&said)
        );
        said.push(byte[0]);
    }
    Ok(peer)
}

/// The memory of the process with this name.
pub(super) fn pss(processes: &Node, name: &str) -> anyhow::Result<f64> {
    let process = processes.entries().iter().find(|entry| {
        let found = entry.node.get("name").and_then(Node::as_str);
        found == Some(name)
    });
    let bytes = process.and_then(|entry| entry.node.get("pss")?.as_u64());
    let bytes = bytes.with_context(|| format!("proc has no pss of {name}"))?;
    Ok(bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Inspect;
    use inspect::Query;
    use std::collections::BTreeMap;

    #[derive(Inspect)]
    struct Process {
        name: &'static str,
        #[inspect(unit = "bytes")]
        pss: u64,
    }

    #[test]
    fn a_process_is_found_by_its_name() {
        let process = |name, pss| Process { name, pss };
        let processes: BTreeMap<String, Process> = [
            ("1".to_owned(), process("underhill_init", 1)),
            ("30".to_owned(), process("openvmm_hcl", 1000)),
        ]
        .into();
        let node = Query::new("").evaluate(&processes).now();
        assert_eq!(pss(&node, "openvmm_hcl").unwrap(), 1000.0);
        let error = pss(&node, "underhill_vm").unwrap_err().to_string();
        assert!(error.contains("underhill_vm"), "{error}");
    }

    #[test]
    fn the_report_of_mesh_is_read() {
        let text = r#"{"version": 1, "round_trips": 10, "payloads": [
            {"bytes": 64, "mesh_rpc_ns": 9000, "seqpacket_ns": 6000, "stream_ns": 5000, "ratio": 1.5}
        ]}"#;
        let report: MeshReport = serde_json::from_str(text).unwrap();
        assert_eq!(report.payloads[0].bytes, 64);
        assert_eq!(report.payloads[0].ratio, 1.5);
    }
}
