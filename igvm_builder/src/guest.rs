//! The guest that an image carries: a kernel, perhaps an initrd, and a command line.
//!
//! They travel as files in the initrd, in an uncompressed segment behind what the caller
//! gave, so they are measured with it and nobody has to place them: VTL2's Linux unpacks
//! them, and the paravisor loads the guest from there each time that it boots. The segment
//! is part of the initrd for everyone who runs it; this crate's tools tell the two apart.

use crate::component::{GpaRange, human_size};
use initramfs::Archive;
use loader_defs::PAGE_SIZE;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt;
use thiserror::Error;
use vm_loader::x86_64::{LinuxDirect, LoadError};
use vm_loader::{MemoryLayout, Ram};

/// Directory of the guest's files in VTL2, which is also how the segment is recognised.
pub const DIRECTORY: &str = "guest";
/// The kernel.
pub const KERNEL: &str = "guest/kernel";
/// The initrd, if there is one.
pub const INITRD: &str = "guest/initrd";
/// The command line, without a newline at its end.
pub const COMMAND_LINE: &str = "guest/cmdline";

/// Twice a guest of this size fits into the memory that a manifest asks for anyway: while
/// VTL2's Linux starts it holds the files twice, packed and unpacked, but none of what runs
/// later. What a guest needs beyond that is added to `memory.size`.
pub const ROOM: u64 = 36 << 20;

/// RAM of the VM for which a kernel is checked when it is packed: more than any kernel asks
/// for. Whether the guest that is wanted has enough is another question, see [`fits`].
const AMPLE_RAM: [(u64, u64); 2] = [(0, 0x9_f000), (1 << 20, 3 << 30)];

/// The files of a guest.
#[derive(Debug, Clone, Copy)]
pub struct GuestFiles<'a> {
    /// `vmlinux` or `bzImage`.
    pub kernel: &'a [u8],
    /// The initrd.
    pub initrd: Option<&'a [u8]>,
}

/// Why a guest cannot be carried.
#[derive(Debug, Error)]
pub enum GuestError {
    /// No Linux could be loaded from these files.
    #[error("guest {error}")]
    Load {
        /// Why.
        error: LoadError,
    },
    /// The files cannot become an archive.
    #[error("guest's files: {error}")]
    Archive {
        /// Why.
        error: initramfs::ArchiveError,
    },
}

impl From<LoadError> for GuestError {
    fn from(error: LoadError) -> Self {
        Self::Load { error }
    }
}

impl From<initramfs::ArchiveError> for GuestError {
    fn from(error: initramfs::ArchiveError) -> Self {
        Self::Archive { error }
    }
}

/// A file of the guest that was found in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestFile {
    /// Its path in VTL2.
    pub path: String,
    /// Its size.
    pub bytes: usize,
    /// SHA-256 of its contents.
    pub sha256: String,
    /// The text, for the command line.
    pub text: Option<String>,
}

/// Whether a guest with this RAM can be booted from the files. RAM is ascending; the ACPI
/// tables, which only the paravisor can make, take less than a page table does.
pub fn fits(
    files: &GuestFiles<'_>,
    command_line: &str,
    ram: &[(u64, u64)],
) -> Result<(), LoadError> {
    let ram: Vec<_> = ram
        .iter()
        .filter_map(|(start, end)| {
            let range = vm_loader::GpaRange::from_bounds(*start, *end)?;
            Some(Ram { range, node: 0 })
        })
        .collect();
    let guest = LinuxDirect {
        kernel: files.kernel,
        initrd: files.initrd,
        command_line,
        memory: MemoryLayout {
            ram: &ram,
            reserved: &[],
            limit: vm_loader::x86_64::ADDRESS_LIMIT,
        },
        chipset: None,
    };
    guest.plan().map(|_| ())
}

/// The segment with the guest's files; what could not be booted is refused.
pub(crate) fn segment(files: &GuestFiles<'_>, command_line: &str) -> Result<Vec<u8>, GuestError> {
    fits(files, command_line, &AMPLE_RAM)?;
    let mut archive = Archive::default();
    archive.directory(DIRECTORY)?;
    archive.file(KERNEL, files.kernel)?;
    if let Some(initrd) = files.initrd {
        archive.file(INITRD, initrd)?;
    }
    archive.file(COMMAND_LINE, command_line.as_bytes())?;
    Ok(archive.finish()?)
}

/// What a guest whose segment has this size adds to VTL2's memory.
pub(crate) fn additional_memory(segment: usize, alignment: u64) -> u64 {
    let twice = (segment as u64).saturating_mul(2);
    twice.saturating_sub(ROOM).next_multiple_of(alignment)
}

/// Finds the guest's segment in an initrd at `range`: its place and its files. What follows
/// an unreadable file is not shown.
pub(crate) fn find(initrd: &[u8], range: GpaRange) -> Option<(GpaRange, Vec<GuestFile>)> {
    let (start, bytes) = initramfs::find_segment(initrd, DIRECTORY)?;
    let place = GpaRange {
        start: range.start.checked_add(start as u64)?,
        end: range.end,
    };
    debug_assert!(place.start.is_multiple_of(PAGE_SIZE));
    let files = initramfs::entries(bytes)
        .map_while(Result::ok)
        .filter(|entry| entry.mode & 0o170_000 == 0o100_000)
        .map(|entry| GuestFile {
            path: format!("/{}", String::from_utf8_lossy(entry.name)),
            bytes: entry.data.len(),
            sha256: crate::dump::hex(&Sha256::digest(entry.data)),
            text: (entry.name == COMMAND_LINE.as_bytes())
                .then(|| String::from_utf8_lossy(entry.data).into_owned()),
        })
        .collect();
    Some((place, files))
}

impl fmt::Display for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = human_size(self.bytes as u64);
        write!(f, "{:<16} {size:>10}  ", self.path)?;
        match &self.text {
            Some(text) => write!(f, "{text:?}"),
            None => write!(f, "sha256 {}", &self.sha256[..16]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_what_has_no_room() {
        let alignment = 2 << 20;
        let mib = |count: usize| count << 20;
        assert_eq!(additional_memory(mib(18), alignment), 0);
        assert_eq!(additional_memory(mib(18) + 1, alignment), 2 << 20);
        assert_eq!(additional_memory(mib(50), alignment), 64 << 20);
    }
}
