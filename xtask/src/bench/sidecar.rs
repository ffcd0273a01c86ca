//! `bench sidecar`: what many processors cost at boot, with and without the sidecar.
//!
//! Three machines have the same QEMU with the same processors. In the first, most are in the
//! sidecar; in the second, VTL2 has one and the others are never started; in the third, Linux
//! has them all. QEMU's own cost for a processor is in all three.

use super::boot::Bench;
use super::boot::MEMORY;
use super::curve;
use super::curve::Curve;
use super::figure::Figure;
use super::figure::Report;
use super::figure::Unit;
use super::figure::median;
use super::figure::ms;
use super::guest::figures;
use crate::artifacts::ImageProfile;
use crate::cache::Cache;
use crate::guest::image::GuestParts;
use crate::run::EXIT_AFTER_BOOT;
use crate::run::event_json;
use crate::vmm_tests::workspace_root;
use crate::vsock;
use anyhow::Context as _;
use boot_events::Event;
use diag_client::Client;
use qemu::ByteCount;
use qemu::Exit;
use qemu::GuestPort;
use qemu::Machine;
use qemu::StageName;
use qemu::Timeline;
use qemu::Vm;
use qemu::Vsock;
use serde_json::Value;
use sidecar_defs::MAX_CPUS_PER_NODE;
use sidecar_defs::node_memory_size;
use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use vmm_tests::diag_address;
use vsm_host_defs::ExitReason;

/// A hang is not a figure.
const DEADLINE: Duration = Duration::from_secs(180);

/// Numbers of VPs of the curve.
const CURVE: [u32; 7] = [1, 2, 4, 8, 16, 32, MANY];
/// VPs of the figures.
const MANY: u32 = 64;
/// The same for all machines, and enough for Linux with all of them.
const VTL2_MEMORY: ByteCount = ByteCount::mib(256);

/// VPs of the guests.
const GUEST_VPS: u32 = 4;
/// Whether a VP leaves the sidecar when its guest uses devices again and again.
const STAYS: &str = "OPENHCL_SIDECAR_LEAVE_ON_EXIT=0";
const LEAVES: &str = "OPENHCL_SIDECAR_LEAVE_ON_EXIT=1";

/// Limits of the specification.
const MAX_RATIO_TO_ONE: f64 = 1.15;
const MAX_RATIO_TO_ALL: f64 = 0.55;
const MAX_START_RATIO: f64 = 1.0 / 50.0;
const MAX_ONLINE_RATIO: f64 = 1.0 / 20.0;
const MAX_CPU_BYTES: f64 = 56.0 * 1024.0;

/// Where processors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    /// Most are in the sidecar.
    Sidecar,
    /// One is in Linux, the others nowhere.
    One,
    /// All are in Linux.
    Linux,
}

impl Where {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Sidecar => &[],
            Self::One => &["OPENHCL_SIDECAR=off", "maxcpus=1"],
            Self::Linux => &["OPENHCL_SIDECAR=off"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::One => "one",
            Self::Linux => "linux",
        }
    }
}

/// A boot until the paravisor is ready.
struct Boot {
    ready: f64,
    /// What Linux uses, in bytes.
    footprint: f64,
    /// Milliseconds that the start of all sidecar CPUs took, and how many they are.
    start: Option<(f64, f64)>,
}

type Boots = BTreeMap<(Where, u32), Vec<Boot>>;

/// Boots the machines in turns and makes figures of what was seen. Also the curve.
pub(super) fn measure(rounds: usize) -> anyhow::Result<(Report, Curve)> {
    let bench = Bench::new()?;
    let _lock = bench.lock()?;
    let mut boots = Boots::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for vps in CURVE {
            for place in [Where::Sidecar, Where::One, Where::Linux] {
                let boot = bench.boot_many(place, vps)?;
                boots.entry((place, vps)).or_default().push(boot);
            }
        }
    }
    let guests = Guests::prepare(&bench)?;
    let mut seen = Seen::default();
    for round in 1..=rounds {
        eprintln!("guests, round {round} of {rounds}");
        guests.look(&bench, &mut seen)?;
    }
    let mut report = Report::default();
    times(&mut report, &boots)?;
    starts(&mut report, &boots, median(seen.online))?;
    exits(&mut report, median(seen.sidecar), median(seen.linux));
    memory(&mut report, &boots);
    let line = |name: &str, place: Where| curve::Line {
        name: name.to_owned(),
        points: CURVE
            .iter()
            .map(|vps| (*vps, of(&boots, place, *vps, |boot| boot.ready)))
            .collect(),
    };
    let curve = Curve {
        title: "QEMU start to paravisor ready".to_owned(),
        lines: vec![
            line("all in Linux", Where::Linux),
            line("sidecar", Where::Sidecar),
            line("one in Linux, others not started", Where::One),
        ],
    };
    Ok((report, curve))
}

fn of(boots: &Boots, place: Where, vps: u32, value: impl Fn(&Boot) -> f64) -> f64 {
    median(boots.get(&(place, vps)).into_iter().flatten().map(value))
}

