//! Self-relocation of a position-independent ELF image.
//!
//! The image is linked at address 0 and runs where the host has put it. The linker
//! leaves a RELA table in which every entry says "add the load address here"; nothing
//! else is accepted. It runs before anything that has an absolute address in it exists,
//! so it must not use a table, a trait object or a text that could be one.

#![expect(unsafe_code, reason = "patches the running image")]

use core::ptr;

const DT_NULL: u64 = 0;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELAENT: u64 = 9;

const RELA_SIZE: usize = size_of::<Rela>();

/// `R_X86_64_RELATIVE`.
pub const R_X86_64_RELATIVE: u32 = 8;
/// `R_AARCH64_RELATIVE`.
pub const R_AARCH64_RELATIVE: u32 = 1027;

/// The kind of relocation that the running architecture has.
pub const R_RELATIVE: u32 = if cfg!(target_arch = "aarch64") {
    R_AARCH64_RELATIVE
} else {
    R_X86_64_RELATIVE
};

/// `Elf64_Dyn`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Dyn {
    tag: u64,
    value: u64,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Rela {
    offset: u64,
    info: u64,
    addend: u64,
}

/// Why an image cannot be relocated. No text: there is nobody to print it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelocationError {
    /// Entries of another size than `Elf64_Rela`.
    EntrySize,
    /// A table whose size is not a multiple of its entries.
    TableSize,
    /// A relocation that is not relative.
    Kind,
}

/// Adds `base` to every place that the dynamic section lists.
///
/// # Safety
/// `base` must be the address of the image (linked at 0), `dynamic` its dynamic section
/// ended by `DT_NULL`; tables and places must lie in the image, which must be writable;
/// it must run exactly once, before any relocated value is used.
pub unsafe fn relocate(
    base: *mut u8,
    dynamic: *const Dyn,
    kind: u32,
) -> Result<(), RelocationError> {
    let mut table = 0;
    let mut table_size = 0;
    let mut entry_size = RELA_SIZE as u64;
    let mut entry = dynamic;
    loop {
        // SAFETY: the caller promises a section that ends with DT_NULL.
        let Dyn { tag, value } = unsafe { entry.read() };
        match tag {
            DT_NULL => break,
            DT_RELA => table = value,
            DT_RELASZ => table_size = value,
            DT_RELAENT => entry_size = value,
            _ => {}
        }
        // SAFETY: DT_NULL has not been reached, so another entry follows.
        entry = unsafe { entry.add(1) };
    }
    if entry_size != RELA_SIZE as u64 {
        return Err(RelocationError::EntrySize);
    }
    if !table_size.is_multiple_of(RELA_SIZE as u64) {
        return Err(RelocationError::TableSize);
    }

    let first = base.wrapping_add(table as usize);
    for index in 0..table_size as usize / RELA_SIZE {
        // SAFETY: the caller promises that the table lies in the image.
        let rela = unsafe {
            ptr::read_unaligned(
                first
                    .wrapping_add(index * RELA_SIZE)
                    .cast_const()
                    .cast::<Rela>(),
            )
        };
        if rela.info as u32 != kind {
            return Err(RelocationError::Kind);
        }
        let place = base.wrapping_add(rela.offset as usize).cast::<u64>();
        let value = (base.addr() as u64).wrapping_add(rela.addend);
        // SAFETY: the caller promises that the place lies in the writable image.
        unsafe { place.write_unaligned(value) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec;
    use std::vec::Vec;

    // Words of an image: a place to patch, the RELA table at byte 16.
    fn image(info: u64) -> Vec<u64> {
        vec![0xdead, 0, 0, info, 0x1234]
    }

    fn dynamic(size: u64, entry: u64) -> [Dyn; 4] {
        [
            (DT_RELA, 16),
            (DT_RELASZ, size),
            (DT_RELAENT, entry),
            (DT_NULL, 0),
        ]
        .map(|(tag, value)| Dyn { tag, value })
    }

    fn run(image: &mut [u64], dynamic: &[Dyn]) -> Result<(), RelocationError> {
        // SAFETY: the table (words 2 to 4) and the place (word 0) lie in the vector; the
        // dynamic section ends with DT_NULL.
        unsafe {
            relocate(
                image.as_mut_ptr().cast(),
                dynamic.as_ptr(),
                R_X86_64_RELATIVE,
            )
        }
    }

    #[test]
    fn relative_places_get_base_plus_addend() {
        let mut image = image(u64::from(R_X86_64_RELATIVE));
        run(&mut image, &dynamic(24, 24)).unwrap();
        assert_eq!(image[0], image.as_ptr().addr() as u64 + 0x1234);
    }

    #[test]
    fn an_image_without_relocations_is_left_alone() {
        let mut image = image(0);
        let end = [Dyn {
            tag: DT_NULL,
            value: 0,
        }];
        run(&mut image, &end).unwrap();
        assert_eq!(image[0], 0xdead);
    }

    #[test]
    fn other_kinds_and_sizes_are_refused() {
        let mut other = image(1);
        assert_eq!(
            run(&mut other, &dynamic(24, 24)),
            Err(RelocationError::Kind)
        );
        assert_eq!(
            run(&mut other, &dynamic(24, 16)),
            Err(RelocationError::EntrySize)
        );
        assert_eq!(
            run(&mut other, &dynamic(25, 24)),
            Err(RelocationError::TableSize)
        );
    }
}
