//! What run, tests and benches need: every file, built when it is out of date.

use crate::cache::Cache;
use crate::cache::lock_file;
use crate::cache::write_if_changed;
use crate::cargo::Programs;
use crate::cargo::Workspace;
use crate::initrd;
use crate::kernel;
use crate::kernel::Kernel;
use crate::packages;
use crate::toolchain::BareMetal;
use crate::ui;
use anyhow::Context;
use igvm_builder::Manifest;
use igvm_builder::Resources;
use std::path::Path;
use std::path::PathBuf;

/// Debian's static busybox.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Which of the images is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ImageProfile {
    /// What would be delivered: no shell, nothing from outside but the kernel.
    #[default]
    Release,
    /// With the busybox layer.
    Dev,
    /// The same with programs that only tests and benches need.
    Test,
}

/// Where the built files are.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    /// The IGVM image.
    pub(crate) igvm: PathBuf,
    /// The bare-metal host, an ELF file for `-kernel`.
    pub(crate) vsm_host: PathBuf,
    /// The boot shim, an ELF file (with symbols).
    pub(crate) openhcl_boot: PathBuf,
    /// The sidecar kernel, an ELF file (with symbols).
    pub(crate) sidecar: PathBuf,
    /// The stripped kernel. It has a PVH entry, so plain QEMU boots it by `-kernel`.
    pub(crate) vmlinux: PathBuf,
    /// The kernel with its symbol table.
    pub(crate) vmlinux_symbols: PathBuf,
    /// The static multi-call binary.
    pub(crate) user_binary: PathBuf,
    /// The initial ramdisk.
    pub(crate) initrd: PathBuf,
    /// The test kernel that runs in a VTL (an ELF file).
    pub(crate) tmk: PathBuf,
    /// The test kernel that runs as a guest (an ELF file).
    pub(crate) guest_tests: PathBuf,
    /// Debian's static busybox, for the dev profile.
    pub(crate) busybox: Option<PathBuf>,
}

/// All that is needed before a checkout can be built.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) cache: Cache,
    pub(crate) kernel: Kernel,
    pub(crate) bare_metal: BareMetal,
}

impl ImageProfile {
    /// The directory of this profile's results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ImageProfile::Release => "release",
            ImageProfile::Dev => "dev",
            ImageProfile::Test => "test",
        }
    }

    /// The manifest of the image with a guest.
    pub(crate) fn guest_manifest(self, root: &Path) -> PathBuf {
        let name = match self {
            ImageProfile::Release => "linux",
            ImageProfile::Dev | ImageProfile::Test => "linux-dev",
        };
        root.join("igvm_builder/manifests")
            .join(format!("openhcl-x64-{name}.toml"))
    }

    /// The manifest below the checkout.
    pub(crate) fn manifest(self, root: &Path) -> PathBuf {
        let name = match self {
            ImageProfile::Release => "release",
            ImageProfile::Dev | ImageProfile::Test => "dev",
        };
        root.join("igvm_builder/manifests")
            .join(format!("openhcl-x64-{name}.toml"))
    }
}

/// Builds everything that is out of date and says where it is.
pub(crate) fn ensure(profile: ImageProfile) -> anyhow::Result<Artifacts> {
    build(&prepare()?, &Workspace::current()?, profile, None)
}

/// The set-up: packages, standard library, kernel.
pub(crate) fn prepare() -> anyhow::Result<Prepared> {
    let cache = Cache::open()?;
    packages::ensure(&cache)?;
    let bare_metal = BareMetal::ensure(&cache)?;
    let kernel = kernel::ensure(&cache)?;
    Ok(Prepared {
        cache,
        kernel,
        bare_metal,
    })
}

/// Builds an image of the checkout `workspace`.
pub(crate) fn build(
    prepared: &Prepared,
    workspace: &Workspace,
    profile: ImageProfile,
    manifest: Option<&Path>,
) -> anyhow::Result<Artifacts> {
    let output = workspace.output();
    // Two runs in one checkout would replace each other's files while they are read.
    let _lock = lock_file(&output.join("lock"))?;
    let programs = workspace.build_programs(&prepared.cache, &prepared.bare_metal)?;
    let layers = Layers {
        busybox: (profile != ImageProfile::Release).then(|| PathBuf::from(BUSYBOX)),
        extra: match profile {
            ImageProfile::Test => vec![workspace.build_vsock_peer(&prepared.cache)?],
            ImageProfile::Release | ImageProfile::Dev => Vec::new(),
        },
    };
    let output = output.join(profile.name());
    ui::step("pack the image", |_| {
        pack(
            prepared, workspace, &programs, profile, manifest, layers, &output,
        )
    })
}

/// What an initrd has beyond that of the release image.
struct Layers {
    busybox: Option<PathBuf>,
    extra: Vec<PathBuf>,
}

fn pack(
    prepared: &Prepared,
    workspace: &Workspace,
    programs: &Programs,
    profile: ImageProfile,
    manifest: Option<&Path>,
    layers: Layers,
    output: &Path,
) -> anyhow::Result<Artifacts> {
    let initrd = initrd::build(&initrd::Contents {
        binary: programs.user_binary.clone(),
        modules: prepared.kernel.modules.clone(),
        busybox: layers.busybox.clone(),
        extra: layers.extra,
    })?;
    let manifest = match manifest {
        Some(path) => path.to_owned(),
        None => profile.manifest(&workspace.root),
    };
    let manifest = Manifest::load(&manifest)?;
    let sidecar = read(&programs.sidecar)?;
    let image = igvm_builder::build(
        &manifest,
        &Resources {
            kernel: &read(&prepared.kernel.vmlinux)?,
            shim: &read(&programs.openhcl_boot)?,
            initrd: &initrd,
            sidecar: manifest.sidecar.then_some(&sidecar),
            guest: None,
        },
    )?;
    // Tests and machines read these while a later run may build anew: each file is
    // replaced as a whole.
    let keep = |name: &str, bytes: &[u8]| {
        let path = output.join(name);
        write_if_changed(&path, bytes).map(|_| path)
    };
    Ok(Artifacts {
        initrd: keep("initrd.cpio.lz4", &initrd)?,
        igvm: keep("openhcl.igvm", &image.bytes)?,
        vsm_host: keep("vsm_host", &read(&programs.vsm_host)?)?,
        openhcl_boot: keep("openhcl_boot", &read(&programs.openhcl_boot)?)?,
        sidecar: keep("sidecar", &sidecar)?,
        user_binary: keep("openhcl", &read(&programs.user_binary)?)?,
        tmk: keep("tmk", &read(&programs.tmk)?)?,
        guest_tests: keep("guest_tests", &read(&programs.guest_tests)?)?,
        vmlinux: prepared.kernel.vmlinux.clone(),
        vmlinux_symbols: prepared.kernel.symbols.clone(),
        busybox: layers.busybox,
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
