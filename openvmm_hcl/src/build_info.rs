//! What this program is.

use inspect::Inspect;
use std::fs::File;
use std::io::Read;

/// This program's file.
const EXECUTABLE: &str = "/proc/self/exe";

/// The linker puts its note near the start.
const HEAD_SIZE: usize = 64 * 1024;

/// Bytes of a build id.
const ID_SIZE: usize = 20;

/// What this program is, and the kernel below it.
#[derive(Debug, Clone, PartialEq, Eq, Inspect)]
pub struct BuildInfo {
    /// Version of the paravisor.
    #[inspect(safe)]
    pub version: &'static str,
    /// Hash of the program, made by the linker: the same for the same bytes.
    #[inspect(safe)]
    pub build_id: String,
    /// How it was built.
    #[inspect(safe)]
    pub profile: &'static str,
    /// For which processor.
    #[inspect(safe)]
    pub architecture: &'static str,
    /// The image was built for development: it has a shell.
    #[inspect(safe)]
    pub development_image: bool,
    /// The kernel's release.
    #[inspect(safe)]
    pub kernel: String,
    /// The kernel's build.
    #[inspect(safe)]
    pub kernel_build: String,
}

impl BuildInfo {
    /// Collects it; what cannot be read is `unknown`.
    pub fn collect(development_image: bool) -> Self {
        let unknown = || "unknown".to_owned();
        let kernel = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))
                .map_or_else(|_| unknown(), |text| text.trim().to_owned())
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            build_id: build_id().unwrap_or_else(unknown),
            profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            architecture: std::env::consts::ARCH,
            development_image,
            kernel: kernel("osrelease"),
            kernel_build: kernel("version"),
        }
    }
}

fn build_id() -> Option<String> {
    let mut head = Vec::new();
    File::open(EXECUTABLE)
        .ok()?
        .take(HEAD_SIZE as u64)
        .read_to_end(&mut head)
        .ok()?;
    let id = find_build_id(&head)?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The linker's note: sizes of name and id, type 3, the name `GNU`, the id.
fn find_build_id(head: &[u8]) -> Option<&[u8]> {
    let mut note = Vec::new();
    for word in [4u32, ID_SIZE as u32, 3] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"GNU\0");
    let at = head.windows(note.len()).position(|bytes| bytes == note)?;
    head.get(at + note.len()..)?.get(..ID_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_note_is_found() {
        let mut head = vec![0x55; 100];
        head.extend([4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0]);
        head.extend(b"GNU\0");
        head.extend(1..=20);
        assert_eq!(
            find_build_id(&head),
            Some(&(1..=20).collect::<Vec<u8>>()[..])
        );
        head.pop();
        assert_eq!(find_build_id(&head), None);
        assert_eq!(find_build_id(&[]), None);
    }
}
