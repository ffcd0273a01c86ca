//! Reading of the header of a flat `Image`.

use super::ALIGNMENT;
use loader_defs::linux::{ARM64_IMAGE_MAGIC, Arm64ImageFlags, Arm64ImageHeader};
use thiserror::Error;
use zerocopy::FromBytes;

/// No image is as large as the address space.
const SIZE_LIMIT: u64 = 1 << 48;
/// Other formats that kernels come in: first bytes, name.
const OTHER_FORMATS: [(&[u8], &str); 6] = [
    (b"\x1f\x8b", "compressed with gzip (Image.gz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"\x02\x21\x4c\x18", "compressed with lz4"),
    (b"\x7fELF", "an ELF file (vmlinux)"),
];
/// Offset of the type of a compressed EFI image (`vmlinuz.efi`).
const ZBOOT_TYPE_OFFSET: usize = 4;
/// That type.
const ZBOOT_TYPE: &[u8] = b"zimg";

/// Why an image cannot be used. The caller names the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ImageError {
    /// Not even a header.
    #[error("the file has {size} bytes, expected at least the 64 of an arm64 Image header")]
    Truncated {
        /// Its size.
        size: usize,
    },
    /// Not a flat image, but something known.
    #[error("the file is {found}, expected a flat, uncompressed arm64 Image")]
    OtherFormat {
        /// What it is.
        found: &'static str,
    },
    /// Not an image.
    #[error("magic at 0x38 is {found:#010x}, expected {ARM64_IMAGE_MAGIC:#010x} (arm64 Image)")]
    Magic {
        /// What is there.
        found: u32,
    },
    /// The kernel is for the other byte order.
    #[error("flags are {flags:#x}: a big-endian kernel, expected a little-endian one")]
    BigEndian {
        /// What the header says.
        flags: u64,
    },
    /// A number that makes no sense.
    #[error("{field} is {found:#x}, expected {expected}")]
    Field {
        /// Which one.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What would make sense.
        expected: &'static str,
    },
    /// The file is larger than the kernel says.
    #[error("image_size is {image_size} bytes, the file has {size}, expected at most as many")]
    TooLarge {
        /// What the header says.
        image_size: u64,
        /// The file.
        size: u64,
    },
}

/// A kernel that can be loaded as it is.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Its header: the offset is below 2 MiB and page aligned, the size below 2^48 and not
    /// less than that of the file.
    pub header: Arm64ImageHeader,
}

impl Image {
    /// Reads the header.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        let other = OTHER_FORMATS
            .iter()
            .find(|(magic, _)| file.starts_with(magic));
        if let Some((_, found)) = other {
            return Err(ImageError::OtherFormat { found });
        }
        if file
            .get(ZBOOT_TYPE_OFFSET..)
            .is_some_and(|rest| rest.starts_with(ZBOOT_TYPE))
        {
            return Err(ImageError::OtherFormat {
                found: "a compressed EFI image (zboot)",
            });
        }
        let size = file.len();
        let (header, _) =
            Arm64ImageHeader::read_from_prefix(file).map_err(|_| ImageError::Truncated { size })?;
        let found = header.magic;
        if found != ARM64_IMAGE_MAGIC {
            return Err(ImageError::Magic { found });
        }
        Self { header }.check(size as u64)
    }

    fn check(self, size: u64) -> Result<Self, ImageError> {
        let field = |field, found, expected| {
            Err(ImageError::Field {
                field,
                found,
                expected,
            })
        };
        let Arm64ImageHeader {
            text_offset,
            image_size,
            flags,
            ..
        } = self.header;
        if Arm64ImageFlags::from_bits(flags).big_endian() {
            return Err(ImageError::BigEndian { flags });
        }
        if text_offset >= ALIGNMENT || !text_offset.is_multiple_of(loader_defs::PAGE_SIZE) {
            return field(
                "text_offset",
                text_offset,
                "a multiple of 4 KiB below 2 MiB",
            );
        }
        if image_size == 0 || image_size > SIZE_LIMIT {
            return field(
                "image_size",
                image_size,
                "a size below 2^48 (kernels since 3.17 have one)",
            );
        }
        if size > image_size {
            return Err(ImageError::TooLarge { image_size, size });
        }
        Ok(self)
    }
}
