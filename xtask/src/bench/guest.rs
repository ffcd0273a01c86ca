//! `bench guest`: what the paravisor costs its guest.
//!
//! Everything is compared with plain QEMU in the same minute, in turns: the same Debian
//! kernel with the same initrd up to its first line, and the same test kernel with the same
//! work. Costs of single exits come from that test kernel, which counts them in ring 0.

use super::boot::Bench;
use super::figure::Figure;
use super::figure::Report;
use super::figure::Unit;
use super::figure::median;
use super::figure::ms;
use super::nested_kvm;
use super::paravisor::connect;
use super::paravisor::pss;
use crate::artifacts::ImageProfile;
use crate::cache::Cache;
use crate::cache::write_if_changed;
use crate::cargo::Workspace;
use crate::guest::image::GuestParts;
use crate::guest::initrd;
use crate::guest::kernel;
use crate::guest::kernel::Suite;
use crate::run::event_json;
use crate::vmm_tests::workspace_root;
use crate::vsock;
use anyhow::Context as _;
use boot_events::Event;
use boot_events::GUEST_STARTED;
use qemu::ByteCount;
use qemu::Exit;
use qemu::GuestPort;
use qemu::Machine;
use qemu::Source;
use qemu::Vm;
use qemu::Vsock;
use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use vsm_host_defs::ExitReason;

/// A hang is not a figure.
const DEADLINE: Duration = Duration::from_secs(180);

/// All memory of a machine.
const MEMORY: ByteCount = ByteCount::gib(1);

/// Numbers of VPs that are booted, and how much longer than on plain QEMU that may take.
const BOOTS: [(u32, f64); 2] = [(1, 2.0), (4, 2.5)];

/// Limits of the specification.
const MAX_EVENT_US: f64 = 15.0;
const MAX_RATIO_TO_KVM: f64 = 1.2;
const MAX_WORK_RATIO: f64 = 1.0 / 0.97;
const MAX_VTL2_BYTES: f64 = 70.0 * 1_048_576.0;

/// What the test kernel measures, and how often each.
const TEST_KERNEL: &str = "tests=bench count=2000";

/// The same for work without exits, long enough for a figure.
const TEST_KERNEL_WORK: &str = "tests=bench.work count=8000000";

/// Figures of the test kernel: name there, what it is, limit in microseconds.
const EVENTS: [(&str, &str, Option<f64>); 9] = [
    (
        "port_read",
        "  read of a device's port, by the worker",
        None,
    ),
    (
        "port_write",
        "  write of a device's port, by the worker",
        None,
    ),
    ("cpuid", "  CPUID, by the host", None),
    ("apic_read", "  read of the local APIC, by the host", None),
    (
        "self_ipi",
        "IPI to itself, by the host, x2APIC with EOI assist",
        Some(MAX_EVENT_US),
    ),
    (
        "timer_tick_by_deadline",
        "timer tick, by the host, x2APIC with EOI assist",
        Some(MAX_EVENT_US),
    ),
    ("self_ipi_xapic", "  IPI to itself, xAPIC page", None),
    ("timer_tick", "  timer tick, xAPIC page", None),
    ("ipi_ping_pong", "  IPI to another VP and back", None),
];

/// One boot of Debian under the paravisor.
struct Boot {
    started: Duration,
    control_pss: f64,
    worker_pss: f64,
    vtl2_bytes: f64,
}

/// What was seen with one number of VPs.
#[derive(Default)]
struct Boots {
    with: Vec<Boot>,
    /// Milliseconds on plain QEMU.
    plain: Vec<f64>,
    /// Milliseconds with the host and without the paravisor.
    alone: Vec<f64>,
}

/// The files of all machines.
struct Files {
    linux: GuestParts,
    linux_image: PathBuf,
    test_image: PathBuf,
    work_image: PathBuf,
    nested_initrd: PathBuf,
    vsock: Vsock,
}

/// A figure of the test kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ticks {
    pub(super) each: f64,
    /// 0 where nobody told.
    pub(super) hz: f64,
}

/// What one run of the test kernel has measured, by name.
pub(super) type Figures = BTreeMap<String, Ticks>;

