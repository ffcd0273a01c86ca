//! Initial RAM disks: "newc" cpio archives
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`) and LZ4's legacy frame,
//! the only LZ4 form that Linux unpacks.
//!
//! Linux takes several archives in one buffer, each compressed or not, and unpacks all of
//! them; zeros between them are skipped. So an archive is also a *segment* that can stand
//! behind another one: [`append_segment`].
//!
//! What it promises:
//! - the same calls give the same bytes: inode numbers count up, times are zero;
//! - [`entries`] reads any bytes without a panic, without copying, and without believing a
//!   length.
//!
//! What it refuses: hard links, devices other than character devices, files of 4 GiB.

#![forbid(unsafe_code)]

mod archive;
mod lz4;
mod reader;

pub use archive::{Archive, ArchiveError};
pub use lz4::compress;
pub use reader::{Entries, Entry, FormatError, entries};

/// A segment begins at a multiple of this: a reader who knows only the buffer finds it, and
/// pages of a segment do not change when what is in front of it grows a little.
pub const SEGMENT_ALIGNMENT: usize = 4096;

/// Zeros that stand at least in front of a segment. LZ4's legacy frame has no end mark:
/// Linux' decoder ends at a block of size zero.
const MIN_GAP: usize = 4;

/// Appends an uncompressed archive to an initrd.
pub fn append_segment(initrd: &mut Vec<u8>, segment: &[u8]) {
    let start = (initrd.len() + MIN_GAP).next_multiple_of(SEGMENT_ALIGNMENT);
    initrd.resize(start, 0);
    initrd.extend_from_slice(segment);
}

/// The last segment of an initrd whose first entry is `first`, if there is one, and where it
/// begins.
pub fn find_segment<'a>(initrd: &'a [u8], first: &str) -> Option<(usize, &'a [u8])> {
    (0..initrd.len())
        .step_by(SEGMENT_ALIGNMENT)
        .rev()
        .map(|start| (start, &initrd[start..]))
        .find(|(_, bytes)| {
            let entry = entries(bytes).next();
            matches!(entry, Some(Ok(entry)) if entry.name == first.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.directory("guest").unwrap();
        archive.file("guest/kernel", b"a kernel").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn a_segment_is_found_behind_a_compressed_archive() {
        for front in [0, 1, 4092, 4093, 4096, 10_000] {
            let mut initrd = vec![0x5a; front];
            append_segment(&mut initrd, &segment());

            let (start, found) = find_segment(&initrd, "guest").unwrap();

            assert_eq!(start % SEGMENT_ALIGNMENT, 0);
            assert!(start >= front + MIN_GAP && start <= front + MIN_GAP + SEGMENT_ALIGNMENT);
            assert!(initrd[front..start].iter().all(|byte| *byte == 0));
            let names: Vec<_> = entries(found).map(|e| e.unwrap().name.to_vec()).collect();
            assert_eq!(names, [b"guest".to_vec(), b"guest/kernel".to_vec()]);
        }
    }

    #[test]
    fn an_initrd_without_the_segment_has_none() {
        assert!(find_segment(&compress(&[7; 100_000]), "guest").is_none());
        assert!(find_segment(&segment(), "host").is_none());
        assert!(find_segment(&[], "guest").is_none());
    }
}
