//! The real IGVM file, changed so that a host must refuse it.
//!
//! The `igvm` crate will not write most of what is needed here, because it validates. So
//! this changes bytes: it knows the fixed header, walks the variable headers with the
//! structures of `igvm_defs`, and can put the checksum right again, without which a host
//! would only ever be asked for its checksum code.

use crate::artifacts::artifacts;
use crate::artifacts::read;
use crate::artifacts::sidecar_kernel;
use crate::program;
use igvm_builder::GuestFiles;
use igvm_builder::LinuxDirect;
use igvm_builder::Manifest;
use igvm_builder::Resources;
use igvm_builder::manifest::Guest;
use igvm_defs::IGVM_FIXED_HEADER;
use igvm_defs::IGVM_VHS_PAGE_DATA;
use igvm_defs::IGVM_VHS_VARIABLE_HEADER;
use igvm_defs::IgvmVariableHeaderType;
use std::mem::offset_of;
use std::ops::Range;
use std::path::Path;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Payloads of variable headers are padded to this.
const HEADER_ALIGNMENT: usize = 8;

/// The manifest of the release image with a guest.
const GUEST_MANIFEST: &str = include_str!("../../igvm_builder/manifests/openhcl-x64-linux.toml");

/// An IGVM file in memory.
#[derive(Debug, Clone)]
pub struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// The release image.
    #[track_caller]
    pub fn release() -> Self {
        Self::read(&artifacts().release_image)
    }

    /// An image of the release image's parts with another manifest.
    #[track_caller]
    pub fn with_manifest(manifest: &str) -> Self {
        let manifest = Manifest::parse(manifest, Path::new("manifest of the test"))
            .unwrap_or_else(|error| panic!("{error}"));
        Self::build_with(&manifest, None, &sidecar_kernel())
    }

    /// The same with a sidecar kernel that consists of this code.
    #[track_caller]
    pub fn with_sidecar(manifest: &str, code: &[u8]) -> Self {
        let manifest = Manifest::parse(manifest, Path::new("manifest of the test"))
            .unwrap_or_else(|error| panic!("{error}"));
        Self::build_with(&manifest, None, &program::elf(code))
    }

    /// The release image with a guest: any kernel that `vm_loader` knows, and its initrd.
    #[track_caller]
    pub fn with_guest(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str) -> Self {
        Self::with_guest_beside(&sidecar_kernel(), kernel, initrd, command_line)
    }

    /// The same with another sidecar kernel.
    #[track_caller]
    pub fn with_guest_beside(
        sidecar: &[u8],
        kernel: &[u8],
        initrd: Option<&[u8]>,
        command_line: &str,
    ) -> Self {
        let guest = Guest {
            initrd: initrd.is_some(),
            command_line: command_line.to_owned(),
        };
        let manifest = Manifest::parse(GUEST_MANIFEST, Path::new("manifest with a guest"))
            .and_then(|manifest| manifest.with_guest(guest))
            .unwrap_or_else(|error| panic!("{error}"));
        Self::build_with(&manifest, Some(GuestFiles { kernel, initrd }), sidecar)
    }

    /// The release image with a stock kernel and the guest's own initrd. `suite` is
    /// Debian's name of a suite.
    #[track_caller]
    pub fn with_debian_guest(suite: &str, command_line: &str) -> Self {
        let artifacts = artifacts();
        let initrd = read(&artifacts.guest_initrd);
        Self::with_guest(&artifacts.guest_kernel(suite), Some(&initrd), command_line)
    }

    /// An image that has no paravisor.
    #[track_caller]
    pub fn without_paravisor(guest: &LinuxDirect<'_>) -> Self {
        match guest.build() {
            Ok(bytes) => Self { bytes },
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn build_with(manifest: &Manifest, guest: Option<GuestFiles<'_>>, sidecar: &[u8]) -> Self {
        let artifacts = artifacts();
        let image = igvm_builder::build(
            manifest,
            &Resources {
                kernel: &read(&artifacts.vmlinux),
                shim: &read(&artifacts.openhcl_boot),
                initrd: &read(&artifacts.initrd),
                sidecar: manifest.sidecar.then_some(sidecar),
                guest,
            },
        );
        match image {
            Ok(image) => Self { bytes: image.bytes },
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads a valid file. Panics if it is none.
    pub fn read(path: &Path) -> Self {
        let bytes =
            std::fs::read(path).unwrap_or_else(|error| panic!("image {}: {error}", path.display()));
        let image = Self { bytes };
        // Walks all headers, so that later steps can rely on them.
        assert!(
            image
                .find(IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA, 0)
                .is_some(),
            "image {}: no page data",
            path.display()
        );
        image
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Cuts the file after so many bytes.
    pub fn truncate(mut self, length: usize) -> Self {
        self.bytes.truncate(length);
        self
    }

    /// Flips one bit of one byte and leaves the checksum as it is.
    pub fn flip_bit(mut self, offset: usize, bit: u8) -> Self {
        self.bytes[offset] ^= 1 << bit;
        self
    }

    /// Changes the fixed header and puts the checksum right.
    pub fn with_fixed_header(mut self, change: impl FnOnce(&mut IGVM_FIXED_HEADER)) -> Self {
        let mut header = self.fixed_header();
        change(&mut header);
        self.bytes[..size_of::<IGVM_FIXED_HEADER>()].copy_from_slice(header.as_bytes());
        self.seal()
    }

    /// Changes the `nth` header of a type and puts the checksum right. Panics if there is
    /// none.
    pub fn with_header<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
        mut self,
        kind: IgvmVariableHeaderType,
        nth: usize,
        change: impl FnOnce(&mut T),
    ) -> Self {
        let payload = self
            .find(kind, nth)
            .unwrap_or_else(|| panic!("the image has no header {nth} of type {kind:?}"));
        let payload = &mut self.bytes[payload][..size_of::<T>()];
        let mut header = T::read_from_bytes(payload).expect("the slice has the type's size");
        change(&mut header);
        payload.copy_from_slice(header.as_bytes());
        self.seal()
    }

    /// Changes the type of the `nth` header of a type and puts the checksum right.
    pub fn with_header_type(mut self, kind: IgvmVariableHeaderType, nth: usize, new: u32) -> Self {
        let payload = self
            .find(kind, nth)
            .unwrap_or_else(|| panic!("the image has no header {nth} of type {kind:?}"));
        let start = payload.start - size_of::<IGVM_VHS_VARIABLE_HEADER>();
        self.bytes[start..start + 4].copy_from_slice(&new.to_le_bytes());
        self.seal()
    }

    /// The page data header number `nth`.
    pub fn page(&self, nth: usize) -> Option<IGVM_VHS_PAGE_DATA> {
        let payload = self.find(IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA, nth)?;
        IGVM_VHS_PAGE_DATA::read_from_prefix(&self.bytes[payload])
            .ok()
            .map(|(header, _)| header)
    }

    /// Flips a bit in the data of the page whose content is `content`: not in any header,
    /// so the file stays valid. Panics unless exactly that content is there.
    pub fn flip_bit_in_page(mut self, content: &[u8]) -> Self {
        let data = (0..)
            .map_while(|nth| self.page(nth))
            .map(|page| page.file_offset as usize)
            .filter(|&offset| offset != 0)
            .find(|&offset| self.bytes[offset..].starts_with(content))
            .expect("the image has a page with the content");
        self.bytes[data + content.len() / 2] ^= 1;
        self
    }

    /// Where the fixed and variable headers are.
    pub fn headers(&self) -> Range<usize> {
        let header = self.fixed_header();
        let start = header.variable_header_offset as usize;
        start..start + header.variable_header_size as usize
    }

    fn fixed_header(&self) -> IGVM_FIXED_HEADER {
        IGVM_FIXED_HEADER::read_from_prefix(&self.bytes)
            .expect("an IGVM file is longer than its fixed header")
            .0
    }

    /// Where the payload of the `nth` header of a type is.
    fn find(&self, kind: IgvmVariableHeaderType, nth: usize) -> Option<Range<usize>> {
        let headers = self.headers();
        let mut at = headers.start;
        let mut left = nth;
        while at < headers.end {
            let (header, _) =
                IGVM_VHS_VARIABLE_HEADER::read_from_prefix(&self.bytes[at..headers.end])
                    .expect("variable headers fill their space");
            let payload = at + size_of::<IGVM_VHS_VARIABLE_HEADER>();
            let end = payload + header.length as usize;
            if header.typ == kind {
                if left == 0 {
                    return Some(payload..end);
                }
                left -= 1;
            }
            at = end.next_multiple_of(HEADER_ALIGNMENT);
        }
        None
    }

    fn seal(mut self) -> Self {
        let field = offset_of!(IGVM_FIXED_HEADER, checksum)..size_of::<IGVM_FIXED_HEADER>();
        // A file whose header lies about its size cannot be sealed and needs no seal.
        let end = self.headers().end.min(self.bytes.len());
        self.bytes[field.clone()].fill(0);
        let checksum = crc32fast::hash(&self.bytes[..end]);
        self.bytes[field].copy_from_slice(&checksum.to_le_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use igvm_defs::IGVM_FORMAT_VERSION_1;
    use igvm_defs::IGVM_MAGIC_VALUE;
    use igvm_defs::IGVM_VHS_REQUIRED_MEMORY;
    use igvm_defs::IgvmPageDataFlags;
    use igvm_defs::IgvmPageDataType;
    use igvm_defs::RequiredMemoryFlags;

    /// A file with one required memory and two pages.
    fn image() -> Image {
        let mut headers = Vec::new();
        let mut header = |typ, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap();
            headers.extend_from_slice(IGVM_VHS_VARIABLE_HEADER { typ, length }.as_bytes());
            headers.extend_from_slice(payload);
            headers.resize(headers.len().next_multiple_of(HEADER_ALIGNMENT), 0);
        };
        header(
            IgvmVariableHeaderType::IGVM_VHT_REQUIRED_MEMORY,
            IGVM_VHS_REQUIRED_MEMORY {
                gpa: 0x1000,
                compatibility_mask: 1,
                number_of_bytes: 0x2000,
                flags: RequiredMemoryFlags::new(),
                reserved: 0,
            }
            .as_bytes(),
        );
        let pages = 4096..;
        for (gpa, file_offset) in [(0x1000, 0), (0x2000, pages.start)] {
            header(
                IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA,
                IGVM_VHS_PAGE_DATA {
                    gpa,
                    compatibility_mask: 1,
                    file_offset,
                    flags: IgvmPageDataFlags::new(),
                    data_type: IgvmPageDataType::NORMAL,
                    reserved: 0,
                }
                .as_bytes(),
            );
        }
        let fixed = IGVM_FIXED_HEADER {
            magic: IGVM_MAGIC_VALUE,
            format_version: IGVM_FORMAT_VERSION_1,
            variable_header_offset: 24,
            variable_header_size: u32::try_from(headers.len()).unwrap(),
            total_file_size: 8192,
            checksum: 0,
        };
        let mut bytes = fixed.as_bytes().to_vec();
        bytes.extend(headers);
        bytes.resize(4096, 0);
        bytes.extend([0xa5; 4096]);
        Image { bytes }.seal()
    }

    #[test]
    fn a_changed_header_is_found_again_and_sealed() {
        let before = image();
        let after = before.clone().with_header::<IGVM_VHS_PAGE_DATA>(
            IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA,
            1,
            |page| page.gpa = 0x1000,
        );
        assert_eq!(before.page(1).unwrap().gpa, 0x2000);
        assert_eq!(after.page(1).unwrap().gpa, 0x1000);
        assert_eq!(after.page(0), before.page(0));
        assert_eq!(after.page(2), None);
        assert_ne!(
            after.fixed_header().checksum,
            before.fixed_header().checksum
        );
        assert_eq!(after.clone().seal().bytes, after.bytes);
    }

    #[test]
    fn page_data_changes_without_the_checksum() {
        let before = image();
        let after = before.clone().flip_bit_in_page(&[0xa5; 4096]);
        assert_eq!(
            after.fixed_header().checksum,
            before.fixed_header().checksum
        );
        assert_ne!(after.bytes, before.bytes);
    }

    #[test]
    #[should_panic(expected = "page with the content")]
    fn a_page_that_is_not_there_is_not_changed() {
        let _ = image().flip_bit_in_page(&[0x5a; 4096]);
    }
}
