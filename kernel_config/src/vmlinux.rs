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
    /// Program headers that point outside of the file, or at nothing.
    #[error("vmlinux: program header {0} does not fit the file")]
    ProgramHeader(usize),
}

const ALIGNMENT: u64 = 2 << 20;
const PAGE: usize = 4096;

/// Checks that `bytes` is an x86-64 `vmlinux` of at most `max_bytes` whose entry
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
    Ok(())
}

/// Rewrites a `vmlinux` to what a loader needs: the ELF header, the program headers and
/// the bytes of the segments, one behind the other.
///
/// Symbols, sections and the holes that the linker leaves for 2 MiB pages go; addresses,
/// sizes and alignments in memory stay. (In the file the segments are aligned to pages
/// only: nobody maps a kernel from its file.)
pub fn pack_vmlinux(bytes: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    let not_elf = |e: object::Error| VmlinuxError::NotElf(e.to_string());
    let header = elf::FileHeader64::<Endianness>::parse(bytes).map_err(not_elf)?;
    let endian = header.endian().map_err(not_elf)?;
    let segments = header.program_headers(endian, bytes).map_err(not_elf)?;

    let mut packed_header = *header;
    let headers_at = size_of::<elf::FileHeader64<Endianness>>();
    packed_header.e_phoff.set(endian, headers_at as u64);
    packed_header.e_shoff.set(endian, 0);
    packed_header.e_shnum.set(endian, 0);
    packed_header.e_shstrndx.set(endian, elf::SHN_UNDEF);

    let mut packed_segments = segments.to_vec();
    let mut out = vec![0; headers_at + size_of_val(segments)];
    // What is loaded comes first: notes lie inside of it.
    for (index, segment) in segments.iter().enumerate() {
        if segment.p_type(endian) == elf::PT_LOAD {
            let data = segment
                .data(endian, bytes)
                .map_err(|()| VmlinuxError::ProgramHeader(index))?;
            out.resize(out.len().next_multiple_of(PAGE), 0);
            packed_segments[index]
                .p_offset
                .set(endian, out.len() as u64);
            out.extend_from_slice(data);
        }
    }
    for (index, segment) in segments.iter().enumerate() {
        if segment.p_type(endian) == elf::PT_LOAD || segment.p_filesz(endian) == 0 {
            continue;
        }
        let wanted = segment.p_offset(endian);
        let around = segments.iter().zip(&packed_segments).find(|(old, _)| {
            let start = old.p_offset(endian);
            let end = start.checked_add(old.p_filesz(endian));
            let wanted_end = wanted.checked_add(segment.p_filesz(endian));
            old.p_type(endian) == elf::PT_LOAD
                && start <= wanted
                && end
                    .zip(wanted_end)
                    .is_some_and(|(end, wanted)| wanted <= end)
        });
        let (old, new) = around.ok_or(VmlinuxError::ProgramHeader(index))?;
        let offset = new.p_offset(endian) + (wanted - old.p_offset(endian));
        packed_segments[index].p_offset.set(endian, offset);
    }
    out[..headers_at].copy_from_slice(object::bytes_of(&packed_header));
    let table = object::bytes_of_slice(&packed_segments);
    out[headers_at..headers_at + table.len()].copy_from_slice(table);
    Ok(out)
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

    #[test]
    fn packing_drops_holes_and_keeps_segments() {
        let mut file = elf_file(62, 0x100_0010, 0x100_0000);
        // The segment's bytes lie behind a large hole, and a note lies inside of them.
        file.resize(0x20_0000, 0);
        file.extend((0..0x100u32).map(|i| i as u8));
        file[56..58].copy_from_slice(&2u16.to_le_bytes());
        file[72..80].copy_from_slice(&0x20_0000u64.to_le_bytes());
        let note = &mut file[120..176];
        note[..4].copy_from_slice(&4u32.to_le_bytes());
        note[8..16].copy_from_slice(&0x20_0080u64.to_le_bytes());
        note[32..40].copy_from_slice(&0x10u64.to_le_bytes());

        let packed = pack_vmlinux(&file).unwrap();

        assert_eq!(packed.len(), PAGE + 0x100);
        assert_eq!(check_vmlinux(&packed, 0x2000), Ok(()));
        let header = elf::FileHeader64::<Endianness>::parse(&*packed).unwrap();
        let endian = header.endian().unwrap();
        let segments = header.program_headers(endian, &*packed).unwrap();
        let data: Vec<u8> = (0..0x100u32).map(|i| i as u8).collect();
        assert_eq!(segments[0].data(endian, &*packed).unwrap(), data);
        assert_eq!(
            segments[1].data(endian, &*packed).unwrap(),
            &data[0x80..0x90]
        );
    }

    #[test]
    fn packing_twice_changes_nothing() {
        let file = elf_file(62, 0x100_0010, 0x100_0000);
        let packed = pack_vmlinux(&file).unwrap();
        assert_eq!(pack_vmlinux(&packed).unwrap(), packed);
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
            let _ = pack_vmlinux(&file);
        }
    }
}
