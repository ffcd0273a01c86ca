//! The guest's files, which the image carries: kernel, initrd, command line.
//!
//! They are mapped, not read: their pages are in the initramfs anyway, and stay there for
//! the next boot of the guest.
#![expect(unsafe_code, reason = "files are mapped into memory")]

use rustix::mm;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::ptr;
use std::ptr::NonNull;
use thiserror::Error;

/// Where the image has the files.
pub(crate) const DIRECTORY: &str = "/guest";

/// Name of the kernel, without which there is no guest.
pub(crate) const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const COMMAND_LINE: &str = "cmdline";

/// More than any kernel reads.
const COMMAND_LINE_MAX: u64 = 64 << 10;

/// A file of the guest that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum PayloadError {
    /// It cannot be opened or read.
    #[error("{path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// A kernel without bytes.
    #[error("{path} is empty")]
    Empty { path: PathBuf },
    /// A command line that is none.
    #[error("{path} has {size} bytes, expected at most {COMMAND_LINE_MAX}")]
    TooLong { path: PathBuf, size: u64 },
    /// Not text.
    #[error("{path} is not UTF-8")]
    NotText { path: PathBuf },
}

/// The files.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) kernel: Mapped,
    pub(crate) initrd: Option<Mapped>,
    pub(crate) command_line: String,
}

impl Payload {
    /// Maps the files in `directory`; `None`: there is no kernel.
    pub(crate) fn open(directory: &Path) -> Result<Option<Self>, PayloadError> {
        let Some(kernel) = map(&directory.join(KERNEL))? else {
            return Ok(None);
        };
        Ok(Some(Self {
            kernel,
            initrd: map(&directory.join(INITRD))?,
            command_line: command_line(&directory.join(COMMAND_LINE))?,
        }))
    }
}

/// A file in memory, read-only.
///
/// Its bytes are those of the initramfs, which only this project's processes can write, and
/// none does.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: NonNull<u8>,
    length: usize,
}

impl Mapped {
    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has so many bytes, lives as long as this value, and is not
        // written: see the type.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it is this value's own, and no borrow of its bytes is left. Should it
        // fail, the mapping stays, and does no harm.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn map(path: &Path) -> Result<Option<Mapped>, PayloadError> {
    let failed = |error| PayloadError::Read {
        path: path.to_owned(),
        error,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let size = file.metadata().map_err(failed)?.len();
    let length = usize::try_from(size).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
    if length == 0 {
        return Err(PayloadError::Empty {
            path: path.to_owned(),
        });
    }
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe {
        mm::mmap(
            ptr::null_mut(),
            length,
            ProtFlags::READ,
            MapFlags::PRIVATE,
            &file,
            0,
        )
    };
    let start = start.map_err(|error| failed(error.into()))?;
    let start =
        NonNull::new(start.cast()).ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
    Ok(Some(Mapped { start, length }))
}

/// The text of the file; without one, nothing.
fn command_line(path: &Path) -> Result<String, PayloadError> {
    let failed = |error| PayloadError::Read {
        path: path.to_owned(),
        error,
    };
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    };
    if size > COMMAND_LINE_MAX {
        return Err(PayloadError::TooLong {
            path: path.to_owned(),
            size,
        });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| PayloadError::NotText {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        directory
    }

    #[test]
    fn an_image_without_a_kernel_has_no_guest() {
        let directory = directory(&[("initrd", b"x")]);
        assert!(Payload::open(directory.path()).unwrap().is_none());
    }

    #[test]
    fn the_files_are_the_guests() {
        let directory = directory(&[("kernel", b"K"), ("initrd", b"I"), ("cmdline", b"quiet")]);
        let payload = Payload::open(directory.path()).unwrap().unwrap();
        assert_eq!(payload.kernel.bytes(), b"K");
        assert_eq!(payload.initrd.unwrap().bytes(), b"I");
        assert_eq!(payload.command_line, "quiet");
    }

    #[test]
    fn a_kernel_is_enough() {
        let directory = directory(&[("kernel", b"K")]);
        let payload = Payload::open(directory.path()).unwrap().unwrap();
        assert!(payload.initrd.is_none());
        assert_eq!(payload.command_line, "");
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let error = |files: &[(&str, &[u8])]| {
            let directory = directory(files);
            Payload::open(directory.path()).unwrap_err().to_string()
        };
        assert!(error(&[("kernel", b"")]).ends_with("/kernel is empty"));
        assert!(error(&[("kernel", b"K"), ("cmdline", b"\xff")]).ends_with("is not UTF-8"));
        let long = vec![b'x'; COMMAND_LINE_MAX as usize + 1];
        assert!(error(&[("kernel", b"K"), ("cmdline", &long)]).contains("65537 bytes"));
    }
}
