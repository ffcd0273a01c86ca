//! The initial ramdisk: one static binary, the kernel modules, and nothing that
//! depends on where or when it was built.
//!
//! The archive is a "newc" cpio (`Documentation/driver-api/early-userspace/buffer-format.rst`)
//! in LZ4's legacy frame, the only LZ4 form that the kernel unpacks. LZ4 is the fastest
//! of the kernel's decompressors, and under emulation every instruction of it counts.

use anyhow::{Context, ensure};
use initramfs::Archive;
use std::path::{Path, PathBuf};

/// Where the multi-call binary lies in the initrd.
const BINARY_PATH: &str = "bin/openhcl";

/// Names under which the binary is started; PID 1 is `/underhill_init`.
const PERSONAS: [&str; 4] = [
    "underhill_init",
    "bin/underhill_init",
    "bin/openvmm_hcl",
    "bin/underhill_vm",
];

/// busybox applets of the dev layer.
const APPLETS: [&str; 24] = [
    "ash", "cat", "chmod", "cp", "dd", "df", "dmesg", "echo", "free", "grep", "hexdump", "kill",
    "less", "ln", "ls", "mkdir", "mount", "mv", "ps", "rm", "sh", "sleep", "top", "vi",
];

/// Empty directories, most of them mount points.
const DIRECTORIES: [&str; 8] = [
    "bin",
    "dev",
    "lib",
    "lib/modules",
    "proc",
    "run",
    "sys",
    "tmp",
];

/// What goes into an initrd.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    /// The static multi-call binary.
    pub(crate) binary: PathBuf,
    /// Kernel modules, in the order in which PID 1 loads them.
    pub(crate) modules: Vec<PathBuf>,
    /// A static busybox: only in dev images.
    pub(crate) busybox: Option<PathBuf>,
    /// More programs for `/bin`: only in the test image.
    pub(crate) extra: Vec<PathBuf>,
}

/// Builds the initrd, compressed.
pub(crate) fn build(contents: &Contents) -> anyhow::Result<Vec<u8>> {
    Ok(initramfs::compress(&archive(contents)?))
}

/// The cpio archive itself.
fn archive(contents: &Contents) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    // The kernel opens it for PID 1 before devtmpfs can be mounted.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.character_device("dev/null", 0o666, (1, 3))?;
    archive.character_device("dev/kmsg", 0o600, (1, 11))?;

    archive.program(BINARY_PATH, &read(&contents.binary)?)?;
    for name in PERSONAS {
        archive.symlink(name, &format!("/{BINARY_PATH}"))?;
    }
    for (index, module) in contents.modules.iter().enumerate() {
        let name = file_name(module)?;
        // PID 1 loads in the order of names.
        archive.file(&format!("lib/modules/{index:03}-{name}"), &read(module)?)?;
    }
    if let Some(busybox) = &contents.busybox {
        archive.program("bin/busybox", &read(busybox)?)?;
        for applet in APPLETS {
            archive.symlink(&format!("bin/{applet}"), "/bin/busybox")?;
        }
    }
    for program in &contents.extra {
        let name = file_name(program)?;
        archive.program(&format!("bin/{name}"), &read(program)?)?;
    }
    Ok(archive.finish()?)
}

fn file_name(path: &Path) -> anyhow::Result<&str> {
    path.file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no usable file name", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!bytes.is_empty(), "{} is empty", path.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(directory: &Path, busybox: bool) -> Contents {
        let write = |name: &str, data: &[u8]| {
            let path = directory.join(name);
            std::fs::write(&path, data).unwrap();
            path
        };
        Contents {
            binary: write("openhcl", b"the binary"),
            modules: vec![write("mshv_vtl.ko", b"a module")],
            busybox: busybox.then(|| write("busybox", b"a shell")),
            extra: Vec::new(),
        }
    }

    fn names(archive: &[u8]) -> Vec<String> {
        initramfs::entries(archive)
            .map(|entry| String::from_utf8(entry.unwrap().name.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn release_has_every_persona_and_no_shell() {
        let directory = tempfile::tempdir().unwrap();
        let names = names(&archive(&contents(directory.path(), false)).unwrap());
        for persona in PERSONAS {
            assert!(
                names.iter().any(|name| name == persona),
                "{persona} is missing"
            );
        }
        assert!(
            names
                .iter()
                .any(|name| name == "lib/modules/000-mshv_vtl.ko")
        );
        assert!(
            !names
                .iter()
                .any(|name| name.contains("busybox") || name == "bin/sh")
        );
    }

    #[test]
    fn dev_has_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let names = names(&archive(&contents(directory.path(), true)).unwrap());
        assert!(names.iter().any(|name| name == "bin/sh"));
    }

    #[test]
    fn result_does_not_depend_on_place_or_time() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = build(&contents(one.path(), true)).unwrap();
        let other = build(&contents(other.path(), true)).unwrap();
        assert_eq!(one, other);
    }

    #[test]
    fn a_missing_file_is_named() {
        let contents = Contents {
            binary: PathBuf::from("/nowhere/openhcl"),
            modules: Vec::new(),
            busybox: None,
            extra: Vec::new(),
        };
        let error = build(&contents).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/openhcl"));
    }
}
