//! Files that QEMU gives the machine (fw_cfg), read by DMA.
//!
//! The device is described in QEMU's `docs/specs/fw_cfg.rst`. The kernel's driver shows
//! the files in sysfs, but reads them byte by byte and from the start for each call, so
//! that 1 MiB takes seven seconds. Here a process with the rights of VTL2's root drives the
//! device itself: one transfer per page.
//!
//! * Promises: everything that the device returns is checked before it is used; the
//!   caller says how large a file may be, and no more memory than that is used; a
//!   machine without the device ([`FwCfgError::NoDevice`]) and a device without the file
//!   ([`FwCfgError::NoFile`]) are told apart from failures, because both are normal.
//! * Refuses: writing to the device, and keeping anything open. The ports are the
//!   process's own for the duration of one call only.
//!
//! Ports, physical addresses and the memory that the device writes to are in the module
//! `dma`, the only one with unsafe code.

#[cfg(target_arch = "x86_64")]
mod dma;

use std::io;
use std::time::Duration;
use thiserror::Error;

/// Key of the directory.
const KEY_DIRECTORY: u16 = 0x19;

/// The most files that a device has; QEMU's own limit is far lower by default.
const FILES_MAX: u32 = 4096;

/// Bytes of an entry of the directory: size, key, two reserved bytes, name.
const ENTRY_SIZE: usize = 64;

/// Bytes of a name, with the NUL at its end.
const NAME_SIZE: usize = 56;

/// Entries that are read at a time.
const ENTRIES_AT_ONCE: usize = 32;

/// How long a transfer may take. QEMU finishes it before the instruction that starts it.
pub(crate) const TRANSFER_DEADLINE: Duration = Duration::from_secs(1);

/// Why there is no file.
#[derive(Debug, Error)]
pub enum FwCfgError {
    /// The machine has no such device.
    #[error("this machine has no fw_cfg device")]
    NoDevice,
    /// The device has no such file.
    #[error("fw_cfg has no file {name}")]
    NoFile {
        /// Its name.
        name: String,
    },
    /// The file is larger than the caller permits.
    #[error("fw_cfg file {name} has {size} bytes, expected at most {max}")]
    TooLarge {
        /// Its name.
        name: String,
        /// Its size.
        size: u32,
        /// What is permitted.
        max: usize,
    },
    /// The directory is longer than any real one.
    #[error("fw_cfg has {count} files, expected at most {FILES_MAX}")]
    TooManyFiles {
        /// Number of files that the device claims.
        count: u32,
    },
    /// The device refused a transfer.
    #[error("fw_cfg refused to transfer {length} bytes of item {key:#x}")]
    Refused {
        /// The item.
        key: u16,
        /// Size of the transfer.
        length: usize,
    },
    /// The device did not finish a transfer.
    #[error(
        "fw_cfg did not finish a transfer of item {key:#x}, expected within {TRANSFER_DEADLINE:?}"
    )]
    Timeout {
        /// The item.
        key: u16,
    },
    /// The process cannot reach the device.
    #[error("fw_cfg cannot be used: {step}")]
    System {
        /// What failed.
        step: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel does not tell where memory is.
    #[error("fw_cfg cannot be used: the kernel does not show physical addresses")]
    NoPhysicalAddress,
    /// Memory moved while the device wrote to it.
    #[error("fw_cfg cannot be used: the kernel moved locked memory during a transfer")]
    Moved,
}

/// Reads the file called `name`, which may have `max` bytes.
pub fn read_file(name: &str, max: usize) -> Result<Vec<u8>, FwCfgError> {
    #[cfg(target_arch = "x86_64")]
    {
        read_from(&mut dma::Device::open()?, name, max)
    }
    // On other machines the device is memory-mapped and needs an address from the device
    // tree, which nothing here has yet.
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (name, max);
        Err(FwCfgError::NoDevice)
    }
}

/// What the device can do.
trait Items {
    /// Fills `buffer` from the start of item `key`.
    fn select(&mut self, key: u16, buffer: &mut [u8]) -> Result<(), FwCfgError>;

    /// Fills `buffer` with what follows.
    fn next(&mut self, key: u16, buffer: &mut [u8]) -> Result<(), FwCfgError>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    size: u32,
    key: u16,
}

fn read_from(device: &mut impl Items, name: &str, max: usize) -> Result<Vec<u8>, FwCfgError> {
    let no_file = || FwCfgError::NoFile {
        name: name.to_owned(),
    };
    let entry = find(device, name)?.ok_or_else(no_file)?;
    let size = usize::try_from(entry.size)
        .ok()
        .filter(|size| *size <= max)
        .ok_or_else(|| FwCfgError::TooLarge {
            name: name.to_owned(),
            size: entry.size,
            max,
        })?;
    let mut contents = vec![0; size];
    device.select(entry.key, &mut contents)?;
    Ok(contents)
}

/// Looks the file up; the first of several with the same name counts.
fn find(device: &mut impl Items, name: &str) -> Result<Option<Entry>, FwCfgError> {
    if name.is_empty() || name.len() >= NAME_SIZE || name.contains('\0') {
        return Ok(None);
    }
    let mut count = [0; 4];
    device.select(KEY_DIRECTORY, &mut count)?;
    let count = u32::from_be_bytes(count);
    if count > FILES_MAX {
        return Err(FwCfgError::TooManyFiles { count });
    }
    let mut buffer = [0; ENTRIES_AT_ONCE * ENTRY_SIZE];
    let mut left = count as usize;
    while left > 0 {
        let entries = left.min(ENTRIES_AT_ONCE);
        let bytes = &mut buffer[..entries * ENTRY_SIZE];
        device.next(KEY_DIRECTORY, bytes)?;
        let (entries_read, _) = bytes.as_chunks::<ENTRY_SIZE>();
        if let Some(found) = entries_read.iter().find_map(|entry| named(entry, name)) {
            return Ok(Some(found));
        }
        left -= entries;
    }
    Ok(None)
}

