//! The list of VMs that run on this machine for this user.
//!
//! One small JSON file per VM in `openhcl-qemu/vms/` below `$XDG_RUNTIME_DIR`, or without
//! that below the user's cache directory. Whoever starts a VM registers it and keeps the
//! [`Registration`]; whoever wants to talk to it asks [`list`] or [`find`]. The directory
//! is private to the user, because a path in it decides whom a client talks to.
//!
//! A program that is killed leaves its file behind. It names the process and when that
//! started, so the next look at the list removes it.

use crate::VmAddress;
use crate::process;
use serde::Deserialize;
use serde::Serialize;
use std::env;
use std::fs;
use std::fs::DirBuilder;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// Largest file that is read; a real one has some hundred bytes.
const MAX_FILE: u64 = 64 << 10;

/// A VM that runs here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// The process whose end is the VM's end.
    pub pid: u32,
    /// Where its vsock is.
    pub vsock: VmAddress,
    /// Directory with what its consoles have said.
    pub consoles: Option<PathBuf>,
    /// When it was started, in seconds since 1970 (UTC).
    pub started: u64,
    /// Its name, by which people choose it.
    pub name: String,
    /// The IGVM file that it was started from.
    pub image: Option<PathBuf>,
}

impl VmInfo {
    /// A VM of the process `pid` that starts now.
    pub fn new(name: impl Into<String>, pid: u32, vsock: VmAddress) -> Self {
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Self {
            pid,
            vsock,
            consoles: None,
            started,
            name: name.into(),
            image: None,
        }
    }
}

/// What is in a file.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    /// See [`process::start_ticks`].
    pid_started: Option<u64>,
    vm: VmInfo,
}

/// The version of [`Record`]; files of others are left alone.
const VERSION: u32 = 1;

/// Why the list cannot be used, or has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The environment names no directory.
    #[error("no place for the list of VMs: set XDG_RUNTIME_DIR or HOME")]
    NoDirectory,
    /// The list cannot be read or written.
    #[error("list of VMs: {}: {source}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No VM was named, and none runs.
    #[error("no VM runs here; start one with `cargo xtask run`, or name one with --vm")]
    NoVm,
    /// No VM was named, and more than one run.
    #[error("{} VMs run here, choose one with --vm: {}", names.len(), names.join(", "))]
    Ambiguous {
        /// Their names.
        names: Vec<String>,
    },
    /// No VM has this name.
    #[error(
        "no VM {name:?} runs here ({}); expected a name, a path with a '/' or a vsock context id",
        if known.is_empty() { "none does".to_owned() } else { format!("there are: {}", known.join(", ")) }
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
}

/// A VM's place in the list, which it leaves when this is dropped.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // If it is gone already, that is what is wanted; if it cannot be removed, it is
        // stale as soon as the process ends.
        _ = fs::remove_file(&self.path);
    }
}

/// Adds a VM to the list.
///
/// # Errors
///
/// The list cannot be written.
pub fn register(vm: VmInfo) -> Result<Registration, RegistryError> {
    register_in(&directory()?, vm)
}

/// The VMs that run, the newest last. Files of those that have ended are removed.
///
/// # Errors
///
/// The list cannot be read.
pub fn list() -> Result<Vec<VmInfo>, RegistryError> {
    list_in(&directory()?)
}

/// The VM that is meant by `name`: a path with a `/`, a vsock context id, or the name of a
/// VM in the list. Without a name, the only one in the list.
///
/// # Errors
///
/// There is no such VM, or more than one.
pub fn find(name: Option<&str>) -> Result<VmAddress, RegistryError> {
    if let Some(address) = name.and_then(|name| name.parse().ok()) {
        return Ok(address);
    }
    choose(&list()?, name)
}

fn choose(vms: &[VmInfo], name: Option<&str>) -> Result<VmAddress, RegistryError> {
    let names = || vms.iter().map(|vm| vm.name.clone()).collect();
    let mut matching = vms
        .iter()
        .filter(|vm| name.is_none_or(|name| vm.name == name));
    match (matching.next(), matching.next(), name) {
        (Some(vm), None, _) => Ok(vm.vsock.clone()),
        (Some(_), Some(_), _) => Err(RegistryError::Ambiguous { names: names() }),
        (None, _, None) => Err(RegistryError::NoVm),
        (None, _, Some(name)) => Err(RegistryError::Unknown {
            name: name.to_owned(),
            known: names(),
        }),
    }
}

