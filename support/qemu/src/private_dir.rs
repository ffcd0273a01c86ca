//! A directory for the sockets of one machine: private, short, and gone with it.
//!
//! The path of a Unix socket has at most 107 bytes, so it cannot be beside the consoles,
//! which may lie anywhere. What a killed process leaves behind is swept by the next one:
//! a lock file in the directory tells whether somebody still uses it.

use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;

/// The most bytes of a Unix socket's path: `sun_path` without its terminator (unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// What a socket's name may need below the directory: `/vm.sock_` and ten digits of a port.
const NAME_RESERVE: usize = 24;

/// In front of each directory's name.
const PREFIX: &str = "openhcl-vm.";

/// In each directory, locked by its user.
const LOCK_FILE: &str = "lock";

/// A directory that only this user can enter. Removed when dropped.
#[derive(Debug)]
pub(crate) struct PrivateDirectory {
    directory: tempfile::TempDir,
    _lock: File,
}

impl PrivateDirectory {
    /// A new one, below the first place where paths are short enough.
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let places = [runtime, Some(std::env::temp_dir()), Some("/tmp".into())];
        let mut refused = io::Error::other("no place has a path that is short enough");
        for place in places.into_iter().flatten() {
            // tempfile appends six characters to the prefix, after a slash.
            let length = place.as_os_str().len() + PREFIX.len() + 7 + NAME_RESERVE;
            if !place.is_absolute() || length > SOCKET_PATH_MAX {
                continue;
            }
            match Self::below(&place) {
                Ok(directory) => return Ok(directory),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn below(place: &Path) -> io::Result<Self> {
        sweep(place);
        // Mode 0700: whoever can reach a diagnostics socket is an administrator.
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(place)?;
        // Locked before it has its name, so that no sweep can see it without an owner.
        let unnamed = directory.path().join("lock.new");
        let lock = File::create_new(&unnamed)?;
        lock.try_lock()?;
        std::fs::rename(unnamed, directory.path().join(LOCK_FILE))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes what processes that were killed have left. Failures are no failure of ours.
fn sweep(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else {
        return;
    };
    let own = std::fs::metadata("/proc/self").map(|process| process.uid());
    for entry in entries.filter_map(Result::ok) {
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            // Not followed if it is a link, and not another user's.
            && entry
                .metadata()
                .is_ok_and(|data| data.is_dir() && own.as_ref().is_ok_and(|own| *own == data.uid()));
        // Without a lock file it is only just being made.
        if ours
            && File::open(entry.path().join(LOCK_FILE)).is_ok_and(|lock| lock.try_lock().is_ok())
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_short_and_gone_when_dropped() {
        let directory = PrivateDirectory::new().unwrap();
        let path = directory.path().to_owned();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(path.as_os_str().len() + NAME_RESERVE <= SOCKET_PATH_MAX);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let left = place.path().join(format!("{PREFIX}left"));
        let begun = place.path().join(format!("{PREFIX}begun"));
        let other = place.path().join("other");
        for directory in [&left, &begun, &other] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(left.join(LOCK_FILE), "").unwrap();
        std::fs::write(other.join(LOCK_FILE), "").unwrap();
        let used = PrivateDirectory::below(place.path()).unwrap();

        let _second = PrivateDirectory::below(place.path()).unwrap();

        assert!(!left.exists());
        assert!(used.path().exists() && begun.exists() && other.exists());
    }
}
