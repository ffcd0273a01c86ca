//! Writing an archive.

use std::io;
use std::io::Write as _;
use thiserror::Error;

/// File types of the mode field.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Why an entry cannot be written.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The format has 32 bits for a size.
    #[error("{name}: {size} bytes, expected less than 4 GiB")]
    TooLarge {
        /// The entry.
        name: String,
        /// Its size.
        size: usize,
    },
    /// The writer refuses it.
    #[error("{name}: {source}")]
    Write {
        /// The entry.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    /// An empty directory.
    pub fn directory(&mut self, name: &str) -> Result<(), ArchiveError> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A file that everyone may read.
    pub fn file(&mut self, name: &str, data: &[u8]) -> Result<(), ArchiveError> {
        self.entry(name, FILE | 0o644, (0, 0), data)
    }

    /// A file that everyone may run.
    pub fn program(&mut self, name: &str, data: &[u8]) -> Result<(), ArchiveError> {
        self.entry(name, FILE | 0o755, (0, 0), data)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), ArchiveError> {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device with its major and minor number.
    pub fn character_device(
        &mut self,
        name: &str,
        mode: u32,
        number: (u32, u32),
    ) -> Result<(), ArchiveError> {
        self.entry(name, CHARACTER_DEVICE | mode, number, &[])
    }

    /// The archive with its trailer.
    pub fn finish(mut self) -> Result<Vec<u8>, ArchiveError> {
        cpio::newc::trailer(&mut self.bytes).map_err(|source| ArchiveError::Write {
            name: "trailer".into(),
            source,
        })?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        data: &[u8],
    ) -> Result<(), ArchiveError> {
        let Ok(size) = u32::try_from(data.len()) else {
            return Err(ArchiveError::TooLarge {
                name: name.into(),
                size: data.len(),
            });
        };
        self.next_inode += 1;
        let header = cpio::newc::Builder::new(name)
            .ino(self.next_inode)
            .mode(mode)
            .nlink(1)
            .mtime(0)
            .rdev_major(major)
            .rdev_minor(minor);
        let mut writer = header.write(&mut self.bytes, size);
        let written = writer.write_all(data).and_then(|()| writer.finish());
        written.map(|_| ()).map_err(|source| ArchiveError::Write {
            name: name.into(),
            source,
        })
    }
}
