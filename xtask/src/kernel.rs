//! The VTL2 kernel: fetched, configured, built, checked and kept.
//!
//! What is to be built is decided by the crate `kernel_config`; here are the commands.

use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::process;
use crate::ui;
use anyhow::Context;
use kernel_config::Arch;
use kernel_config::KernelSpec;
use kernel_config::Requests;
use serde::Serialize;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Lines that the build prints, for the progress bar.
const BUILD_LINES: u64 = 1_530;

/// Changes when the way of building does, so that cached kernels are built again.
const RECIPE: &[u8] = b"1";

/// Files of a cache entry.
const VMLINUX: &str = "vmlinux";
const SYMBOLS: &str = "vmlinux.symbols";

/// A built kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What goes into the image.
    pub(crate) vmlinux: PathBuf,
    /// The same with its symbol table, for a debugger.
    pub(crate) symbols: PathBuf,
    /// Modules in loading order.
    pub(crate) modules: Vec<PathBuf>,
    /// The source package's exact version.
    pub(crate) version: String,
}

/// What is recorded beside the kernel.
#[derive(Debug, Serialize)]
struct Record<'a> {
    package: &'a str,
    version: &'a str,
    compiler: &'a str,
    vmlinux_bytes: u64,
}

/// The source package in the cache.
struct SourcePackage {
    name: String,
    version: String,
    deb: PathBuf,
}

/// The kernel, built when it is not in the cache.
pub(crate) fn ensure(cache: &Cache) -> anyhow::Result<Kernel> {
    let spec = KernelSpec::parse(kernel_config::KERNEL_TOML)?;
    let requests = Requests::merge(Arch::X86_64.fragments()?)?;
    let source = source_package(cache, &spec)?;
    let compiler = compiler()?;
    let key = key(&spec, &requests, &source.version, &compiler);
    let directory = cache.get_or_build("kernel", &key, |into| {
        let name = format!("build Linux {}", source.version);
        ui::long_step(&name, BUILD_LINES, |step| {
            build(cache, step, &spec, &requests, &source, &compiler, into)
        })
    })?;
    let modules = spec.outputs.modules.iter().map(|module| {
        let name = Path::new(&module.path).file_name().unwrap_or_default();
        directory.join(name)
    });
    Ok(Kernel {
        vmlinux: directory.join(VMLINUX),
        symbols: directory.join(SYMBOLS),
        modules: modules.collect(),
        version: source.version,
    })
}

/// Whether [`ensure`] would find a kernel in the cache, and of which version.
pub(crate) fn cached(cache: &Cache) -> anyhow::Result<Option<String>> {
    let spec = KernelSpec::parse(kernel_config::KERNEL_TOML)?;
    let requests = Requests::merge(Arch::X86_64.fragments()?)?;
    let Some(source) = cached_source(cache, &spec)? else {
        return Ok(None);
    };
    let Ok(compiler) = compiler() else {
        return Ok(None);
    };
    let key = key(&spec, &requests, &source.version, &compiler);
    Ok(cache.get("kernel", &key).map(|_| source.version))
}

fn key(spec: &KernelSpec, requests: &Requests, version: &str, compiler: &str) -> String {
    let options = requests.to_text();
    let modules = format!("{:?}", spec.outputs.modules);
    kernel_config::cache_key([
        ("recipe", RECIPE),
        ("source", version.as_bytes()),
        ("options", options.as_bytes()),
        ("modules", modules.as_bytes()),
        ("compiler", compiler.as_bytes()),
    ])
}

/// Compiler and linker: other ones make another kernel.
fn compiler() -> anyhow::Result<String> {
    let mut text = String::new();
    for program in ["gcc", "ld"] {
        let version = process::capture(Command::new(program).arg("--version"))?;
        text += version.lines().next().unwrap_or_default();
        text.push('\n');
    }
    Ok(text)
}