fn times(report: &mut Report, boots: &Boots) -> anyhow::Result<()> {
    let ready = |place, vps| of(boots, place, vps, |boot| boot.ready);
    let sidecar = ready(Where::Sidecar, MANY);
    for (name, what, place, limit) in [
        (
            "ready_ratio_to_one",
            "QEMU start to ready, 64 VPs, against one Linux CPU",
            Where::One,
            MAX_RATIO_TO_ONE,
        ),
        (
            "ready_ratio_to_linux",
            "QEMU start to ready, 64 VPs, against all in Linux",
            Where::Linux,
            MAX_RATIO_TO_ALL,
        ),
    ] {
        let ratio = sidecar / ready(place, MANY);
        report.push(Figure::new(name, what, Unit::Ratio, ratio).at_most(limit));
    }
    for vps in CURVE {
        for place in [Where::Sidecar, Where::One, Where::Linux] {
            let place_name = place.name();
            let name = format!("ready_{place_name}_{vps}_vps_ms");
            let what = format!("  {vps} VPs, {place_name}");
            report.push(Figure::new(&name, &what, Unit::Ms, ready(place, vps)));
        }
    }
    Ok(())
}

/// `online`: how long it took to bring a CPU to Linux later, in milliseconds.
fn starts(report: &mut Report, boots: &Boots, online: f64) -> anyhow::Result<()> {
    let many = boots.get(&(Where::Sidecar, MANY)).into_iter().flatten();
    let each: Vec<_> = many
        .filter_map(|boot| boot.start.map(|(time, cpus)| time / cpus))
        .collect();
    anyhow::ensure!(!each.is_empty(), "no CPU of 64 was in the sidecar");
    let sidecar = median(each);
    let ready = |place| of(boots, place, MANY, |boot| boot.ready);
    let linux = (ready(Where::Linux) - ready(Where::One)) / f64::from(MANY - 1);
    for (name, what, other, limit) in [
        (
            "start_ratio_to_linux",
            "start of a CPU in the sidecar, against Linux at boot",
            linux,
            MAX_START_RATIO,
        ),
        (
            "start_ratio_to_online",
            "start of a CPU in the sidecar, against Linux later",
            online,
            MAX_ONLINE_RATIO,
        ),
    ] {
        report.push(Figure::new(name, what, Unit::Ratio, sidecar / other).at_most(limit));
    }
    for (name, what, value) in [
        ("sidecar_start_us", "  in the sidecar", sidecar),
        ("linux_start_us", "  in Linux, at boot", linux),
        ("online_us", "  in Linux, later, from the sidecar", online),
    ] {
        report.push(Figure::new(name, what, Unit::Us, value * 1e3));
    }
    Ok(())
}

fn memory(report: &mut Report, boots: &Boots) {
    let nodes = MANY.div_ceil(MAX_CPUS_PER_NODE);
    let bytes = u64::from(nodes) * node_memory_size(MAX_CPUS_PER_NODE);
    let what = "memory of a CPU in the sidecar";
    let each = bytes as f64 / f64::from(MANY - nodes);
    report.push(Figure::new("sidecar_cpu_bytes", what, Unit::Bytes, each).at_most(MAX_CPU_BYTES));
    let footprint = |place, vps| of(boots, place, vps, |boot| boot.footprint);
    let single = footprint(Where::Linux, 1);
    for (name, what, place) in [
        (
            "possible_cpu_bytes",
            "  what Linux keeps for it",
            Where::Sidecar,
        ),
        ("linux_cpu_bytes", "  of a CPU in Linux", Where::Linux),
    ] {
        let each = (footprint(place, MANY) - single) / f64::from(MANY - 1);
        report.push(Figure::new(name, what, Unit::Bytes, each));
    }
}

fn exits(report: &mut Report, sidecar: f64, linux: f64) {
    let what = "exit of a VP in the sidecar and back, against Linux";
    report.push(Figure::new(
        "exit_ratio_to_linux",
        what,
        Unit::Ratio,
        sidecar / linux,
    ));
    for (name, what, value) in [
        ("sidecar_exit_us", "  in the sidecar", sidecar),
        ("linux_exit_us", "  in Linux", linux),
    ] {
        report.push(Figure::new(name, what, Unit::Us, value));
    }
}

/// What guests show.
#[derive(Default)]
struct Seen {
    /// Exits and back, in microseconds.
    sidecar: Vec<f64>,
    linux: Vec<f64>,
    /// CPUs that came to Linux, in milliseconds.
    online: Vec<f64>,
}

/// Machines whose guest is the test kernel.
struct Guests {
    exits: PathBuf,
    moves: PathBuf,
    vsock: Vsock,
}

