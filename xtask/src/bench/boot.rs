//! `bench boot`: how long the stack takes from QEMU's start to PID 1, against the same
//! kernel on plain QEMU; stage by stage, with few and many VPs; and what it needs in bytes.

use super::figure::Figure;
use super::figure::Report;
use super::figure::Unit;
use super::figure::median;
use super::figure::ms;
use super::lines::count_without_tests;
use super::plain;
use crate::artifacts;
use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::cache::Lock;
use crate::cache::lock_file;
use crate::cargo::Workspace;
use crate::run::EXIT_AFTER_BOOT;
use crate::run::event_json;
use crate::vmm_tests::workspace_root;
use anyhow::Context as _;
use boot_events::Event;
use qemu::ByteCount;
use qemu::Exit;
use qemu::Machine;
use qemu::Qemu;
use qemu::Source;
use qemu::StageName;
use qemu::Timeline;
use serde_json::Value;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use vsm_host_defs::ExitReason;

/// A hang is not a figure.
const DEADLINE: Duration = Duration::from_secs(180);

/// The same for all machines, so that only what is compared differs.
pub(super) const MEMORY: ByteCount = ByteCount::gib(1);

/// VTL2 memory for 64 VPs: each costs Linux about 1 MiB, more than the image asks for.
const VTL2_MEMORY_64_VPS: ByteCount = ByteCount::mib(256);

/// Limits of the specification.
const MAX_RATIO_TO_PLAIN: f64 = 1.5;
const MAX_SHIM_MS: f64 = 15.0;
const MAX_RATIO_16_VPS: f64 = 2.5;
const MAX_HOST_LINES: f64 = 5000.0;
/// The size of the original's kernel, which ours must stay below.
const MAX_VMLINUX_BYTES: f64 = 12.0 * 1_000_000.0;
const MAX_PACKING_MS: f64 = 500.0;

/// A boot of the stack.
struct Boot {
    timeline: Timeline,
    topology: Value,
    memory: Value,
}

/// What all boots need.
pub(super) struct Bench {
    pub(super) qemu: Qemu,
    pub(super) artifacts: Artifacts,
    pub(super) consoles: PathBuf,
}

/// Boots the machines in turns and makes figures of what was seen.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<Report> {
    let bench = Bench::new()?;
    let _lock = bench.lock()?;
    let plain_initrd = bench.write_plain_initrd()?;

    let mut one = Vec::new();
    let mut four = Vec::new();
    let mut sixteen = Vec::new();
    let mut plain = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let boot = bench.boot(1, None)?;
        plain.push(bench.boot_plain(&plain_initrd, &command_line_for_plain(&boot.topology)?)?);
        one.push(boot);
        four.push(bench.boot(4, None)?);
        sixteen.push(bench.boot(16, None)?);
    }
    let sixty_four = bench.boot(64, Some(VTL2_MEMORY_64_VPS))?;

    let mut report = Report::default();
    times(&mut report, &one, &plain, &sixteen, &sixty_four);
    stages(&mut report, &one);
    shim(&mut report, &four);
    memory(&mut report, &one);
    bench.packing(&mut report, rounds)?;
    bench.sizes(&mut report)?;
    Ok(report)
}

fn times(report: &mut Report, one: &[Boot], plain: &[Duration], sixteen: &[Boot], many: &Boot) {
    let to_pid1 = |boots: &[Boot]| median(boots.iter().map(|boot| ms(boot.pid1())));
    let (one, sixteen) = (to_pid1(one), to_pid1(sixteen));
    let plain = median(plain.iter().copied().map(ms));
    report.push(
        Figure::new(
            "pid1_ratio_to_plain",
            "QEMU start to PID 1, against plain QEMU",
            Unit::Ratio,
            one / plain,
        )
        .at_most(MAX_RATIO_TO_PLAIN),
    );
    report.push(
        Figure::new(
            "pid1_ratio_16_vps",
            "QEMU start to PID 1, 16 VPs against 1",
            Unit::Ratio,
            sixteen / one,
        )
        .at_most(MAX_RATIO_16_VPS),
    );
    for (name, what, value) in [
        ("pid1_ms", "QEMU start to PID 1, 1 VP", one),
        ("pid1_plain_ms", "QEMU start to PID 1, plain QEMU", plain),
        ("pid1_16_vps_ms", "QEMU start to PID 1, 16 VPs", sixteen),
        (
            "pid1_64_vps_ms",
            "QEMU start to PID 1, 64 VPs (one boot)",
            ms(many.pid1()),
        ),
    ] {
        report.push(Figure::new(name, what, Unit::Ms, value));
    }
}