/// Boots the machines in turns and makes figures of what was seen.
pub(super) fn measure(rounds: usize) -> anyhow::Result<Report> {
    let bench = Bench::new()?;
    let _lock = bench.lock()?;
    let files = Files::prepare(&bench)?;
    let mut boots: BTreeMap<u32, Boots> = BTreeMap::new();
    let (mut with, mut work, mut nested) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (vps, _) in BOOTS {
            let entry = boots.entry(vps).or_default();
            entry.with.push(bench.boot_guest(&files, vps)?);
            entry.plain.push(ms(bench.boot_guest_plain(&files, vps)?));
            entry.alone.push(ms(bench.boot_guest_alone(&files, vps)?));
        }
        nested.push(nested_kvm::exit_us(
            &bench,
            &files.linux,
            &files.nested_initrd,
        )?);
        with.push(bench.test_kernel(&files, &files.test_image)?);
        work.push((
            bench.test_kernel(&files, &files.work_image)?,
            bench.test_kernel_plain(TEST_KERNEL_WORK)?,
        ));
    }
    let mut report = Report::default();
    boot_times(&mut report, &boots);
    events(&mut report, &with, median(nested))?;
    work_ratio(&mut report, &work)?;
    let most = boots.into_iter().next_back();
    memory(&mut report, &most.context("nothing was booted")?.1.with);
    Ok(report)
}

fn boot_times(report: &mut Report, boots: &BTreeMap<u32, Boots>) {
    for (vps, limit) in BOOTS {
        let Some(boots) = boots.get(&vps) else {
            continue;
        };
        let with = median(boots.with.iter().map(|boot| ms(boot.started)));
        let plain = median(boots.plain.iter().copied());
        let alone = median(boots.alone.iter().copied());
        let name = |stem: &str, unit: &str| format!("{stem}_{vps}_vps{unit}");
        report.push(
            Figure::new(
                &name("guest_init_ratio", ""),
                &format!("QEMU start to the guest's init, against plain QEMU, {vps} VPs"),
                Unit::Ratio,
                with / plain,
            )
            .at_most(limit),
        );
        report.push(Figure::new(
            &name("guest_init_ratio_to_alone", ""),
            "  against the host alone, without the paravisor",
            Unit::Ratio,
            with / alone,
        ));
        for (stem, what, value) in [
            ("guest_init", "  with the paravisor", with),
            ("plain_guest_init", "  plain QEMU", plain),
            ("alone_guest_init", "  host alone", alone),
        ] {
            report.push(Figure::new(&name(stem, "_ms"), what, Unit::Ms, value));
        }
    }
}

fn events(report: &mut Report, with: &[Figures], nested_us: f64) -> anyhow::Result<()> {
    let all = |name: &str| -> Option<Vec<Ticks>> {
        with.iter().map(|run| run.get(name).copied()).collect()
    };
    let us = |name: &str| -> anyhow::Result<f64> {
        let ticks = all(name).with_context(|| format!("the test kernel has no {name}"))?;
        Ok(median(
            ticks.iter().map(|ticks| ticks.each / ticks.hz * 1e6),
        ))
    };
    report.push(
        Figure::new(
            "port_write_ratio_to_kvm",
            "write of a device's port, against a nested KVM guest's",
            Unit::Ratio,
            us("port_write")? / nested_us,
        )
        .at_most(MAX_RATIO_TO_KVM),
    );
    let what = "  write of a port by a nested KVM guest";
    report.push(Figure::new("kvm_port_write_us", what, Unit::Us, nested_us));
    for (name, what, limit) in EVENTS {
        let us = us(name)?;
        let mut figure = Figure::new(&format!("{name}_us"), what, Unit::Us, us);
        if let Some(limit) = limit {
            figure = figure.at_most(limit);
        }
        report.push(figure);
    }
    Ok(())
}