/// The entry, if it has this name.
fn named(entry: &[u8; ENTRY_SIZE], name: &str) -> Option<Entry> {
    let [s0, s1, s2, s3, k0, k1, _, _, text @ ..] = entry;
    let end = text.iter().position(|byte| *byte == 0)?;
    (&text[..end] == name.as_bytes()).then_some(Entry {
        size: u32::from_be_bytes([*s0, *s1, *s2, *s3]),
        key: u16::from_be_bytes([*k0, *k1]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A device with items of any content; what is beyond an item's end is zeros, as in
    /// QEMU.
    #[derive(Default)]
    struct Fake {
        items: Vec<(u16, Vec<u8>)>,
        at: usize,
        transferred: usize,
    }

    impl Fake {
        fn with_files(files: &[(&str, &[u8])]) -> Self {
            let mut fake = Self::default();
            let mut directory = (files.len() as u32).to_be_bytes().to_vec();
            for (index, (name, contents)) in files.iter().enumerate() {
                let key = 0x20 + index as u16;
                directory.extend((contents.len() as u32).to_be_bytes());
                directory.extend(key.to_be_bytes());
                directory.extend([0; 2]);
                let mut field = name.as_bytes().to_vec();
                field.resize(NAME_SIZE, 0);
                directory.extend(field);
                fake.items.push((key, contents.to_vec()));
            }
            fake.items.push((KEY_DIRECTORY, directory));
            fake
        }
    }

    impl Items for Fake {
        fn select(&mut self, key: u16, buffer: &mut [u8]) -> Result<(), FwCfgError> {
            self.at = 0;
            self.next(key, buffer)
        }

        fn next(&mut self, key: u16, buffer: &mut [u8]) -> Result<(), FwCfgError> {
            let item = self.items.iter().find(|(known, _)| *known == key);
            let bytes = item.map_or(&[][..], |(_, bytes)| bytes);
            for byte in buffer.iter_mut() {
                *byte = bytes.get(self.at).copied().unwrap_or(0);
                self.at += 1;
            }
            self.transferred += buffer.len();
            Ok(())
        }
    }

    #[test]
    fn a_file_is_found_by_its_whole_name() {
        let long = vec![7; 10_000];
        let mut device = Fake::with_files(&[
            ("etc/acpi/tables", b"no"),
            ("opt/openhcl/config2", b"no"),
            ("opt/openhcl/config", &long),
            ("opt/openhcl/empty", b""),
        ]);
        assert_eq!(
            read_from(&mut device, "opt/openhcl/config", 10_000).unwrap(),
            long
        );
        assert_eq!(read_from(&mut device, "opt/openhcl/empty", 0).unwrap(), b"");
    }

    #[test]
    fn a_file_behind_many_others_is_found() {
        let names: Vec<String> = (0..100).map(|i| format!("file{i}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
        let mut device = Fake::with_files(&files);
        assert_eq!(read_from(&mut device, "file99", 10).unwrap(), b"file99");
    }

    #[test]
    fn a_file_that_is_not_there_is_told_apart() {
        let mut device = Fake::with_files(&[("opt/a", b"x")]);
        for name in ["opt/b", "opt/", "", "opt/a\0", &"x".repeat(56)] {
            assert!(
                matches!(
                    read_from(&mut device, name, 10),
                    Err(FwCfgError::NoFile { .. })
                ),
                "{name}"
            );
        }
    }

    #[test]
    fn a_file_above_the_limit_is_refused_unread() {
        let mut device = Fake::with_files(&[("a", &[1; 100])]);
        let error = read_from(&mut device, "a", 99).unwrap_err();
        assert_eq!(
            error.to_string(),
            "fw_cfg file a has 100 bytes, expected at most 99"
        );
        assert!(device.transferred <= 4 + ENTRY_SIZE);
    }

    #[test]
    fn a_directory_without_end_is_refused() {
        let mut device = Fake {
            items: vec![(KEY_DIRECTORY, vec![0xff; 64])],
            ..Fake::default()
        };
        assert_eq!(
            read_from(&mut device, "a", 10).unwrap_err().to_string(),
            "fw_cfg has 4294967295 files, expected at most 4096"
        );
    }

    #[test]
    fn a_name_without_end_is_no_name() {
        let mut device = Fake::with_files(&[("a", b"x")]);
        let directory = &mut device.items[1].1;
        directory[12..].fill(b'a');
        assert!(matches!(
            read_from(&mut device, &"a".repeat(55), 10),
            Err(FwCfgError::NoFile { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_directory_gives_a_file_or_a_typed_error(
            mut directory in prop::collection::vec(any::<u8>(), 0..400),
            small_count: bool,
            max in 0usize..100_000,
        ) {
            if small_count && directory.len() > 4 {
                directory[..3].fill(0);
            }
            let mut device = Fake { items: vec![(KEY_DIRECTORY, directory)], ..Fake::default() };
            if let Ok(contents) = read_from(&mut device, "a", max) {
                prop_assert!(contents.len() <= max);
            }
        }
    }
}