impl Guests {
    fn prepare(bench: &Bench) -> anyhow::Result<Self> {
        let pack = |tests: &str, name: &str| -> anyhow::Result<PathBuf> {
            let path = bench.consoles.join(name);
            let parts = GuestParts {
                kernel: bench.artifacts.guest_tests.clone(),
                initrd: None,
                command_line: format!("tests={tests} count=4096"),
            };
            let profile = ImageProfile::Release;
            parts.pack(&bench.artifacts, profile, &workspace_root(), &path)?;
            Ok(path)
        };
        Ok(Self {
            exits: pack("bench.port_write_elsewhere", "sidecar-exits.igvm")?,
            moves: pack("moves.nothing_is_lost", "sidecar-moves.igvm")?,
            vsock: vsock::ensure(&Cache::open()?)?,
        })
    }

    fn look(&self, bench: &Bench, seen: &mut Seen) -> anyhow::Result<()> {
        seen.sidecar.push(self.exit_us(bench, STAYS)?);
        seen.linux.push(self.exit_us(bench, LEAVES)?);
        seen.online.extend(self.online_ms(bench)?);
        Ok(())
    }

    fn start(&self, bench: &Bench, image: &Path, option: &str) -> anyhow::Result<Vm> {
        let machine = Machine::vsm(&bench.artifacts.vsm_host, image)
            .vps(GUEST_VPS)
            .memory(MEMORY)
            .bootarg(option)
            .vsock(self.vsock.clone());
        Ok(machine.start(&bench.qemu, &bench.consoles.join("sidecar-guest"))?)
    }

    /// A port written by a VP whose CPU stays in the sidecar, or does not.
    fn exit_us(&self, bench: &Bench, option: &str) -> anyhow::Result<f64> {
        let mut vm = self.start(bench, &self.exits, option)?;
        vm.wait_for_event(Event::Ready, DEADLINE)?;
        let mut console = vm.guest_console(GuestPort::Com1)?;
        let report = |vm: &mut Vm| format!("the test kernel has not ended\n{}", vm.report());
        anyhow::ensure!(console.wait_end(DEADLINE), "{}", report(&mut vm));
        let found = figures(&console.text());
        let ticks = found
            .get("port_write_elsewhere")
            .with_context(|| report(&mut vm))?;
        Ok(ticks.each / ticks.hz * 1e6)
    }

    /// Brings the CPUs of a guest at work to Linux, one after the other.
    fn online_ms(&self, bench: &Bench) -> anyhow::Result<Vec<f64>> {
        let mut vm = self.start(bench, &self.moves, LEAVES)?;
        vm.wait_for_event(Event::Ready, DEADLINE)?;
        let mut console = vm.guest_console(GuestPort::Com1)?;
        console.wait_for_text("note moves begin", DEADLINE)?;
        let address = vm.vsock().context("the machine has no vsock")?;
        let client = Client::connect_within(diag_address(address), DEADLINE)?;
        let mut times = Vec::new();
        for cpu in 1..GUEST_VPS {
            let started = Instant::now();
            let reason = client.online_cpu(cpu)?;
            anyhow::ensure!(
                reason.as_deref() == Some("request"),
                "CPU {cpu} came to Linux for {reason:?}, expected a request"
            );
            times.push(ms(started.elapsed()));
        }
        vm.kill()?;
        Ok(times)
    }
}

impl Bench {
    fn boot_many(&self, place: Where, vps: u32) -> anyhow::Result<Boot> {
        let mut machine = Machine::vsm(&self.artifacts.vsm_host, &self.artifacts.igvm)
            .vps(vps)
            .memory(MEMORY)
            .vtl2_memory(VTL2_MEMORY)
            .bootarg(EXIT_AFTER_BOOT);
        for option in place.options() {
            machine = machine.bootarg(*option);
        }
        let consoles = self.consoles.join(format!("{}-{vps}", place.name()));
        let mut vm = machine.start(&self.qemu, &consoles)?;
        let exit = vm.wait_exit(DEADLINE)?;
        let timeline = Timeline::of(&vm);
        let ready = timeline.end_of(StageName::Usermode);
        let place = place.name();
        let ready = ready
            .filter(|_| exit == Exit::Host(ExitReason::PowerOff))
            .with_context(|| {
                let report = vm.report();
                format!(
                    "{vps} VPs, {place}: {exit}, expected the paravisor and power-off\n{report}"
                )
            })?;
        let memory = event_json(&vm, |event| match event {
            Event::Memory(json) => Some(json),
            _ => None,
        });
        let topology = event_json(&vm, |event| match event {
            Event::Topology(json) => Some(json),
            _ => None,
        });
        Ok(Boot {
            ready: ms(ready),
            footprint: memory
                .get("footprint_bytes")
                .and_then(Value::as_f64)
                .context("the paravisor does not tell its footprint")?,
            start: start(&topology),
        })
    }
}

/// How long the start of the sidecar took in milliseconds, and how many CPUs it started.
fn start(topology: &Value) -> Option<(f64, f64)> {
    let sidecar = topology.get("sidecar")?;
    let ns = sidecar.get("start_ns")?.as_f64()?;
    let cpus = sidecar.get("cpus")?.as_f64()?;
    (cpus > 0.0).then_some((ns / 1e6, cpus))
}