/// The source package that is cached already: the tested version, else any in the range.
fn cached_source(cache: &Cache, spec: &KernelSpec) -> anyhow::Result<Option<SourcePackage>> {
    let Ok(entries) = std::fs::read_dir(cache.root().join("kernel-source")) else {
        return Ok(None);
    };
    let mut found: Vec<SourcePackage> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (name, version) = path.file_name()?.to_str()?.split_once('_')?;
            spec.source.admitted_series(name)?;
            spec.source.admits(version).then(|| SourcePackage {
                name: name.to_owned(),
                version: version.to_owned(),
                deb: path.join("source.deb"),
            })
        })
        .collect();
    // Without Debian's rules for comparing versions: any fixed choice is repeatable.
    found.sort_by(|a, b| a.version.cmp(&b.version));
    let tested = found.iter().position(|s| s.version == spec.source.tested);
    let choice = tested.or(found.len().checked_sub(1));
    Ok(choice.map(|index| found.swap_remove(index)))
}

fn source_package(cache: &Cache, spec: &KernelSpec) -> anyhow::Result<SourcePackage> {
    if let Some(source) = cached_source(cache, spec)? {
        return Ok(source);
    }
    let apt = PrivateApt::open(cache, &spec.source.suite)?;
    let mut candidates = Vec::new();
    for name in apt.names(&spec.source.package)? {
        if let Some(series) = spec.source.admitted_series(&name) {
            for version in apt.versions(&name)? {
                candidates.push((series, name.clone(), version));
            }
        }
    }
    candidates.retain(|(_, _, version)| spec.source.admits(version));
    // apt lists versions from the newest on; the sort is stable.
    candidates.sort_by_key(|(series, _, _)| std::cmp::Reverse(*series));
    let tested = candidates
        .iter()
        .position(|(_, _, version)| *version == spec.source.tested);
    let (_, name, version) = candidates.get(tested.unwrap_or(0)).with_context(|| {
        format!(
            "{} has no {} from {} to below {}",
            spec.source.suite, spec.source.package, spec.source.at_least, spec.source.below
        )
    })?;
    let key = format!("{name}_{version}");
    let directory = cache.get_or_build("kernel-source", &key, |into| {
        ui::step(&format!("fetch {name} {version}"), |step| {
            let deb = apt.download(cache, step, name, version, into)?;
            Ok(std::fs::rename(deb, into.join("source.deb"))?)
        })
    })?;
    Ok(SourcePackage {
        name: name.clone(),
        version: version.clone(),
        deb: directory.join("source.deb"),
    })
}

fn build(
    cache: &Cache,
    step: &ui::Step,
    spec: &KernelSpec,
    requests: &Requests,
    source: &SourcePackage,
    compiler: &str,
    into: &Path,
) -> anyhow::Result<()> {
    // The build happens in the source tree itself: paths in the result are then relative,
    // so it does not matter where that is.
    let work = cache.temporary("kernel-build")?;
    unpack(source, work.path(), [])?;
    let tree = work.path().join(&source.name);

    let wanted = work.path().join("wanted.config");
    std::fs::write(&wanted, requests.to_text())?;
    let mut configure = make(&tree);
    configure
        .env("KCONFIG_ALLCONFIG", &wanted)
        .arg("allnoconfig");
    process::run_logged(cache, "kernel-config", step, &mut configure)?;

    let config = std::fs::read_to_string(tree.join(".config"))?;
    let mismatches = requests.check(&config);
    if !mismatches.is_empty() {
        let list: Vec<_> = mismatches.iter().map(|m| format!("\n  {m}")).collect();
        anyhow::bail!("options did not take effect:{}", list.concat());
    }

    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut compile = make(&tree);
    compile.args([&format!("-j{jobs}"), "vmlinux", "modules"]);
    process::run_logged(cache, "kernel-build", step, &mut compile)?;

    let vmlinux = std::fs::read(tree.join("vmlinux"))?;
    let packed = kernel_config::pack_vmlinux(&vmlinux)?;
    kernel_config::check_vmlinux(&packed, spec.outputs.max_vmlinux_bytes)?;
    std::fs::write(into.join(VMLINUX), &packed)?;
    std::fs::write(into.join(SYMBOLS), &vmlinux)?;
    std::fs::write(into.join("config"), config)?;
    for module in &spec.outputs.modules {
        let path = tree.join(&module.path);
        let name = path.file_name().context("a module without a name")?;
        process::capture(
            Command::new("objcopy")
                .args(["--strip-debug", "--remove-section=.comment"])
                .arg(&path)
                .arg(into.join(name)),
        )?;
    }
    let record = Record {
        package: &source.name,
        version: &source.version,
        compiler,
        vmlinux_bytes: packed.len() as u64,
    };
    std::fs::write(
        into.join("kernel.json"),
        serde_json::to_vec_pretty(&record)?,
    )?;
    Ok(())
}

fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command
        .envs(kernel_config::BUILD_STAMPS)
        // What a calling make or the person's shell has set is not ours.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("KBUILD_OUTPUT")
        .env_remove("CROSS_COMPILE")
        .env_remove("KCFLAGS")
        .arg("--directory")
        .arg(tree)
        .arg(format!("ARCH={}", Arch::X86_64.make_name()));
    command
}

/// Some files of the kernel's source, below the directory that is returned.
pub(crate) fn headers(cache: &Cache, files: &[&str]) -> anyhow::Result<PathBuf> {
    let spec = KernelSpec::parse(kernel_config::KERNEL_TOML)?;
    let source = source_package(cache, &spec)?;
    let list = files.join("\n");
    let key = kernel_config::cache_key([
        ("source", source.version.as_bytes()),
        ("files", list.as_bytes()),
    ]);
    let directory = cache.get_or_build("kernel-headers", &key, |into| {
        let name = format!("unpack headers of Linux {}", source.version);
        ui::step(&name, |_| {
            let members = files.iter().map(|file| format!("{}/{file}", source.name));
            unpack(&source, into, members)
        })
    })?;
    Ok(directory.join(source.name))
}

/// Unpacks the archive that is inside the package, or only some `members` of it.
fn unpack(
    source: &SourcePackage,
    into: &Path,
    members: impl IntoIterator<Item = String>,
) -> anyhow::Result<()> {
    let mut package = Command::new("dpkg-deb");
    package.arg("--fsys-tarfile").arg(&source.deb);
    let mut inner = Command::new("tar");
    inner.args(["--extract", "--to-stdout"]);
    inner.arg(format!("./usr/src/{}.tar.xz", source.name));
    let mut tree = Command::new("tar");
    tree.args(["--extract", "--xz", "--directory"]).arg(into);
    // Half of the tree is graphics drivers and other machines; only their Kconfig files
    // are read.
    tree.args([
        "--exclude=*/drivers/gpu/*.[ch]",
        "--exclude=*/sound/soc/*.[ch]",
    ]);
    tree.args(members);
    process::pipeline(&mut [package, inner, tree])
        .with_context(|| format!("unpacking {}", source.deb.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(cached: &[&str]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        for name in cached {
            std::fs::create_dir_all(cache.path("kernel-source", name)).unwrap();
        }
        let spec = KernelSpec::parse(kernel_config::KERNEL_TOML).unwrap();
        let source = cached_source(&cache, &spec).unwrap();
        source.map(|source| source.version)
    }

    #[test]
    fn a_cached_source_of_the_range_is_used_again() {
        let found = chosen(&["linux-source-7.2_7.2.9-1", "linux-source-7.3_7.3.9-1"]);
        assert_eq!(found.as_deref(), Some("7.3.9-1"));
        assert_eq!(chosen(&["linux-source-7.2_7.2.9-1"]), None);
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn the_tested_source_is_preferred_to_a_later_one() {
        let spec = KernelSpec::parse(kernel_config::KERNEL_TOML).unwrap();
        let tested = format!("linux-source-7.3_{}", spec.source.tested);
        let found = chosen(&["linux-source-7.3_7.3.9-1", &tested]);
        assert_eq!(found, Some(spec.source.tested));
    }

    #[test]
    fn any_input_of_the_build_changes_the_key() {
        let spec = KernelSpec::parse(kernel_config::KERNEL_TOML).unwrap();
        let requests = Requests::merge(Arch::X86_64.fragments().unwrap()).unwrap();
        let one = key(&spec, &requests, "7.3.4-1", "gcc 12");
        assert_eq!(one, key(&spec, &requests, "7.3.4-1", "gcc 12"));
        assert_ne!(one, key(&spec, &requests, "7.3.5-1", "gcc 12"));
        assert_ne!(one, key(&spec, &requests, "7.3.4-1", "gcc 13"));
        let fewer = Requests::merge([]).unwrap();
        assert_ne!(one, key(&spec, &fewer, "7.3.4-1", "gcc 12"));
    }
}
