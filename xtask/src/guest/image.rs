//! An image with a guest: the parts of an image that was built already, and the guest's
//! files. And whether the guest would have the memory that it needs, which is known before
//! a machine is started.

use crate::artifacts::Artifacts;
use crate::artifacts::ImageProfile;
use crate::cache::write_if_changed;
use anyhow::Context as _;
use igvm_builder::GuestFiles;
use igvm_builder::Manifest;
use igvm_builder::Resources;
use igvm_builder::component::human_size;
use igvm_builder::guest;
use igvm_builder::manifest::Guest;
use igvm_builder::placement::Machine;
use igvm_builder::placement::guest_ram;
use std::path::Path;
use std::path::PathBuf;

/// What a guest consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestParts {
    /// `vmlinux` or `bzImage`.
    pub(crate) kernel: PathBuf,
    /// The initrd.
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub(crate) command_line: String,
}

/// The guest's files in memory.
struct Files {
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
}

impl GuestParts {
    /// Packs an image with this guest into the file `into`; the result is also returned.
    pub(crate) fn pack(
        &self,
        artifacts: &Artifacts,
        profile: ImageProfile,
        root: &Path,
        into: &Path,
    ) -> anyhow::Result<Vec<u8>> {
        let files = self.read()?;
        let manifest = Manifest::load(&profile.guest_manifest(root))?.with_guest(Guest {
            initrd: files.initrd.is_some(),
            command_line: self.command_line.clone(),
        })?;
        let sidecar = read(&artifacts.sidecar)?;
        let image = igvm_builder::build(
            &manifest,
            &Resources {
                kernel: &read(&artifacts.vmlinux)?,
                shim: &read(&artifacts.openhcl_boot)?,
                initrd: &read(&artifacts.initrd)?,
                sidecar: manifest.sidecar.then_some(&sidecar),
                guest: Some(files.borrow()),
            },
        )
        .with_context(|| format!("guest of {self}"))?;
        write_if_changed(into, &image.bytes)?;
        Ok(image.bytes)
    }

    /// An image with this guest and without a paravisor, for a machine of this size.
    pub(crate) fn pack_alone(
        &self,
        memory: u64,
        vps: u32,
        first_apic_id: u32,
    ) -> anyhow::Result<Vec<u8>> {
        let files = self.read()?;
        let direct = igvm_builder::LinuxDirect {
            kernel: &files.kernel,
            initrd: files.initrd.as_deref(),
            command_line: &self.command_line,
            memory,
            vps,
            first_apic_id,
        };
        direct.build().with_context(|| {
            let memory = human_size(memory);
            format!("guest of {self} in a machine with {memory} of memory")
        })
    }

    /// Checks that the guest of `image` has room in what a machine leaves to it.
    pub(crate) fn check_memory(&self, image: &[u8], machine: &Machine<'_>) -> anyhow::Result<()> {
        let ram = image_fits(image, machine)?;
        let files = self.read()?;
        guest::fits(&files.borrow(), &self.command_line, &ram).with_context(|| {
            let left: u64 = ram.iter().map(|(start, end)| end - start).sum();
            format!(
                "guest of {self}: {} of memory leave {} to it",
                human_size(machine.memory),
                human_size(left)
            )
        })
    }

    fn read(&self) -> anyhow::Result<Files> {
        Ok(Files {
            kernel: read(&self.kernel)?,
            initrd: self.initrd.as_deref().map(read).transpose()?,
        })
    }
}

impl Files {
    fn borrow(&self) -> GuestFiles<'_> {
        GuestFiles {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
        }
    }
}

impl std::fmt::Display for GuestParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kernel.display())?;
        match &self.initrd {
            Some(initrd) => write!(f, " and {}", initrd.display()),
            None => Ok(()),
        }
    }
}

/// RAM that a machine leaves to the guest of an image, if it can load the image at all.
pub(crate) fn image_fits(image: &[u8], machine: &Machine<'_>) -> anyhow::Result<Vec<(u64, u64)>> {
    let size = human_size(machine.memory);
    guest_ram(image, machine)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("a machine with {size} of memory cannot load the image"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
