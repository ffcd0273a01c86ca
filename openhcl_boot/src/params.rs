//! Where the parts of the image are: `ShimParamsRaw`, checked and made absolute.

use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::{
    COMMAND_LINE_CAPACITY, PARAVISOR_CONFIG_DEVICE_TREE_PAGE_INDEX,
    PARAVISOR_CONFIG_DEVICE_TREE_SIZE_PAGES, PARAVISOR_MEASURED_IMPORTED_REGIONS_PAGE_INDEX,
    PARAVISOR_PARAMETER_REGION_PAGES, PARAVISOR_PERSISTED_STATE_PAGES,
};
use loader_defs::shim::{ShimParamsRaw, SupportedIsolationType};
use thiserror::Error;

use crate::range::GpaRange;

/// What is wrong with the parameters. They are part of the image, so this is a mistake
/// of the packer; it is told all the same, before any of them is used as an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParamsError {
    /// An offset leads out of the address space.
    #[error("shim parameter {field}: offset {offset:#x}, size {size:#x} leaves the address space")]
    Address {
        /// Which part.
        field: &'static str,
        /// Its offset.
        offset: i64,
        /// Its size.
        size: u64,
    },
    /// A part lies outside the memory that the image was built for.
    #[error("shim parameter {field}: {found}, expected inside {expected}")]
    Outside {
        /// Which part.
        field: &'static str,
        /// Where it is.
        found: GpaRange,
        /// Where it may be.
        expected: GpaRange,
    },
    /// A part begins or ends inside a page.
    #[error("shim parameter {field}: {found}, expected page boundaries")]
    Alignment {
        /// Which part.
        field: &'static str,
        /// Where it is.
        found: GpaRange,
    },
    /// A part is too small for what is in it.
    #[error("shim parameter {field}: {found:#x} bytes, expected at least {expected:#x}")]
    Size {
        /// Which part.
        field: &'static str,
        /// Its size.
        found: u64,
        /// What it must hold.
        expected: u64,
    },
    /// An isolation technology for which this shim has no code.
    #[error("image is built for isolation type {found:?}, expected VBS or none")]
    Isolation {
        /// What it was built for.
        found: SupportedIsolationType,
    },
}

/// The parts of the image, as GPAs inside `memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShimParams {
    /// The VTL2 memory that the image was built for; all of it is mapped.
    pub memory: GpaRange,
    /// What of it the image has populated.
    pub used: GpaRange,
    /// The shim's own code, if it is known: whole pages.
    pub code: GpaRange,
    /// Entry point of the kernel.
    pub kernel_entry: u64,
    /// The measured command line, one page.
    pub command_line: GpaRange,
    /// The initrd, to the byte.
    pub initrd: GpaRange,
    /// Its CRC-32.
    pub initrd_crc: u32,
    /// All parameters and the measured configuration.
    pub parameter_region: GpaRange,
    /// The host's device tree in it.
    pub device_tree: GpaRange,
    /// The list of imported regions in it.
    pub imported_regions: GpaRange,
    /// Pages for isolated platforms.
    pub reserved_region: GpaRange,
    /// The log.
    pub log_buffer: GpaRange,
    /// State that survives servicing: header page and payload.
    pub persisted_state: GpaRange,
    /// Sidecar image; empty if there is none.
    pub sidecar: GpaRange,
    /// Its entry point; 0 if there is none.
    pub sidecar_entry: u64,
}