fn stages(report: &mut Report, boots: &[Boot]) {
    for name in StageName::ALL {
        let durations = boots
            .iter()
            .filter_map(|boot| Some(ms(boot.timeline.stage(name)?.duration())));
        report.push(Figure::new(
            &format!("stage_{}_ms", name.name()),
            &format!("  stage {}, 1 VP", name.name()),
            Unit::Ms,
            median(durations),
        ));
    }
}

fn shim(report: &mut Report, boots: &[Boot]) {
    report.push(
        Figure::new(
            "openhcl_boot_guest_ms",
            "openhcl_boot, guest time, 4 VPs",
            Unit::Ms,
            median(boots.iter().filter_map(Boot::shim_guest_ms)),
        )
        .at_most(MAX_SHIM_MS),
    );
}

fn memory(report: &mut Report, boots: &[Boot]) {
    let number = |key: &str| {
        median(
            boots
                .iter()
                .filter_map(|boot| boot.memory.get(key)?.as_f64()),
        )
    };
    report.push(Figure::new(
        "vtl2_bytes",
        "VTL2 memory that the image boots with",
        Unit::Bytes,
        number("vtl2_bytes"),
    ));
    report.push(Figure::new(
        "vtl2_idle_bytes",
        "  used when idle, the kernel's reservation included",
        Unit::Bytes,
        number("footprint_bytes"),
    ));
}