/// Each pair is of the same moment: with the paravisor and without.
fn work_ratio(report: &mut Report, work: &[(Figures, Figures)]) -> anyhow::Result<()> {
    let of = |figures: &Figures| -> anyhow::Result<f64> {
        let ticks = figures.get("work").context("the test kernel has no work")?;
        Ok(ticks.each)
    };
    let ratios = work.iter().map(|(with, plain)| Ok(of(with)? / of(plain)?));
    let ratio = median(ratios.collect::<anyhow::Result<Vec<_>>>()?);
    let what = "work without exits, time against plain QEMU";
    report.push(Figure::new("work_ratio", what, Unit::Ratio, ratio).at_most(MAX_WORK_RATIO));
    Ok(())
}

fn memory(report: &mut Report, boots: &[Boot]) {
    let of = |value: fn(&Boot) -> f64| median(boots.iter().map(value));
    let (vtl2, control, worker) = (
        of(|boot| boot.vtl2_bytes),
        of(|boot| boot.control_pss),
        of(|boot| boot.worker_pss),
    );
    let what = "VTL2 memory with a guest of 4 VPs";
    report.push(
        Figure::new("vtl2_with_guest_bytes", what, Unit::Bytes, vtl2).at_most(MAX_VTL2_BYTES),
    );
    for (name, what, value) in [
        (
            "control_with_guest_pss_bytes",
            "  openvmm_hcl (PSS)",
            control,
        ),
        (
            "worker_with_guest_pss_bytes",
            "  underhill_vm (PSS)",
            worker,
        ),
    ] {
        report.push(Figure::new(name, what, Unit::Bytes, value));
    }
}

impl Files {
    fn prepare(bench: &Bench) -> anyhow::Result<Self> {
        let cache = Cache::open()?;
        let kernel = kernel::ensure(&cache, Suite::Bookworm)?;
        let linux = GuestParts {
            kernel: kernel.vmlinuz.clone(),
            initrd: Some(initrd::ensure(&Workspace::current()?)?),
            command_line: crate::run::guest::COMMAND_LINE.to_owned(),
        };
        let test_kernel = |command_line: &str| GuestParts {
            kernel: bench.artifacts.guest_tests.clone(),
            initrd: None,
            command_line: command_line.to_owned(),
        };
        let pack = |parts: &GuestParts, name: &str| -> anyhow::Result<PathBuf> {
            let path = bench.consoles.join(name);
            let profile = ImageProfile::Release;
            parts.pack(&bench.artifacts, profile, &workspace_root(), &path)?;
            Ok(path)
        };
        Ok(Self {
            linux_image: pack(&linux, "guest.igvm")?,
            test_image: pack(&test_kernel(TEST_KERNEL), "guest-tests.igvm")?,
            work_image: pack(&test_kernel(TEST_KERNEL_WORK), "guest-work.igvm")?,
            nested_initrd: nested_kvm::write_initrd(bench, &cache, &linux, &kernel)?,
            linux,
            vsock: vsock::ensure(&cache)?,
        })
    }
}

impl Bench {
    fn with_paravisor(&self, files: &Files, image: &Path, vps: u32) -> anyhow::Result<Vm> {
        let machine = Machine::vsm(&self.artifacts.vsm_host, image)
            .vps(vps)
            .memory(MEMORY)
            .vsock(files.vsock.clone());
        Ok(machine.start(&self.qemu, &self.consoles.join(format!("guest-{vps}")))?)
    }

    /// Boots Debian under the paravisor until its init has said its first line.
    fn boot_guest(&self, files: &Files, vps: u32) -> anyhow::Result<Boot> {
        let mut vm = self.with_paravisor(files, &files.linux_image, vps)?;
        let client = connect(&mut vm)?;
        let mut console = vm.guest_console(GuestPort::Com1)?;
        let started = console.wait_for_text(GUEST_STARTED, DEADLINE)?.at;
        let processes = client.inspect("proc", 2)?;
        let memory = event_json(&vm, |event| match event {
            Event::Memory(json) => Some(json),
            _ => None,
        });
        let vtl2_bytes = memory["vtl2_bytes"].as_f64().context("vtl2_bytes")?;
        client.power_off()?;
        let exit = vm.wait_exit(DEADLINE)?;
        anyhow::ensure!(
            exit == Exit::Host(ExitReason::PowerOff),
            "{exit}, expected an orderly power-off\n{}",
            vm.report()
        );
        Ok(Boot {
            started,
            control_pss: pss(&processes, "openvmm_hcl")?,
            worker_pss: pss(&processes, "underhill_vm")?,
            vtl2_bytes,
        })
    }

