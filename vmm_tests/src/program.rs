//! Programs that are too small for a compiler.

/// Where the code is, in the file and in memory: behind the headers.
const CODE: u64 = 64 + 56;

/// An ELF file that can be anywhere in memory. It has one segment, and is entered at the first
/// byte of `code`.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    const SHARED: u16 = 3;
    const X86_64: u16 = 62;
    const LOAD: u32 = 1;
    const READ_WRITE_EXECUTE: u32 = 7;
    let size = CODE + code.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(SHARED.to_le_bytes());
    file.extend(X86_64.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    // Entry, offset of the program headers, offset of the section headers.
    for word in [CODE, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    // Size of this header; size and number of program headers, then of section headers.
    for half in [64, 56, 1, 64, 0, 0_u16] {
        file.extend(half.to_le_bytes());
    }
    file.extend(LOAD.to_le_bytes());
    file.extend(READ_WRITE_EXECUTE.to_le_bytes());
    // Offset, virtual and physical address, size in the file and in memory, alignment.
    for word in [0, 0, 0, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
