//! The cache below the user's cache directory.
//!
//! An entry is a directory whose name is a key computed from all that went into it, so an
//! entry never becomes wrong, only unused. It is built under a temporary name and renamed
//! when it is complete: what exists is whole, whatever was interrupted. A lock file per
//! entry makes a second run wait for the first instead of building beside it.

use anyhow::Context;
use std::fs::File;
use std::fs::TryLockError;
use std::path::Path;
use std::path::PathBuf;

/// Below the user's cache directory.
const DIRECTORY: &str = "openhcl-qemu";

/// Logs that are kept.
const LOGS: usize = 60;

/// The cache.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// A temporary directory on the cache's own file system, gone when dropped.
///
/// A run that is killed leaves it behind (a kernel's source tree is large); the lock file
/// beside it then tells the next run that nobody uses it any more.
#[derive(Debug)]
pub(crate) struct Temporary {
    directory: tempfile::TempDir,
    lock_path: PathBuf,
    _lock: Lock,
}

/// A lock that other runs respect; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Cache {
    /// The user's cache: `$XDG_CACHE_HOME`, else `~/.cache`.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            // The specification asks to ignore what is not absolute.
            .filter(|path| path.is_absolute())
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set, expected a place for caches")?;
        Self::at(&base.join(DIRECTORY))
    }

    /// A cache at a place of the caller's choice.
    pub(crate) fn at(root: &Path) -> anyhow::Result<Self> {
        for directory in ["locks", "logs", "tmp"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path)
                .with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Where everything lies.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where an entry is once it is complete.
    pub(crate) fn path(&self, kind: &str, key: &str) -> PathBuf {
        self.root.join(kind).join(key)
    }

    /// The entry, if it is complete.
    pub(crate) fn get(&self, kind: &str, key: &str) -> Option<PathBuf> {
        Some(self.path(kind, key)).filter(|path| path.is_dir())
    }

    /// The entry; `build` fills an empty directory if there is none yet.
    pub(crate) fn get_or_build(
        &self,
        kind: &str,
        key: &str,
        build: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        if let Some(path) = self.get(kind, key) {
            return Ok(path);
        }
        let _lock = self.lock(&format!("{kind}-{key}"))?;
        if let Some(path) = self.get(kind, key) {
            return Ok(path);
        }
        let directory = self.temporary(kind)?;
        build(directory.path())?;
        let path = self.path(kind, key);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::rename(directory.path(), &path)
            .with_context(|| format!("moving the finished entry to {}", path.display()))?;
        Ok(path)
    }

    /// A new temporary directory.
    pub(crate) fn temporary(&self, name: &str) -> anyhow::Result<Temporary> {
        // Between the two steps of making or removing one, no other run may look.
        let _lock = self.lock("tmp")?;
        let parent = self.root.join("tmp");
        remove_abandoned(&parent)?;
        let directory = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .tempdir_in(&parent)
            .context("creating a temporary directory in the cache")?;
        let lock_path = directory.path().with_added_extension("lock");
        Ok(Temporary {
            _lock: lock_file(&lock_path)?,
            lock_path,
            directory,
        })
    }

    /// Takes a lock by name, waiting for other runs that have it.
    pub(crate) fn lock(&self, name: &str) -> anyhow::Result<Lock> {
        lock_file(&self.root.join("locks").join(name))
    }

    /// The path of a new log file.
    pub(crate) fn new_log(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.root.join("logs");
        let mut logs: Vec<_> = std::fs::read_dir(&directory)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        logs.sort();
        for (_, path) in logs.iter().rev().skip(LOGS) {
            // Another run may have been faster.
            let _ = std::fs::remove_file(path);
        }
        Ok(directory.join(format!("{name}.{}.log", std::process::id())))
    }
}

impl Temporary {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // If this fails the next run removes it.
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Removes temporary directories whose lock nobody holds.
fn remove_abandoned(parent: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        // Gone, if its run has just ended in order.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.try_lock().is_ok() {
            // A failure leaves the lock file, and with it the next attempt.
            let directory = path.with_extension("");
            if !directory.exists() || std::fs::remove_dir_all(&directory).is_ok() {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(())
}

/// Locks the file `path`, which is created if it does not exist.
pub(crate) fn lock_file(path: &Path) -> anyhow::Result<Lock> {
    let what = || format!("locking {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(what)?;
    }
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(what)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("            waiting for another run ({})", path.display());
            file.lock().with_context(what)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(what),
    }
    Ok(Lock(file))
}

/// Writes a file so that a reader sees the old or the new contents, never a mixture; an
/// unchanged file keeps its time. Returns whether it changed.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let what = || format!("writing {}", path.display());
    let parent = path.parent().with_context(what)?;
    std::fs::create_dir_all(parent).with_context(what)?;
    let mut file = tempfile::NamedTempFile::new_in(parent).with_context(what)?;
    std::io::Write::write_all(&mut file, bytes).with_context(what)?;
    // Temporary files are private; results are for everybody to read.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).with_context(what)?;
    file.persist(path).with_context(what)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_second_request_builds_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let build = |path: &Path| Ok(std::fs::write(path.join("f"), "x")?);
        let first = cache.get_or_build("k", "1", build).unwrap();
        let second = cache
            .get_or_build("k", "1", |_| anyhow::bail!("built twice"))
            .unwrap();
        assert_eq!(first, second);
        assert_eq!(std::fs::read(first.join("f")).unwrap(), b"x");
    }

    #[test]
    fn a_failed_build_leaves_no_entry() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let result = cache.get_or_build("k", "1", |path| {
            std::fs::write(path.join("half"), "x")?;
            anyhow::bail!("interrupted")
        });
        assert!(result.is_err());
        assert!(cache.get("k", "1").is_none());
        assert_eq!(
            std::fs::read_dir(cache.root().join("tmp")).unwrap().count(),
            0
        );
    }

    #[test]
    fn what_a_killed_run_left_behind_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let killed = directory.path().join("tmp/kernel-build.x");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("file"), "x").unwrap();
        std::fs::write(directory.path().join("tmp/kernel-build.x.lock"), "").unwrap();
        let running = cache.temporary("kernel-build").unwrap();
        let another = cache.temporary("kernel-build").unwrap();
        assert!(!killed.exists());
        assert!(running.path().is_dir() && another.path().is_dir());
        drop((running, another));
        assert_eq!(
            std::fs::read_dir(directory.path().join("tmp"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn two_runs_at_once_build_one_entry() {
        let directory = tempfile::tempdir().unwrap();
        let built = AtomicUsize::new(0);
        let together = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let cache = Cache::at(directory.path()).unwrap();
                    together.wait();
                    cache
                        .get_or_build("k", "1", |path| {
                            built.fetch_add(1, Ordering::SeqCst);
                            Ok(std::fs::write(path.join("f"), "x")?)
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(built.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn unchanged_contents_are_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        assert!(write_if_changed(&path, b"1").unwrap());
        assert!(!write_if_changed(&path, b"1").unwrap());
        assert!(write_if_changed(&path, b"2").unwrap());
    }
}