impl ShimParams {
    /// Checks everything that the shim will use as an address.
    pub fn new(raw: &ShimParamsRaw, image_base: u64) -> Result<Self, ParamsError> {
        let isolation = SupportedIsolationType(raw.supported_isolation_type);
        if isolation != SupportedIsolationType::VBS {
            return Err(ParamsError::Isolation { found: isolation });
        }
        let at = |field, offset: i64, size: u64| {
            image_base
                .checked_add_signed(offset)
                .and_then(|start| GpaRange::new(start, size))
                .ok_or(ParamsError::Address {
                    field,
                    offset,
                    size,
                })
        };
        let memory = at("memory", raw.memory_start_offset, raw.memory_size)?;
        aligned("memory", memory)?;
        let start = at("used_start", raw.used_start, 0)?.start();
        let end = at("used_end", raw.used_end, 0)?.start();
        let used = GpaRange::from_bounds(start, end).ok_or(ParamsError::Size {
            field: "used",
            found: 0,
            expected: PAGE_SIZE,
        })?;
        inside("used", used, memory)?;
        aligned("used", used)?;

        let part = |field, offset, size: u64, least: u64, limits: GpaRange| {
            let range = at(field, offset, size)?;
            if size < least {
                return Err(ParamsError::Size {
                    field,
                    found: size,
                    expected: least,
                });
            }
            inside(field, range, limits)?;
            Ok(range)
        };
        let pages = |field, offset, size, least, limits| {
            part(field, offset, size, least, limits).and_then(|r| aligned(field, r))
        };

        let parameter_region = pages(
            "parameter_region",
            raw.parameter_region_offset,
            raw.parameter_region_size,
            PARAVISOR_PARAMETER_REGION_PAGES * PAGE_SIZE,
            used,
        )?;
        let kernel_entry = part("kernel_entry", raw.kernel_entry_offset, 1, 1, used)?.start();
        let initrd = part("initrd", raw.initrd_offset, raw.initrd_size, 0, used)?;
        if !initrd.start().is_multiple_of(PAGE_SIZE) {
            return Err(ParamsError::Alignment {
                field: "initrd",
                found: initrd,
            });
        }
        let persisted = pages(
            "persisted_state_region",
            raw.persisted_state_region_offset,
            raw.persisted_state_region_size,
            PARAVISOR_PERSISTED_STATE_PAGES * PAGE_SIZE,
            memory,
        )?;
        let (sidecar, sidecar_entry) = match raw.sidecar_size {
            0 => (GpaRange::EMPTY, 0),
            size => {
                let image = pages("sidecar", raw.sidecar_offset, size, 1, used)?;
                let entry = part("sidecar_entry", raw.sidecar_entry_offset, 1, 1, image)?;
                (image, entry.start())
            }
        };
        Ok(Self {
            memory,
            used,
            // The image's own symbols say where that is.
            code: GpaRange::EMPTY,
            kernel_entry,
            command_line: pages(
                "cmdline",
                raw.cmdline_offset,
                PAGE_SIZE,
                COMMAND_LINE_CAPACITY as u64,
                used,
            )?,
            initrd,
            initrd_crc: raw.initrd_crc,
            parameter_region,
            device_tree: sub_pages(
                parameter_region,
                PARAVISOR_CONFIG_DEVICE_TREE_PAGE_INDEX,
                PARAVISOR_CONFIG_DEVICE_TREE_SIZE_PAGES,
            ),
            imported_regions: sub_pages(
                parameter_region,
                PARAVISOR_MEASURED_IMPORTED_REGIONS_PAGE_INDEX,
                1,
            ),
            reserved_region: pages(
                "vtl2_reserved_region",
                raw.vtl2_reserved_region_offset,
                raw.vtl2_reserved_region_size,
                0,
                used,
            )?,
            log_buffer: pages(
                "log_buffer",
                raw.log_buffer_start,
                raw.log_buffer_size,
                PAGE_SIZE,
                used,
            )?,
            persisted_state: sub_pages(persisted, 0, PARAVISOR_PERSISTED_STATE_PAGES),
            sidecar,
            sidecar_entry,
        })
    }
}

fn inside(field: &'static str, found: GpaRange, expected: GpaRange) -> Result<(), ParamsError> {
    if expected.contains(&found) {
        Ok(())
    } else {
        Err(ParamsError::Outside {
            field,
            found,
            expected,
        })
    }
}

fn aligned(field: &'static str, found: GpaRange) -> Result<GpaRange, ParamsError> {
    if found.is_page_aligned() {
        Ok(found)
    } else {
        Err(ParamsError::Alignment { field, found })
    }
}

