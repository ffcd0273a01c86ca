//! Has Linux boot a CPU.

use crate::error::Error;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;

/// Where the kernel has its CPUs.
pub(crate) const CPUS: &str = "/sys/devices/system/cpu";

/// Whether Linux runs on `cpu`.
pub(crate) fn is_online(cpus: &Path, cpu: u32) -> Result<bool, Error> {
    match fs::read_to_string(file(cpus, cpu)) {
        Ok(text) => Ok(text.trim_end() == "1"),
        // A CPU that cannot be taken offline has no such file.
        Err(error) if error.kind() == ErrorKind::NotFound && cpu == 0 => Ok(true),
        Err(error) => Err(Error::Online { cpu, error }),
    }
}

/// Boots `cpu`, which runs nothing. Returns when it is online.
pub(crate) fn online(cpus: &Path, cpu: u32) -> Result<(), Error> {
    fs::write(file(cpus, cpu), "1").map_err(|error| Error::Online { cpu, error })
}

fn file(cpus: &Path, cpu: u32) -> PathBuf {
    cpus.join(format!("cpu{cpu}/online"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_by_the_file_of_the_cpu() {
        let directory = tempfile::tempdir().unwrap();
        let cpus = directory.path();
        fs::create_dir(cpus.join("cpu3")).unwrap();
        fs::write(cpus.join("cpu3/online"), "0\n").unwrap();

        assert!(!is_online(cpus, 3).unwrap());
        online(cpus, 3).unwrap();
        assert!(is_online(cpus, 3).unwrap());
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
            assert!(
                text.starts_with("CPU 7 cannot be brought online: No such"),
                "{text}"
            );
        }
    }
}
