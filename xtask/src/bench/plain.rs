//! The trivial init of the baseline: plain QEMU boots the same kernel to a PID 1 that
//! does nothing but say so.
//!
//! It is some dozen instructions in an ELF file written here, because that is the least
//! that a kernel can start: no library, no page that must be faulted in beyond one. A
//! baseline with a bigger init would flatter our stack.

/// What the init prints.
pub(crate) const PLAIN_INIT_STARTED: &str = "plain_init: started";

/// Where the program is mapped.
const LOAD_ADDRESS: u64 = 0x40_0000;

/// Sizes of an ELF64 file header and program header.
const FILE_HEADER_SIZE: u64 = 64;
const PROGRAM_HEADER_SIZE: u64 = 56;

/// `write(1, message, length)`, then `pause()` for ever: if PID 1 ended, the kernel would
/// panic into the console that is being watched.
fn code(message_length: u8) -> Vec<u8> {
    // Distance from the end of `lea` to the message, which follows the code.
    const TO_MESSAGE: u8 = 16;
    let mut code = Vec::new();
    code.extend([0xb8, 1, 0, 0, 0]); // mov eax, 1 (write)
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, 1 (standard output)
    code.extend([0x48, 0x8d, 0x35, TO_MESSAGE, 0, 0, 0]); // lea rsi, [rip + TO_MESSAGE]
    code.extend([0xba, message_length, 0, 0, 0]); // mov edx, message_length
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 34, 0, 0, 0]); // again: mov eax, 34 (pause)
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xeb, 0xf7]); // jmp again
    code
}

/// The program as an ELF file.
fn program() -> Vec<u8> {
    let message = format!("{PLAIN_INIT_STARTED}\n");
    let code = code(u8::try_from(message.len()).unwrap_or(u8::MAX));
    let headers = FILE_HEADER_SIZE + PROGRAM_HEADER_SIZE;
    let size = headers + (code.len() + message.len()) as u64;

    let mut file = Vec::new();
    // 64-bit, little-endian, version 1; then padding.
    file.extend(b"\x7fELF\x02\x01\x01");
    file.extend([0; 9]);
    let half_words = |words: &[u16]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes
    };
    // Executable for x86-64, version 1.
    file.extend(half_words(&[2, 62, 1, 0]));
    for word in [LOAD_ADDRESS + headers, FILE_HEADER_SIZE, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags; header sizes; one program header and no section.
    file.extend(half_words(&[0, 0, 64, 56, 1, 0, 0, 0]));
    // The whole file is one segment, readable and executable.
    file.extend(half_words(&[1, 0, 5, 0]));
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file.extend(message.as_bytes());
    file
}

/// The initial ramdisk: the program as `/init`, uncompressed. `/dev/console`, to which the
/// kernel connects PID 1, comes from the kernel's own built-in archive.
pub(crate) fn initrd() -> anyhow::Result<Vec<u8>> {
    let mut archive = Vec::new();
    let entry = cpio::newc::Builder::new("init").mode(0o100_755).nlink(1);
    let program = program();
    let mut writer = entry.write(&mut archive, u32::try_from(program.len())?);
    std::io::Write::write_all(&mut writer, &program)?;
    writer.finish()?;
    cpio::newc::trailer(&mut archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;
    use std::io::BufReader;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::process::Stdio;

    #[test]
    fn the_program_says_its_line_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();

        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();

        assert_eq!(line, "plain_init: started\n");
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_initrd_has_one_executable_file() {
        let archive = initrd().unwrap();
        let reader = cpio::newc::Reader::new(archive.as_slice()).unwrap();
        assert_eq!(reader.entry().name(), "init");
        assert_eq!(reader.entry().mode(), 0o100_755);
    }
}
