//! The list of regions that the launch has put into memory, as measured.

use alloc::vec::Vec;

use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::{ImportedRegionDescriptor, ImportedRegionsPageHeader};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::range::GpaRange;

/// A region, and whether the platform has accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportedRegion {
    /// Where.
    pub range: GpaRange,
    /// The pages are already private to the VM.
    pub accepted: bool,
}

/// Reads the page. `own` is where the page is now: the list holds addresses as built and
/// names its own page, so if `own` is not in it, the image was moved and the list does
/// not describe this memory (`None`). Descriptors that are no ranges end the list.
pub fn read(page: &[u8], own: GpaRange) -> Option<Vec<ImportedRegion>> {
    let mut rest = page.get(size_of::<ImportedRegionsPageHeader>()..)?;
    let mut regions = Vec::new();
    while let Some(descriptor) = next::<ImportedRegionDescriptor>(&mut rest) {
        if descriptor.page_count == 0 {
            break;
        }
        let start = descriptor.base_page_number.checked_mul(PAGE_SIZE)?;
        let length = descriptor.page_count.checked_mul(PAGE_SIZE)?;
        regions.push(ImportedRegion {
            range: GpaRange::new(start, length)?,
            accepted: descriptor.accepted != 0,
        });
    }
    regions
        .iter()
        .any(|region| region.range.contains(&own))
        .then_some(regions)
}

fn next<T: FromBytes + KnownLayout + Immutable>(bytes: &mut &[u8]) -> Option<T> {
    let (value, rest) = T::read_from_prefix(bytes).ok()?;
    *bytes = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn page(regions: &[(u64, u64, u8)]) -> Vec<u8> {
        let mut page = [0; 48].to_vec();
        for &(base_page_number, page_count, accepted) in regions {
            let descriptor = ImportedRegionDescriptor {
                base_page_number,
                page_count,
                accepted,
                padding: [0; 7],
            };
            page.extend_from_slice(descriptor.as_bytes());
        }
        page.resize(4096, 0);
        page
    }

    fn range(first: u64, count: u64) -> GpaRange {
        GpaRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }

    #[test]
    fn regions_are_read_up_to_the_end_mark() {
        let page = page(&[(0, 1, 1), (100, 50, 0), (0, 0, 0), (7, 7, 1)]);
        let regions = read(&page, range(120, 1)).unwrap();
        assert_eq!(regions.len(), 2);
        assert_eq!(regions[1].range, range(100, 50));
        assert!(regions[0].accepted && !regions[1].accepted);
    }

    #[test]
    fn the_list_of_a_moved_image_is_not_used() {
        assert_eq!(read(&page(&[(100, 50, 1)]), range(1120, 1)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes, range(0, 1));
        }
    }
}
