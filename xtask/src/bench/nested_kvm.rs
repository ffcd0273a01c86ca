//! The yardstick for exits: a nested guest of KVM in the same QEMU, whose exits go to a
//! monitor in user mode, as those of VTL0 go to the paravisor's worker.
//!
//! The machine is Debian on plain QEMU with Debian's modules for KVM and the program
//! `kvm_exit`, which are appended to the guest's initrd.

use super::boot::Bench;
use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::cargo::Workspace;
use crate::guest::image::GuestParts;
use crate::guest::kernel::GuestKernel;
use crate::guest::kernel::Suite;
use crate::process;
use crate::ui;
use anyhow::Context as _;
use initramfs::Archive;
use qemu::ByteCount;
use qemu::Machine;
use qemu::Source;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A hang is not a figure.
const DEADLINE: Duration = Duration::from_secs(180);

/// In the order in which they are loaded.
const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];

/// Exits of one measurement.
const COUNT: u32 = 2000;

/// In front of what the program prints.
const RESULT: &str = "kvm_exit count=";

/// Writes the initrd of the machine.
pub(super) fn write_initrd(
    bench: &Bench,
    cache: &Cache,
    linux: &GuestParts,
    kernel: &GuestKernel,
) -> anyhow::Result<PathBuf> {
    let program = Workspace::current()?.build_kvm_exit(cache)?;
    let modules = modules(cache, kernel)?;
    let initrd = linux.initrd.as_deref().context("the guest has an initrd")?;
    let mut bytes = read(initrd)?;
    let mut archive = Archive::default();
    archive.directory("kvm")?;
    archive.program("kvm/kvm_exit", &read(&program)?)?;
    for name in MODULES {
        let name = format!("{name}.ko");
        archive.file(&format!("kvm/{name}"), &read(&modules.join(&name))?)?;
    }
    initramfs::append_segment(&mut bytes, &archive.finish()?);
    let path = bench.consoles.join("nested-kvm.cpio");
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Microseconds of one exit.
pub(super) fn exit_us(bench: &Bench, linux: &GuestParts, initrd: &Path) -> anyhow::Result<f64> {
    let load: String = MODULES
        .iter()
        .map(|name| format!("insmod /kvm/{name}.ko; "))
        .collect();
    let machine = Machine::plain(&linux.kernel, initrd)
        .vps(2)
        .memory(ByteCount::mib(512))
        .bootarg(linux.command_line.replace("ttyS0", "ttyS2"))
        .bootarg(format!("guest_script=\"{load}/kvm/kvm_exit {COUNT}\""));
    let mut vm = machine.start(&bench.qemu, &bench.consoles.join("nested-kvm"))?;
    // Whatever it says, it powers off.
    vm.wait_exit(DEADLINE)?;
    let lines = vm.lines(Source::Vtl2);
    let result = lines.iter().find_map(|line| us_per_exit(&line.text));
    result.with_context(|| format!("kvm_exit has no result\n{}", vm.report()))
}

/// Reads `kvm_exit count=N ns=N`.
fn us_per_exit(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once(RESULT)?;
    let (count, ns) = rest.trim().split_once(" ns=")?;
    Some(ns.parse::<f64>().ok()? / count.parse::<f64>().ok()? / 1e3)
}

/// The directory with the kernel's modules for KVM, fetched if it is not in the cache.
fn modules(cache: &Cache, kernel: &GuestKernel) -> anyhow::Result<PathBuf> {
    let (package, version) = (&kernel.package, &kernel.version);
    cache.get_or_build("guest-kvm", &format!("{package}_{version}"), |into| {
        let apt = PrivateApt::open(cache, Suite::Bookworm.name())?;
        ui::step(&format!("fetch {package} {version}"), |step| {
            let download = cache.temporary("guest-kvm")?;
            let deb = apt.download(cache, step, package, version, download.path())?;
            let mut contents = Command::new("dpkg-deb");
            contents.arg("--fsys-tarfile").arg(&deb);
            let mut unpack = Command::new("tar");
            unpack
                .args(["--extract", "--wildcards", "--transform", "s,.*/,,"])
                .arg("--directory")
                .arg(into)
                .args(MODULES.map(|name| format!("*/{name}.ko")));
            process::pipeline(&mut [contents, unpack])
                .with_context(|| format!("unpacking {}", deb.display()))
        })
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_line_is_read() {
        assert_eq!(
            us_per_exit("kvm_exit count=2000 ns=100000000\r"),
            Some(50.0)
        );
        assert_eq!(us_per_exit("kvm_exit: no /dev/kvm"), None);
    }
}
