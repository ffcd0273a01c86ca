//! What run, tests and benches need: every file, built when it is out of date.

use std::path::PathBuf;

/// Which of the two images is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ImageProfile {
    /// What would be delivered: no shell, nothing from outside but the kernel.
    #[default]
    Release,
    /// With the busybox layer.
    Dev,
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
    /// The stripped kernel.
    pub(crate) vmlinux: PathBuf,
    /// The kernel's compressed form (`bzImage`), which plain QEMU boots by `-kernel`.
    pub(crate) bzimage: PathBuf,
    /// The static multi-call binary.
    pub(crate) user_binary: PathBuf,
    /// The initial ramdisk.
    pub(crate) initrd: PathBuf,
    /// The test kernel that runs in a VTL (an ELF file).
    pub(crate) tmk: PathBuf,
    /// Debian's static busybox, for the dev profile.
    pub(crate) busybox: Option<PathBuf>,
}

/// Builds everything that is out of date and says where it is.
pub(crate) fn ensure(_profile: ImageProfile) -> anyhow::Result<Artifacts> {
    anyhow::bail!("not available yet")
}