    /// The same on QEMU itself; there the console is the third serial port.
    fn boot_guest_plain(&self, files: &Files, vps: u32) -> anyhow::Result<Duration> {
        let linux = &files.linux;
        let initrd = linux.initrd.as_deref().context("the guest has an initrd")?;
        let machine = Machine::plain(&linux.kernel, initrd)
            .vps(vps)
            .memory(MEMORY)
            .bootarg(linux.command_line.replace("ttyS0", "ttyS2"));
        let mut vm = machine.start(&self.qemu, &self.consoles.join("guest-plain"))?;
        let line = vm.wait_for_text(Source::Vtl2, GUEST_STARTED, DEADLINE)?;
        vm.kill()?;
        Ok(line.at)
    }

    /// The same without the paravisor: the host starts the guest with the whole machine.
    fn boot_guest_alone(&self, files: &Files, vps: u32) -> anyhow::Result<Duration> {
        let consoles = self.consoles.join("guest-alone");
        let image = consoles.join("linux.igvm");
        let machine = Machine::without_paravisor(&self.artifacts.vsm_host, &image)
            .vps(vps)
            .memory(MEMORY);
        let first_apic_id = machine.apic_ids().first().copied().unwrap_or_default();
        let bytes = files.linux.pack_alone(MEMORY.get(), vps, first_apic_id)?;
        write_if_changed(&image, &bytes)?;
        let mut vm = machine.start(&self.qemu, &consoles)?;
        let line = vm.wait_for_text(Source::Vtl2, GUEST_STARTED, DEADLINE)?;
        vm.kill()?;
        Ok(line.at)
    }

    /// Runs the test kernel under the paravisor.
    fn test_kernel(&self, files: &Files, image: &Path) -> anyhow::Result<Figures> {
        let mut vm = self.with_paravisor(files, image, 2)?;
        connect(&mut vm)?;
        let mut console = vm.guest_console(GuestPort::Com1)?;
        anyhow::ensure!(
            console.wait_end(DEADLINE),
            "the test kernel has not ended\n{}",
            vm.report()
        );
        Ok(figures(&console.text()))
    }

    /// The same on QEMU itself, with what it says in a file.
    fn test_kernel_plain(&self, command_line: &str) -> anyhow::Result<Figures> {
        let log = self.consoles.join("guest-tests-plain.log");
        let machine = Machine::plain(&self.artifacts.guest_tests, &self.artifacts.initrd)
            .vps(2)
            .bootarg(command_line)
            .extra([
                "-chardev".to_owned(),
                format!("file,id=com1,path={}", log.display()),
                "-device".to_owned(),
                "isa-serial,index=0,chardev=com1".to_owned(),
            ]);
        let mut vm = machine.start(&self.qemu, &self.consoles.join("guest-plain"))?;
        vm.wait_exit(DEADLINE)?;
        let text =
            std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        Ok(figures(&text))
    }
}

/// Reads lines like `bench port_read count=4096 ticks=123 hz=1000000`.
pub(super) fn figures(text: &str) -> Figures {
    let figure = |line: &str| {
        let mut words = line.trim().strip_prefix("bench ")?.split(' ');
        let name = words.next()?.to_owned();
        let mut number = |prefix: &str| words.next()?.strip_prefix(prefix)?.parse::<f64>().ok();
        let (count, ticks, hz) = (number("count=")?, number("ticks=")?, number("hz=")?);
        let each = ticks / count;
        Some((name, Ticks { each, hz }))
    };
    text.lines().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_test_kernel_are_read_and_others_are_not() {
        let text = "guest tests: 2\r\nbench port_read count=4 ticks=100 hz=1000\r\nbench x\n";
        let read = figures(text);
        let expected = Ticks {
            each: 25.0,
            hz: 1000.0,
        };
        assert_eq!(read.len(), 1);
        assert_eq!(read["port_read"], expected);
    }
}