/// Where the list is.
///
/// # Errors
///
/// The environment names no place for it.
pub fn directory() -> Result<PathBuf, RegistryError> {
    let absolute = |name: &str| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_RUNTIME_DIR")
        .filter(|path| path.is_dir())
        .or_else(|| absolute("XDG_CACHE_HOME"))
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|base| base.join("openhcl-qemu/vms"))
        .ok_or(RegistryError::NoDirectory)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    move |source| RegistryError::Io {
        path: path.to_owned(),
        source,
    }
}

fn register_in(directory: &Path, vm: VmInfo) -> Result<Registration, RegistryError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);

    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io_error(directory))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("{}-{number}.json", std::process::id()));
    let new = path.with_extension("new");
    let record = Record {
        version: VERSION,
        pid_started: process::start_ticks(vm.pid),
        vm,
    };
    write(&new, &record).map_err(io_error(&new))?;
    // In one step, so that nobody reads half a file.
    fs::rename(&new, &path).map_err(io_error(&path))?;
    Ok(Registration { path })
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)
}

fn list_in(directory: &Path) -> Result<Vec<VmInfo>, RegistryError> {
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(io_error(directory))?,
    };
    let mut vms = Vec::new();
    for file in files {
        let path = file.map_err(io_error(directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // What is no record may be of a later version, and is none of ours.
        let Some(record) = read(&path) else { continue };
        if process::is_alive(record.vm.pid, record.pid_started) {
            vms.push(record.vm);
        } else {
            _ = fs::remove_file(&path);
        }
    }
    vms.sort_by(|a, b| (a.started, &a.name).cmp(&(b.started, &b.name)));
    Ok(vms)
}

fn read(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    (record.version == VERSION).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, pid: u32) -> VmInfo {
        VmInfo::new(name, pid, VmAddress::HybridVsock(format!("/{name}").into()))
    }

    fn names(directory: &Path) -> Vec<String> {
        let vms = list_in(directory).unwrap();
        vms.into_iter().map(|vm| vm.name).collect()
    }

    #[test]
    fn a_vm_is_listed_while_it_is_registered() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("a/b");
        assert_eq!(names(&place), [""; 0]);
        let first = register_in(&place, vm("first", std::process::id())).unwrap();
        let second = register_in(&place, vm("second", std::process::id())).unwrap();
        assert_eq!(names(&place), ["first", "second"]);
        drop(first);
        assert_eq!(names(&place), ["second"]);
        drop(second);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    }

    #[test]
    fn a_vm_whose_process_has_ended_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let registration = register_in(directory.path(), vm("short", child.id())).unwrap();
        assert_eq!(names(directory.path()), ["short"]);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
        assert!(!registration.path.exists());
    }

    #[test]
    fn a_later_process_with_the_same_id_is_not_the_vm() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record {
            version: VERSION,
            pid_started: Some(1),
            vm: vm("old", std::process::id()),
        };
        let path = directory.path().join("x.json");
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.json", "{"),
            ("b.json", r#"{"version": 2, "vm": "?"}"#),
            ("c.txt", ""),
        ] {
            fs::write(directory.path().join(name), content).unwrap();
        }
        fs::create_dir(directory.path().join("d.json")).unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_vm_is_found_by_name_or_by_being_the_only_one() {
        let one = [vm("a", 1)];
        let two = [vm("a", 1), vm("b", 1)];
        let a = VmAddress::HybridVsock("/a".into());
        assert_eq!(choose(&one, None).unwrap(), a);
        assert_eq!(choose(&two, Some("a")).unwrap(), a);
        let text = |result: Result<VmAddress, RegistryError>| result.unwrap_err().to_string();
        assert!(text(choose(&[], None)).starts_with("no VM runs here"));
        assert_eq!(
            text(choose(&two, None)),
            "2 VMs run here, choose one with --vm: a, b"
        );
        assert!(text(choose(&two, Some("c"))).contains("there are: a, b"));
    }
}
