//! Has Linux boot a CPU.

use crate::error::Error;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;

/// Where the kernel shows itself.
pub(crate) const SYS: &str = "/sys";

/// Whether Linux runs on `cpu`.
pub(crate) fn is_online(sys: &Path, cpu: u32) -> Result<bool, Error> {
    match fs::read_to_string(file(sys, cpu)) {
        Ok(text) => Ok(text.trim_end() == "1"),
        // A CPU that cannot be taken offline has no such file.
        Err(error) if error.kind() == ErrorKind::NotFound && cpu == 0 => Ok(true),
        Err(error) => Err(Error::Online { cpu, error }),
    }
}

/// Boots `cpu`, which runs nothing. Returns when it is online.
pub(crate) fn online(sys: &Path, cpu: u32) -> Result<(), Error> {
    let _quick = Expedited::new(sys);
    fs::write(file(sys, cpu), "1").map_err(|error| Error::Online { cpu, error })
}

fn file(sys: &Path, cpu: u32) -> PathBuf {
    sys.join(format!("devices/system/cpu/cpu{cpu}/online"))
}

/// While this exists, RCU's grace periods, of which the kernel needs some when it boots a CPU,
/// are expedited: CPUs are interrupted for them. One that runs VTL0 would not think of them by
/// itself for a tenth of a second and more.
struct Expedited(PathBuf);

impl Expedited {
    fn new(sys: &Path) -> Self {
        let switch = Self(sys.join("kernel/rcu_expedited"));
        switch.set("1");
        switch
    }

    /// Without it everything works too, but later.
    fn set(&self, value: &str) {
        if self.0.exists() {
            let _ = fs::write(&self.0, value);
        }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        self.set("0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let cpu = directory.path().join("devices/system/cpu/cpu3");
        fs::create_dir_all(&cpu).unwrap();
        fs::write(cpu.join("online"), "0\n").unwrap();
        directory
    }

    #[test]
    fn the_kernel_is_asked_by_the_file_of_the_cpu() {
        let sys = sys();
        let sys = sys.path();

        assert!(!is_online(sys, 3).unwrap());
        online(sys, 3).unwrap();
        assert!(is_online(sys, 3).unwrap());
        assert!(!sys.join("kernel").exists());
    }

    #[test]
    fn grace_periods_are_as_before_when_the_cpu_is_there() {
        let sys = sys();
        let switch = sys.path().join("kernel/rcu_expedited");
        fs::create_dir(sys.path().join("kernel")).unwrap();
        fs::write(&switch, "0").unwrap();

        let quick = Expedited::new(sys.path());
        assert_eq!(fs::read_to_string(&switch).unwrap(), "1");
        drop(quick);
        assert_eq!(fs::read_to_string(&switch).unwrap(), "0");
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error_but_cpu_0_needs_no_file() {
        let directory = tempfile::tempdir().unwrap();
        assert!(is_online(directory.path(), 0).unwrap());
        for error in [
            is_online(directory.path(), 7).unwrap_err(),
            online(directory.path(), 7).unwrap_err(),
        ] {
            let text = error.to_string();
            let expected = "CPU 7 cannot be brought online: No such";
            assert!(text.starts_with(expected), "{text}");
        }
    }
}