impl Bench {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            qemu: Qemu::find()?,
            artifacts: artifacts::ensure(ImageProfile::Release)?,
            consoles: Workspace::current()?.target.join("bench"),
        })
    }

    /// Two benches at once would measure each other.
    pub(super) fn lock(&self) -> anyhow::Result<Lock> {
        lock_file(&self.consoles.join("lock"))
    }

    /// Writes the initrd of the plain machine.
    pub(super) fn write_plain_initrd(&self) -> anyhow::Result<PathBuf> {
        let path = self.consoles.join("plain.cpio");
        std::fs::write(&path, plain::initrd()?)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Boots the stack with so many VPs until it has powered off.
    fn boot(&self, vps: u32, vtl2_memory: Option<ByteCount>) -> anyhow::Result<Boot> {
        let mut machine = Machine::vsm(&self.artifacts.vsm_host, &self.artifacts.igvm)
            .vps(vps)
            .memory(MEMORY)
            .bootarg(EXIT_AFTER_BOOT);
        if let Some(size) = vtl2_memory {
            machine = machine.vtl2_memory(size);
        }
        let mut vm = machine.start(&self.qemu, &self.consoles.join(format!("vps-{vps}")))?;
        let exit = vm.wait_exit(DEADLINE)?;
        let timeline = Timeline::of(&vm);
        anyhow::ensure!(
            exit == Exit::Host(ExitReason::PowerOff)
                && timeline.end_of(StageName::Linux).is_some()
                && timeline.end_of(StageName::Usermode).is_some(),
            "boot with {vps} VPs: {exit}, expected PID 1, the paravisor and power-off\n{}",
            vm.report()
        );
        Ok(Boot {
            timeline,
            topology: event_json(&vm, |event| match event {
                Event::Topology(json) => Some(json),
                _ => None,
            }),
            memory: event_json(&vm, |event| match event {
                Event::Memory(json) => Some(json),
                _ => None,
            }),
        })
    }

    /// Boots the same kernel on plain QEMU until its PID 1 runs.
    pub(super) fn boot_plain(&self, initrd: &Path, command_line: &str) -> anyhow::Result<Duration> {
        let mut vm = Machine::plain(&self.artifacts.vmlinux, initrd)
            .memory(MEMORY)
            .bootarg(command_line)
            .start(&self.qemu, &self.consoles.join("plain"))?;
        let line = vm.wait_for_text(Source::Vtl2, plain::PLAIN_INIT_STARTED, DEADLINE)?;
        Ok(line.at)
    }

    fn sizes(&self, report: &mut Report) -> anyhow::Result<()> {
        let size = |path: &Path| -> anyhow::Result<f64> {
            let metadata =
                std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
            Ok(metadata.len() as f64)
        };
        report.push(
            Figure::new(
                "vmlinux_bytes",
                "kernel (vmlinux)",
                Unit::Bytes,
                size(&self.artifacts.vmlinux)?,
            )
            .at_most(MAX_VMLINUX_BYTES),
        );
        for (name, what, path) in [
            ("initrd_bytes", "initrd", &self.artifacts.initrd),
            ("igvm_bytes", "IGVM image", &self.artifacts.igvm),
        ] {
            report.push(Figure::new(name, what, Unit::Bytes, size(path)?));
        }
        let lines = count_without_tests(&workspace_root().join("vsm_host/src"))?;
        report.push(
            Figure::new(
                "vsm_host_code_lines",
                "vsm_host, lines of code without tests",
                Unit::Lines,
                lines.code as f64,
            )
            .at_most(MAX_HOST_LINES),
        );
        report.push(Figure::new(
            "vsm_host_lines",
            "  comments and blank lines included",
            Unit::Lines,
            lines.all as f64,
        ));
        let lines = count_without_tests(&workspace_root().join("vm/igvm_loader/src"))?;
        report.push(Figure::new(
            "igvm_loader_code_lines",
            "igvm_loader, which the host uses",
            Unit::Lines,
            lines.code as f64,
        ));
        Ok(())
    }

    /// Packs the release image again, in memory, from files that were just read.
    fn packing(&self, report: &mut Report, rounds: usize) -> anyhow::Result<()> {
        let read = |path: &Path| {
            std::fs::read(path).with_context(|| format!("reading {}", path.display()))
        };
        let manifest = ImageProfile::Release.manifest(&workspace_root());
        let manifest = igvm_builder::Manifest::load(&manifest)?;
        let kernel = read(&self.artifacts.vmlinux)?;
        let shim = read(&self.artifacts.openhcl_boot)?;
        let sidecar = read(&self.artifacts.sidecar)?;
        let initrd = read(&self.artifacts.initrd)?;
        let resources = igvm_builder::Resources {
            kernel: &kernel,
            shim: &shim,
            initrd: &initrd,
            sidecar: manifest.sidecar.then_some(&sidecar),
            guest: None,
        };
        let mut times = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            igvm_builder::build(&manifest, &resources)?;
            times.push(ms(start.elapsed()));
        }
        report.push(
            Figure::new(
                "packing_ms",
                "packing the image, parts at hand",
                Unit::Ms,
                median(times),
            )
            .at_most(MAX_PACKING_MS),
        );
        Ok(())
    }
}

impl Boot {
    fn pid1(&self) -> Duration {
        // `boot` gives none without it.
        self.timeline.end_of(StageName::Linux).unwrap_or_default()
    }

    /// The boot shim's own measurement, in the guest's reference time.
    fn shim_guest_ms(&self) -> Option<f64> {
        Some(self.topology.get("boot_shim_us")?.as_f64()? / 1e3)
    }
}

/// The kernel's command line, but for what only concerns our initrd: the baseline kernel
/// gets the very same options.
pub(super) fn command_line_for_plain(topology: &Value) -> anyhow::Result<String> {
    let all = topology["command_line"]
        .as_str()
        .context("the paravisor did not report the kernel's command line")?;
    Ok(plain_command_line(all))
}

fn plain_command_line(all: &str) -> String {
    let ours = |word: &str| word.starts_with("rdinit=") || word.starts_with("OPENHCL_");
    let mut words: Vec<&str> = all.split_whitespace().filter(|word| !ours(word)).collect();
    words.push("rdinit=/init");
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_kernel_gets_the_same_options_but_another_init() {
        assert_eq!(
            plain_command_line("quiet rdinit=/underhill_init OPENHCL_X=1 console=ttyS2"),
            "quiet console=ttyS2 rdinit=/init"
        );
    }
}
