//! The x86 zero page and what hangs on it.
//!
//! Addresses of this data are its GPAs, because the shim runs identity mapped; the data
//! must stay where it is until the kernel has read it, so its owner leaks it before the
//! jump.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use loader_defs::linux::{
    BootParams, E820_MAX_ENTRIES_ZEROPAGE, E820Entry, SETUP_DTB, SETUP_E820_EXT, SetupData,
};
use minimal_rt::Page;
use thiserror::Error;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::boot::Handoff;

/// Entries behind those of the zero page.
pub const MAX_E820_EXT_ENTRIES: usize = 512;
/// Bytes of the node with the device tree, header included.
pub const MAX_SETUP_DTB: usize = 256 << 10;

/// Why the kernel cannot be given its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BootParamsError {
    /// Too many ranges.
    #[error("memory map has {found} entries, expected at most {max}", max = E820_MAX_ENTRIES_ZEROPAGE + MAX_E820_EXT_ENTRIES)]
    MemoryMap {
        /// How many.
        found: usize,
    },
    /// The device tree is too large.
    #[error("device tree for the kernel has {found} bytes, expected at most {max}", max = MAX_SETUP_DTB - size_of::<SetupData>())]
    DeviceTree {
        /// Its size.
        found: usize,
    },
}

/// All pages that the kernel reads at its start.
#[derive(Debug)]
pub struct BootParamsPages {
    boot_params: Vec<Page>,
    // Referred to by address only.
    _command_line: Box<[u8]>,
    _device_tree: Vec<Page>,
    _e820_ext: Vec<Page>,
}

impl BootParamsPages {
    /// Builds them.
    pub fn new(handoff: &Handoff) -> Result<Self, BootParamsError> {
        let map = &handoff.e820;
        let mut params = BootParams::new_zeroed();
        let rest = params.set_memory_map(map);
        if rest.len() > MAX_E820_EXT_ENTRIES {
            return Err(BootParamsError::MemoryMap { found: map.len() });
        }
        if handoff.device_tree.len() + size_of::<SetupData>() > MAX_SETUP_DTB {
            return Err(BootParamsError::DeviceTree {
                found: handoff.device_tree.len(),
            });
        }
        let e820_ext = if rest.is_empty() {
            Vec::new()
        } else {
            setup_data(0, SETUP_E820_EXT, rest.as_bytes())
        };
        let next = if rest.is_empty() { 0 } else { gpa(&e820_ext) };
        let device_tree = setup_data(next, SETUP_DTB, &handoff.device_tree);
        let command_line = zero_terminated(&handoff.command_line);

        let mut pages = vec![Page::ZERO];
        params.set_loader();
        params.set_command_line(gpa(&command_line));
        params.hdr.cmdline_size = handoff.command_line.len() as u32;
        params.set_initrd(handoff.initrd.start(), handoff.initrd.len());
        params.hdr.setup_data = gpa(&device_tree);
        pages.as_mut_bytes().copy_from_slice(params.as_bytes());
        Ok(Self {
            boot_params: pages,
            _command_line: command_line,
            _device_tree: device_tree,
            _e820_ext: e820_ext,
        })
    }

    /// Where the zero page is.
    pub fn boot_params_gpa(&self) -> u64 {
        gpa(&self.boot_params)
    }

    /// The zero page.
    pub fn boot_params(&self) -> BootParams {
        // The vector is exactly one page, so this never falls back.
        BootParams::read_from_bytes(self.boot_params.as_bytes())
            .unwrap_or_else(|_| BootParams::new_zeroed())
    }
}

// A node of the list, page aligned: the kernel maps the tree page by page.
fn setup_data(next: u64, typ: u32, payload: &[u8]) -> Vec<Page> {
    let header = SetupData {
        next,
        typ,
        len: payload.len() as u32,
    };
    let size = size_of::<SetupData>() + payload.len();
    let mut pages = vec![Page::ZERO; size.div_ceil(size_of::<Page>())];
    let (head, rest) = pages.as_mut_bytes().split_at_mut(size_of::<SetupData>());
    head.copy_from_slice(header.as_bytes());
    rest[..payload.len()].copy_from_slice(payload);
    pages
}

