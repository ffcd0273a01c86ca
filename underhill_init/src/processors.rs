//! Brings up the processors that Linux has beside its first one.
//!
//! With a sidecar the kernel boots on one processor. The boot shim has decided which others
//! are Linux' and says so in the device tree; the rest runs the sidecar kernel until somebody
//! needs it. Without a sidecar the tree says nothing, and the kernel has brought up all.

use crate::system::write_existing;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use thiserror::Error;

/// Where the boot shim says which processors are Linux', as 32-bit numbers.
pub const PROPERTY: &str = "/proc/device-tree/openhcl/linux-cpus";

/// Where the kernel has its processors.
pub const PROCESSORS: &str = "/sys/devices/system/cpu";

/// The most processors that the shim accepts.
const MOST: usize = 2048;

/// Why it is not known which processors are Linux'.
#[derive(Debug, Error)]
pub enum ListError {
    /// The property cannot be read.
    #[error("{PROPERTY} cannot be read")]
    Read(#[source] io::Error),
    /// The property is no list.
    #[error("{PROPERTY} has {size} bytes or more, expected 4 for each of up to {MOST} CPUs")]
    Size {
        /// Bytes found, up to one more than allowed.
        size: usize,
    },
}

/// A processor does not come up.
#[derive(Debug, Error)]
#[error("CPU {cpu} does not come up: {path}")]
pub struct ProcessorError {
    /// Which.
    cpu: u32,
    /// The file by which the kernel was asked.
    path: String,
    /// What the kernel says.
    source: io::Error,
}

/// What was done.
#[derive(Debug, Default)]
pub struct BroughtUp {
    /// Processors that run Linux now.
    pub count: usize,
    /// Those that do not, although they should.
    pub failures: Vec<ProcessorError>,
}

/// The processors that are to be brought up; `None` if the kernel has done it.
pub fn wanted(property: &Path) -> Result<Option<Vec<u32>>, ListError> {
    let file = match File::open(property) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ListError::Read(error)),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells "full" from "too much".
    file.take((MOST * 4) as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(ListError::Read)?;
    match bytes.as_chunks() {
        (cpus, []) => Ok(Some(
            cpus.iter().map(|&cell| u32::from_be_bytes(cell)).collect(),
        )),
        _ => Err(ListError::Size { size: bytes.len() }),
    }
}

/// Brings them up, one after the other: in parallel they would wait for each other in the
/// kernel. One that fails does not keep the others down.
pub fn bring_up(cpus: &[u32], processors: &Path) -> BroughtUp {
    let mut result = BroughtUp::default();
    for &cpu in cpus {
        let path = processors.join(format!("cpu{cpu}/online"));
        match write_existing(&path, "1") {
            Ok(()) => result.count += 1,
            Err(source) => result.failures.push(ProcessorError {
                cpu,
                path: path.display().to_string(),
                source,
            }),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    /// A property with such a content.
    fn list(bytes: &[u8]) -> Result<Option<Vec<u32>>, ListError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("linux-cpus");
        std::fs::write(&path, bytes).unwrap();
        wanted(&path)
    }

    /// A kernel with such processors, all down.
    fn kernel(cpus: &[u32]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for cpu in cpus {
            let cpu = directory.path().join(format!("cpu{cpu}"));
            std::fs::create_dir(&cpu).unwrap();
            std::fs::write(cpu.join("online"), "0").unwrap();
        }
        directory
    }

    fn is_up(kernel: &TempDir, cpu: u32) -> bool {
        let path = kernel.path().join(format!("cpu{cpu}/online"));
        std::fs::read_to_string(path).is_ok_and(|text| text == "1")
    }

    #[test]
    fn without_a_sidecar_there_is_nothing_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let property = directory.path().join("linux-cpus");
        assert!(wanted(&property).unwrap().is_none());
    }

    #[test]
    fn the_list_is_read_and_may_be_empty() {
        assert_eq!(list(&[]).unwrap(), Some(vec![]));
        assert_eq!(
            list(&[0, 0, 0, 32, 0, 0, 1, 0]).unwrap(),
            Some(vec![32, 256])
        );
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for size in [1, 7, MOST * 4 + 4] {
            assert!(matches!(
                list(&vec![0; size]),
                Err(ListError::Size { size: found }) if found == size.min(MOST * 4 + 1)
            ));
        }
        assert!(list(&vec![0; MOST * 4]).is_ok());
    }

    #[test]
    fn only_the_wanted_processors_come_up() {
        let kernel = kernel(&[1, 2, 32, 33]);
        let result = bring_up(&[2, 32], kernel.path());
        assert_eq!((result.count, result.failures.len()), (2, 0));
        let up: Vec<u32> = (0..64).filter(|cpu| is_up(&kernel, *cpu)).collect();
        assert_eq!(up, [2, 32]);
    }

    #[test]
    fn a_processor_that_the_kernel_does_not_have_is_named_and_the_others_come_up() {
        let kernel = kernel(&[1, 32]);
        let result = bring_up(&[1, 64, 32], kernel.path());
        assert_eq!(result.count, 2);
        assert!(is_up(&kernel, 32));
        let [failure] = &result.failures[..] else {
            panic!("{result:?}");
        };
        let text = failure.to_string();
        assert!(text.starts_with("CPU 64 does not come up: "), "{text}");
        assert!(text.ends_with("/cpu64/online"), "{text}");
    }

    proptest! {
        #[test]
        fn any_property_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let read = list(&bytes);
            prop_assert_eq!(read.is_ok(), bytes.len().is_multiple_of(4));
        }
    }
}
