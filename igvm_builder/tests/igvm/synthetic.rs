//! Small programs, made by hand, and images of them.

use igvm_builder::view::Image;
use igvm_builder::{BuiltImage, GuestFiles, Manifest, Resources, build};
use std::path::Path;

/// `ET_EXEC`.
pub(crate) const EXECUTABLE: u16 = 2;
/// `ET_DYN`.
pub(crate) const SHARED: u16 = 3;
/// `EM_X86_64`.
pub(crate) const X86_64: u16 = 62;

/// A loadable segment.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) virtual_address: u64,
    pub(crate) physical_address: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory_size: u64,
    pub(crate) alignment: u64,
}

impl Segment {
    /// A segment whose physical address is its virtual address.
    pub(crate) fn new(address: u64, data: Vec<u8>, memory_size: u64) -> Self {
        Self {
            virtual_address: address,
            physical_address: address,
            data,
            memory_size,
            alignment: 0x1000,
        }
    }
}

/// An ELF file.
pub(crate) fn elf(kind: u16, machine: u16, entry: u64, segments: &[Segment]) -> Vec<u8> {
    let headers = 64 + 56 * segments.len();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(kind.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = headers as u64;
    for segment in segments {
        file.extend(1u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [
            offset,
            segment.virtual_address,
            segment.physical_address,
            segment.data.len() as u64,
            segment.memory_size,
            segment.alignment,
        ] {
            file.extend(word.to_le_bytes());
        }
        offset += segment.data.len() as u64;
    }
    for segment in segments {
        file.extend(&segment.data);
    }
    file
}

/// Bytes that are not zero and differ from page to page.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (index / 7 + index / 4096) as u8 ^ seed | 1)
        .collect()
}

/// A kernel as Linux is linked: high virtual addresses, physical ones from 16 MiB, a gap
/// between two segments, BSS at the end.
pub(crate) fn kernel_segments() -> Vec<Segment> {
    let text = Segment {
        virtual_address: 0xffff_ffff_8100_0000,
        physical_address: 0x100_0000,
        ..Segment::new(0, pattern(0x2100, 3), 0x2100)
    };
    let data = Segment {
        virtual_address: 0xffff_ffff_8100_8000,
        physical_address: 0x100_8000,
        ..Segment::new(0, pattern(0x1800, 5), 0x4000)
    };
    vec![text, data]
}

/// The parts of an image.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) manifest: String,
    pub(crate) kernel: Vec<u8>,
    pub(crate) shim: Vec<u8>,
    pub(crate) initrd: Vec<u8>,
    pub(crate) sidecar: Option<Vec<u8>>,
    /// Kernel and initrd of the guest.
    pub(crate) guest: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Parts {
    /// Parts that fit together.
    pub(crate) fn new() -> Self {
        Self {
            manifest: manifest("", "64 MiB"),
            kernel: elf(EXECUTABLE, X86_64, 0x100_0040, &kernel_segments()),
            shim: elf(
                SHARED,
                X86_64,
                0x10,
                &[
                    Segment::new(0, pattern(0x1010, 7), 0x1010),
                    Segment::new(0x3000, pattern(0x20, 9), 0x2800),
                ],
            ),
            initrd: pattern(0x2345, 11),
            sidecar: None,
            guest: None,
        }
    }

    /// With a guest that has an initrd.
    pub(crate) fn with_guest(mut self, command_line: &str) -> Self {
        let vtl0 = format!("image = \"linux\"\ncommand_line = \"{command_line}\"");
        self.manifest = self.manifest.replace("image = \"none\"", &vtl0).replace(
            "\"initrd\"]",
            "\"initrd\", \"vtl0_kernel\", \"vtl0_initrd\"]",
        );
        self.guest = Some((self.kernel.clone(), Some(pattern(0x3456, 15))));
        self
    }

    pub(crate) fn with_sidecar(mut self) -> Self {
        self.manifest = self
            .manifest
            .replace("\"initrd\"]", "\"initrd\", \"sidecar\"]");
        self.sidecar = Some(elf(
            SHARED,
            X86_64,
            0x30,
            &[Segment::new(0, pattern(0x900, 13), 0x1900)],
        ));
        self
    }

    pub(crate) fn try_build(&self) -> Result<BuiltImage, igvm_builder::Error> {
        let manifest = Manifest::parse(&self.manifest, Path::new("test.toml"))?;
        let resources = Resources {
            kernel: &self.kernel,
            shim: &self.shim,
            initrd: &self.initrd,
            sidecar: self.sidecar.as_deref(),
            guest: self.guest.as_ref().map(|(kernel, initrd)| GuestFiles {
                kernel,
                initrd: initrd.as_deref(),
            }),
        };
        Ok(build(&manifest, &resources)?)
    }

    pub(crate) fn build(&self) -> BuiltImage {
        self.try_build().expect("the parts fit together")
    }

    /// Builds and reads back.
    pub(crate) fn image(&self) -> Image {
        Image::read(&self.build().bytes).expect("a built image can be read")
    }
}

/// A manifest.
pub(crate) fn manifest(command_line: &str, size: &str) -> String {
    format!(
        "arch = \"x64\"\nisolation = \"none\"\nsvn = 1\nresources = [\"kernel\", \"shim\", \
         \"initrd\"]\n[memory]\nsize = \"{size}\"\n[command_line]\ntext = \"{command_line}\"\n\
         policy = \"append-chosen\"\n[vtl0]\nimage = \"none\"\n"
    )
}