fn zero_terminated(text: &String) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes.into_boxed_slice()
}

// The kernel gets the address, so the memory must be taken to be used from outside.
fn gpa<T>(memory: &[T]) -> u64 {
    memory.as_ptr().expose_provenance() as u64
}

const _: () = assert!(size_of::<BootParams>() == size_of::<Page>());

/// Size of an entry, as the extension stores them.
const _: () = assert!(size_of::<E820Entry>() == 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::GpaRange;
    use loader_defs::linux::SETUP_HEADER_MAGIC;

    fn handoff(entries: usize, tree: usize) -> Handoff {
        Handoff {
            kernel_entry: 0x100_0000,
            initrd: GpaRange::new(0x1_2345_6000, 0x10_0001).unwrap(),
            command_line: "a=b".into(),
            device_tree: vec![0xd0; tree],
            e820: (0..entries as u64)
                .map(|i| E820Entry {
                    addr: i << 20,
                    size: 1 << 20,
                    typ: 1,
                })
                .collect(),
        }
    }

    // The memory is our own, so the addresses in the zero page lead to fields of `pages`.
    fn node(pages: &[Page]) -> (u64, u32, &[u8]) {
        let (header, rest) = SetupData::read_from_prefix(pages.as_bytes()).unwrap();
        (header.next, header.typ, &rest[..header.len as usize])
    }

    #[test]
    fn the_zero_page_leads_to_everything() {
        let pages = BootParamsPages::new(&handoff(3, 1000)).unwrap();
        let params = pages.boot_params();
        assert_eq!(params.e820_entries, 3);
        assert_eq!({ params.e820_table[2].addr }, 2 << 20);
        assert_eq!({ params.hdr.header }, SETUP_HEADER_MAGIC);
        assert_eq!({ params.hdr.type_of_loader }, 0xff);
        assert_eq!({ params.hdr.hardware_subarch }, 0);
        assert_eq!({ params.hdr.ramdisk_image }, 0x2345_6000);
        assert_eq!({ params.ext_ramdisk_image }, 1);
        assert_eq!({ params.hdr.ramdisk_size }, 0x10_0001);
        assert_eq!({ params.hdr.setup_data }, gpa(&pages._device_tree));
        assert_eq!(pages.boot_params_gpa() % 4096, 0);
        let (next, typ, payload) = node(&pages._device_tree);
        assert_eq!((next, typ, payload.len()), (0, SETUP_DTB, 1000));
        assert_eq!(&*pages._command_line, b"a=b\0");
        let line = u64::from(params.hdr.cmd_line_ptr) | u64::from(params.ext_cmd_line_ptr) << 32;
        assert_eq!(line, gpa(&pages._command_line));
    }

    #[test]
    fn a_long_memory_map_continues_in_an_extension() {
        let pages = BootParamsPages::new(&handoff(130, 10)).unwrap();
        assert_eq!(pages.boot_params().e820_entries, 128);
        let (next, _, _) = node(&pages._device_tree);
        assert_eq!(next, gpa(&pages._e820_ext));
        let (next, typ, payload) = node(&pages._e820_ext);
        assert_eq!((next, typ, payload.len()), (0, SETUP_E820_EXT, 40));
        assert_eq!(payload[..8], (128u64 << 20).to_le_bytes());
    }

    #[test]
    fn what_the_kernel_cannot_hold_is_refused() {
        assert!(BootParamsPages::new(&handoff(640, 10)).is_ok());
        assert_eq!(
            BootParamsPages::new(&handoff(641, 10)).unwrap_err(),
            BootParamsError::MemoryMap { found: 641 }
        );
        assert!(BootParamsPages::new(&handoff(1, MAX_SETUP_DTB - 16)).is_ok());
        assert_eq!(
            BootParamsPages::new(&handoff(1, MAX_SETUP_DTB)).unwrap_err(),
            BootParamsError::DeviceTree {
                found: MAX_SETUP_DTB
            }
        );
    }
}
