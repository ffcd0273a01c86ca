//! The built kernel must be a file that the image builder and the shim can place.

use object::Endianness;
use object::elf;
use object::read::elf::FileHeader;
use object::read::elf::ProgramHeader;

/// Why a `vmlinux` cannot go into an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VmlinuxError {
    /// The file is not an ELF file that can be read.
    #[error("vmlinux: not a readable 64-bit ELF file: {0}")]
    NotElf(String),
    /// Too large.
    #[error("vmlinux: {found} bytes, expected at most {expected}")]
    TooLarge {
        /// The size of the file.
        found: u64,
        /// The bound from `kernel.toml`.
        expected: u64,
    },
    /// Another machine.
    #[error("vmlinux: ELF machine {found}, expected {expected}")]
    Machine {
        /// `e_machine`.
        found: u16,
        /// What this architecture has.
        expected: u16,
    },
    /// The entry point is an address that no segment loads.
    #[error("vmlinux: entry {0:#x} lies in no executable PT_LOAD segment by physical address")]
    Entry(u64),
    /// A segment must start on a 2 MiB boundary so that the kernel can be moved by that.
    #[error("vmlinux: the lowest segment starts at {0:#x}, expected a multiple of 2 MiB")]
    Alignment(u64),
    /// Symbols or debug data are still there.
    #[error("vmlinux: section {0} is still there, expected a stripped file")]
    NotStripped(String),
}

const ALIGNMENT: u64 = 2 << 20;

/// Checks that `bytes` is a stripped x86-64 `vmlinux` of at most `max_bytes` whose entry
/// point and segments are usable by physical address.
pub fn check_vmlinux(bytes: &[u8], max_bytes: u64) -> Result<(), VmlinuxError> {
    let not_elf = |e: object::Error| VmlinuxError::NotElf(e.to_string());
    let found = bytes.len() as u64;
    if found > max_bytes {
        return Err(VmlinuxError::TooLarge {
            found,
            expected: max_bytes,
        });
    }
    let header = elf::FileHeader64::<Endianness>::parse(bytes).map_err(not_elf)?;
    let endian = header.endian().map_err(not_elf)?;
    let machine = header.e_machine(endian);
    if machine != elf::EM_X86_64 {
        return Err(VmlinuxError::Machine {
            found: machine.0,
            expected: elf::EM_X86_64.0,
        });
    }
    let segments = header.program_headers(endian, bytes).map_err(not_elf)?;
    let loads = || segments.iter().filter(|s| s.p_type(endian) == elf::PT_LOAD);
    let entry = header.e_entry(endian);
    let holds_entry = |s: &&elf::ProgramHeader64<Endianness>| {
        let start = s.p_paddr(endian);
        start
            .checked_add(s.p_filesz(endian))
            .is_some_and(|end| (start..end).contains(&entry))
    };
    loads()
        .find(holds_entry)
        .ok_or(VmlinuxError::Entry(entry))?;
    let lowest = loads().map(|s| s.p_paddr(endian)).min().unwrap_or(0);
    if !lowest.is_multiple_of(ALIGNMENT) {
        return Err(VmlinuxError::Alignment(lowest));
    }
    let sections = header.sections(endian, bytes).map_err(not_elf)?;
    for section in sections.iter() {
        let name = sections.section_name(endian, section).map_err(not_elf)?;
        if name == b".symtab" || name.starts_with(b".debug_") || name.starts_with(b".rela.") {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(VmlinuxError::NotStripped(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A 64-bit x86 ELF header with one PT_LOAD of 0x100 bytes at `paddr`.
    fn elf_file(machine: u16, entry: u64, paddr: u64) -> Vec<u8> {
        let mut file = vec![0; 0x200];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        let segment = &mut file[64..120];
        segment[..4].copy_from_slice(&1u32.to_le_bytes());
        segment[8..16].copy_from_slice(&0x100u64.to_le_bytes());
        segment[24..32].copy_from_slice(&paddr.to_le_bytes());
        segment[32..40].copy_from_slice(&0x100u64.to_le_bytes());
        segment[40..48].copy_from_slice(&0x100u64.to_le_bytes());
        file
    }

    #[test]
    fn a_file_with_its_entry_in_a_segment_is_accepted() {
        let file = elf_file(62, 0x100_0010, 0x100_0000);
        assert_eq!(check_vmlinux(&file, 0x200), Ok(()));
    }

    #[test]
    fn a_file_above_the_budget_is_refused() {
        let file = elf_file(62, 0x100_0010, 0x100_0000);
        assert!(matches!(
            check_vmlinux(&file, 0x1ff),
            Err(VmlinuxError::TooLarge {
                found: 0x200,
                expected: 0x1ff
            })
        ));
    }

    #[test]
    fn another_machine_is_refused() {
        let file = elf_file(183, 0x100_0010, 0x100_0000);
        assert!(matches!(
            check_vmlinux(&file, 0x200),
            Err(VmlinuxError::Machine { found: 183, .. })
        ));
    }

    #[test]
    fn an_entry_outside_of_every_segment_is_refused() {
        let file = elf_file(62, 0x100_0100, 0x100_0000);
        assert_eq!(
            check_vmlinux(&file, 0x200),
            Err(VmlinuxError::Entry(0x100_0100))
        );
    }

    #[test]
    fn a_segment_off_the_boundary_is_refused() {
        let file = elf_file(62, 0x100_1010, 0x100_1000);
        assert_eq!(
            check_vmlinux(&file, 0x200),
            Err(VmlinuxError::Alignment(0x100_1000))
        );
    }

    proptest! {
        #[test]
        fn hostile_files_are_refused_not_fatal(
            at in 0usize..0x200,
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut file = elf_file(62, 0x100_0010, 0x100_0000);
            for (offset, byte) in bytes.into_iter().enumerate() {
                if let Some(slot) = file.get_mut(at + offset) {
                    *slot = byte;
                }
            }
            let _ = check_vmlinux(&file, 0x200);
        }
    }
}