// A run of pages of a region that is known to be large enough.
fn sub_pages(region: GpaRange, first: u64, count: u64) -> GpaRange {
    let start = region.start() + first * PAGE_SIZE;
    GpaRange::new(start, count * PAGE_SIZE).unwrap_or(GpaRange::EMPTY)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::{FromBytes, IntoBytes};

    pub(crate) const BASE: u64 = 0x0880_0000;

    /// A small image at 128 MiB, with the shim 8 MiB into it.
    pub(crate) fn raw() -> ShimParamsRaw {
        let at = |gpa: u64| gpa as i64 - BASE as i64;
        ShimParamsRaw {
            kernel_entry_offset: at(0x0820_0000),
            cmdline_offset: at(0x08a0_1000),
            initrd_offset: at(0x0890_0000),
            initrd_size: 0x1_2345,
            initrd_crc: 0,
            supported_isolation_type: 1,
            memory_start_offset: at(0x0800_0000),
            memory_size: 64 << 20,
            parameter_region_offset: at(0x08a1_0000),
            parameter_region_size: 362 * 4096,
            vtl2_reserved_region_offset: at(0x08a0_2000),
            vtl2_reserved_region_size: 4 * 4096,
            sidecar_offset: 0,
            sidecar_size: 0,
            sidecar_entry_offset: 0,
            used_start: at(0x0820_0000),
            used_end: at(0x0900_0000),
            bounce_buffer_start: 0,
            bounce_buffer_size: 0,
            log_buffer_start: at(0x08c0_0000),
            log_buffer_size: 2 * 4096,
            heap_start_offset: at(0x08c1_0000),
            heap_size: 16 * 4096,
            persisted_state_region_offset: at(0x0800_0000),
            persisted_state_region_size: 2 << 20,
        }
    }

    #[test]
    fn offsets_become_addresses() {
        let params = ShimParams::new(&raw(), BASE).unwrap();
        assert_eq!(params.memory, GpaRange::new(128 << 20, 64 << 20).unwrap());
        assert_eq!(params.kernel_entry, 0x0820_0000);
        assert_eq!(params.device_tree.start(), 0x08a1_0000 + 40 * 4096);
        assert_eq!(params.device_tree.len(), 256 << 10);
        assert_eq!(params.persisted_state.len(), 80 << 10);
        assert!(params.sidecar.is_empty());
    }

    /// The image has a sidecar kernel of 128 KiB.
    pub(crate) fn raw_with_sidecar() -> ShimParamsRaw {
        let at = |gpa: u64| gpa as i64 - BASE as i64;
        ShimParamsRaw {
            sidecar_offset: at(0x0860_0000),
            sidecar_size: 128 << 10,
            sidecar_entry_offset: at(0x0860_0120),
            ..raw()
        }
    }

    #[test]
    fn the_entry_of_the_sidecar_is_inside_of_it() {
        let raw = raw_with_sidecar();
        let params = ShimParams::new(&raw, BASE).unwrap();
        assert_eq!(params.sidecar.len(), 128 << 10);
        assert_eq!(params.sidecar_entry, 0x0860_0120);
        for entry in [raw.sidecar_offset - 1, raw.sidecar_offset + (128 << 10)] {
            let wrong = ShimParamsRaw {
                sidecar_entry_offset: entry,
                ..raw
            };
            let error = ShimParams::new(&wrong, BASE).unwrap_err();
            assert!(matches!(
                error,
                ParamsError::Outside {
                    field: "sidecar_entry",
                    ..
                }
            ));
        }
    }

    #[test]
    fn a_relocated_image_moves_as_a_whole() {
        let moved = ShimParams::new(&raw(), BASE + (1 << 32)).unwrap();
        assert_eq!(moved.memory.start(), (128 << 20) + (1 << 32));
    }

    #[test]
    fn parts_outside_the_image_are_named() {
        let mut wrong = raw();
        wrong.initrd_size = 1 << 30;
        let error = ShimParams::new(&wrong, BASE).unwrap_err();
        assert!(matches!(
            error,
            ParamsError::Outside {
                field: "initrd",
                ..
            }
        ));

        let mut wrong = raw();
        wrong.log_buffer_start = i64::MAX;
        let error = ShimParams::new(&wrong, u64::MAX).unwrap_err();
        assert!(matches!(error, ParamsError::Address { .. }));

        let mut wrong = raw();
        wrong.parameter_region_size = 4096;
        let error = ShimParams::new(&wrong, BASE).unwrap_err();
        assert!(matches!(
            error,
            ParamsError::Size {
                field: "parameter_region",
                found: 4096,
                ..
            }
        ));

        let mut wrong = raw();
        wrong.cmdline_offset += 8;
        let error = ShimParams::new(&wrong, BASE).unwrap_err();
        assert!(matches!(
            error,
            ParamsError::Alignment {
                field: "cmdline",
                ..
            }
        ));

        let mut wrong = raw();
        wrong.supported_isolation_type = 2;
        assert_eq!(
            ShimParams::new(&wrong, BASE),
            Err(ParamsError::Isolation {
                found: SupportedIsolationType::SNP
            })
        );
    }

    proptest! {
        #[test]
        fn any_parameters_give_ranges_inside_the_image_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), size_of::<ShimParamsRaw>()),
            changes in proptest::collection::vec((0usize..size_of::<ShimParamsRaw>(), any::<u8>()), 0..4),
            base in any::<u64>(),
        ) {
            let random = ShimParamsRaw::read_from_bytes(&bytes).unwrap();
            let _ = ShimParams::new(&random, base);

            let mut mutated = raw();
            for (offset, value) in changes {
                mutated.as_mut_bytes()[offset] = value;
            }
            if let Ok(params) = ShimParams::new(&mutated, BASE) {
                for range in [params.initrd, params.device_tree, params.log_buffer, params.persisted_state] {
                    prop_assert!(params.memory.contains(&range));
                }
            }
        }
    }
}
