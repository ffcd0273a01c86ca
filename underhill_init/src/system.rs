//! Mounts, limits and kernel settings.

use kernel_log::KernelLog;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::resource::Resource;
use std::fs::File;
use std::io;
use std::path::Path;
use thiserror::Error;

/// Files that a process of the paravisor may have open: queues, rings and event
/// descriptors of many devices on many VPs.
const OPEN_FILES: u64 = 0x10_0000;

/// Where diagnostics of our own processes go: each line becomes a record of the kernel's
/// log.
const STANDARD_ERROR: &str = "/dev/ttyprintk";

/// A file system that every process expects.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_RELATIME);

/// `/dev`, which comes first: the kernel's log is behind it.
const DEVICES: Mount = Mount {
    kind: "devtmpfs",
    target: "/dev",
    flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
    data: Some("mode=0755"),
};

const MOUNTS: [Mount; 4] = [
    Mount {
        kind: "proc",
        target: "/proc",
        flags: QUIET,
        data: None,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: QUIET,
        data: None,
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: Some("mode=0600,ptmxmode=0600"),
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID
            .union(MsFlags::MS_NODEV)
            .union(MsFlags::MS_NOEXEC),
        data: Some("mode=0755"),
    },
];

/// A kernel setting: which file, what to write and why.
struct Setting {
    path: &'static str,
    value: &'static str,
}

const SETTINGS: [Setting; 8] = [
    // A VP thread and its helpers for each of many VPs; the kernel derives its own limit
    // from the amount of RAM, which is small here.
    Setting {
        path: "/proc/sys/kernel/threads-max",
        value: "32768",
    },
    // Kernel addresses are for nobody but root.
    Setting {
        path: "/proc/sys/kernel/kptr_restrict",
        value: "1",
    },
    // No handler exists for a core file, and a core file in the initrd would be RAM.
    Setting {
        path: "/proc/sys/kernel/core_pattern",
        value: "\n",
    },
    // Device queues ask for huge pages to be physically contiguous. The kernel switches
    // them off by itself below 512 MiB.
    Setting {
        path: "/sys/kernel/mm/transparent_hugepage/enabled",
        value: "madvise",
    },
    // A paravisor that has lost a process is worse than one that is restarted.
    Setting {
        path: "/proc/sys/vm/panic_on_oom",
        value: "1",
    },
    // The kernel's reserves are meant for machines with disks and page cache.
    Setting {
        path: "/proc/sys/vm/min_free_kbytes",
        value: "1024",
    },
    Setting {
        path: "/proc/sys/vm/watermark_scale_factor",
        value: "1",
    },
    Setting {
        path: "/proc/sys/vm/watermark_boost_factor",
        value: "0",
    },
];

/// Why the system could not be set up.
#[derive(Debug, Error)]
pub enum SystemError {
    /// A mount point is missing and cannot be made.
    #[error("mount point {path} cannot be made")]
    MountPoint {
        /// The directory.
        path: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A file system cannot be mounted.
    #[error("{kind} cannot be mounted on {path}")]
    Mount {
        /// Type of the file system.
        kind: &'static str,
        /// The mount point.
        path: &'static str,
        /// What the kernel says.
        source: Errno,
    },
}

/// Mounts `/dev`.
pub fn mount_devices() -> Result<(), SystemError> {
    mount(&DEVICES)
}

/// Mounts everything but `/dev`. One that fails does not keep the others from being
/// mounted; all failures are returned.
pub fn mount_all() -> Vec<SystemError> {
    MOUNTS
        .iter()
        .filter_map(|entry| mount(entry).err())
        .collect()
}

fn mount(entry: &Mount) -> Result<(), SystemError> {
    std::fs::create_dir_all(entry.target).map_err(|source| SystemError::MountPoint {
        path: entry.target,
        source,
    })?;
    match nix::mount::mount(
        Some(entry.kind),
        entry.target,
        Some(entry.kind),
        entry.flags,
        entry.data,
    ) {
        // The kernel was built to mount it by itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(SystemError::Mount {
            kind: entry.kind,
            path: entry.target,
            source,
        }),
    }
}

/// Nothing is read from the console and nothing may block on it. What a process writes
/// to standard error becomes part of the kernel's log.
pub fn redirect_standard_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let error = File::options().write(true).open(STANDARD_ERROR)?;
    nix::unistd::dup2_stderr(&error)?;
    Ok(())
}

/// Writes the kernel settings. A kernel without the feature has no file for its setting,
/// which is no fault; a value that the kernel refuses is.
pub fn apply_settings(log: &KernelLog) {
    for setting in &SETTINGS {
        match write_existing(Path::new(setting.path), setting.value) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                log.debug(&format!("this kernel has no setting {}", setting.path));
            }
            Err(error) => log.warning(&format!(
                "setting {} refuses {:?}: {error}",
                setting.path, setting.value
            )),
        }
    }
}

/// Writes to a file that is there; unlike `std::fs::write` it never makes one.
pub fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    File::options()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// Raises the limits that the paravisor inherits.
pub fn raise_limits() -> Result<(), Errno> {
    nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_the_kernel_does_not_have_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("setting");
        let error = write_existing(&path, "1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!path.exists());
    }

    #[test]
    fn mount_points_do_not_hide_each_other() {
        // A mount on /dev after one below it would hide the latter.
        assert!(MOUNTS.iter().all(|entry| entry.target != DEVICES.target));
        for (i, entry) in MOUNTS.iter().enumerate() {
            for later in &MOUNTS[i + 1..] {
                assert!(!entry.target.starts_with(later.target));
            }
        }
    }
}
