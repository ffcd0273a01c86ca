//! The guest's initrd: Debian's static busybox and a few shell scripts.

use crate::artifacts::BUSYBOX;
use crate::cache::write_if_changed;
use crate::cargo::Workspace;
use anyhow::Context as _;
use anyhow::ensure;
use initramfs::Archive;
use std::path::Path;
use std::path::PathBuf;

/// PID 1.
const INIT: &str = include_str!("../../guest/init");

/// The command with which the guest tells about itself.
const GUEST: &str = include_str!("../../guest/guest");

/// Set-up of the shell.
const PROFILE: &str = include_str!("../../guest/profile");

/// The word on the kernel's command line that asks for the tour.
pub(crate) const TOUR: &str = "tour";

/// Empty directories, most of them mount points.
const DIRECTORIES: [&str; 6] = ["bin", "dev", "etc", "proc", "sys", "tmp"];

/// Builds the initrd of a checkout, if it is out of date, and says where it is.
pub(crate) fn ensure(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let path = workspace.output().join("guest-initrd.cpio.lz4");
    write_if_changed(&path, &build(Path::new(BUSYBOX))?)?;
    Ok(path)
}

/// Builds the initrd. It is compressed in the way that costs an emulated guest least.
fn build(busybox: &Path) -> anyhow::Result<Vec<u8>> {
    let program =
        std::fs::read(busybox).with_context(|| format!("reading {}", busybox.display()))?;
    ensure!(!program.is_empty(), "{} is empty", busybox.display());
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    // For PID 1, before devtmpfs is mounted.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.character_device("dev/null", 0o666, (1, 3))?;
    archive.program("bin/busybox", &program)?;
    archive.symlink("bin/sh", "/bin/busybox")?;
    archive.program("bin/guest", GUEST.as_bytes())?;
    archive.file("etc/profile", PROFILE.as_bytes())?;
    archive.program("init", INIT.as_bytes())?;
    Ok(initramfs::compress(&archive.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_busybox_gives_the_same_bytes() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let built = |directory: &Path| {
            let path = directory.join("busybox");
            std::fs::write(&path, b"a shell").unwrap();
            build(&path).unwrap()
        };
        assert_eq!(built(one.path()), built(other.path()));
    }

    #[test]
    fn a_missing_busybox_is_named() {
        let error = build(Path::new("/nowhere/busybox")).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/busybox"));
    }

    #[test]
    fn scripts_are_what_a_shell_accepts_and_say_what_others_wait_for() {
        for script in [INIT, GUEST, PROFILE] {
            let status = std::process::Command::new("sh")
                .args(["-n", "-c", script])
                .status();
            assert!(status.unwrap().success());
        }
        assert!(INIT.contains(boot_events::GUEST_STARTED));
        assert!(INIT.contains(&format!("*\" {TOUR} \"*)")));
        assert!(GUEST.contains(boot_events::GUEST_TOUR_ENDED));
    }
}
