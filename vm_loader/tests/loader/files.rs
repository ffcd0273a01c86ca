//! Kernel files, made here.

/// Size of the setup part of [`BzImageFile`]: boot sector and 4 more.
pub(crate) const SETUP_SIZE: usize = 5 * 512;

/// Bytes that tell where they are.
pub(crate) fn pattern(size: usize, seed: u8) -> Vec<u8> {
    (0..size)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// A bzImage. The defaults are those of a distribution's kernel, but small.
#[derive(Debug, Clone)]
pub(crate) struct BzImageFile {
    pub(crate) setup_sects: u8,
    /// In paragraphs; `None`: that of the payload.
    pub(crate) syssize: Option<u32>,
    pub(crate) version: u16,
    pub(crate) xloadflags: u16,
    pub(crate) relocatable: bool,
    pub(crate) alignment: u32,
    pub(crate) preferred: u64,
    pub(crate) init_size: u32,
    pub(crate) initrd_addr_max: u32,
    pub(crate) cmdline_size: u32,
    pub(crate) payload: Vec<u8>,
}

impl Default for BzImageFile {
    fn default() -> Self {
        Self {
            setup_sects: 4,
            syssize: None,
            version: 0x20f,
            xloadflags: 0x7f,
            relocatable: true,
            alignment: 2 << 20,
            preferred: 16 << 20,
            init_size: 8 << 20,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
            payload: pattern(0x4000, 3),
        }
    }
}

impl BzImageFile {
    /// The file. Offsets are those of `Documentation/arch/x86/boot.rst`.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; SETUP_SIZE];
        let syssize = self.syssize.unwrap_or(self.payload.len() as u32 / 16);
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0x1f1, &[self.setup_sects]);
        put(0x1f2, &1u16.to_le_bytes());
        put(0x1f4, &syssize.to_le_bytes());
        put(0x1fe, &0xaa55u16.to_le_bytes());
        // A short jump over the header, whose second byte says where the header ends.
        put(0x200, &[0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[0x01]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &self.initrd_addr_max.to_le_bytes());
        put(0x230, &self.alignment.to_le_bytes());
        put(0x234, &[u8::from(self.relocatable), 21]);
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &self.cmdline_size.to_le_bytes());
        put(0x258, &self.preferred.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        // Code behind the header, which is not for the zero page.
        put(0x26c, &[0xcc; 16]);
        file.extend_from_slice(&self.payload);
        // A signature, as distributions append.
        file.extend_from_slice(b"signature");
        file
    }
}

/// A loadable segment.
#[derive(Debug, Clone)]
pub(crate) struct ElfSegment {
    pub(crate) physical: u64,
    pub(crate) virt: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory_size: u64,
    pub(crate) alignment: u64,
}

impl ElfSegment {
    pub(crate) fn new(physical: u64, data: Vec<u8>, memory_size: u64) -> Self {
        Self {
            physical,
            virt: physical.wrapping_add(0xffff_ffff_8000_0000),
            data,
            memory_size,
            alignment: 0x1000,
        }
    }
}

/// `e_type` of a program with fixed addresses.
pub(crate) const EXECUTABLE: u16 = 2;
/// `e_type` of a position independent one.
pub(crate) const SHARED: u16 = 3;

/// An ELF file for x86_64.
pub(crate) fn elf(kind: u16, entry: u64, segments: &[ElfSegment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut data_offset = 64 + 56 * segments.len() as u64;
    file.extend(kind.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for segment in segments {
        file.extend(1u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [
            data_offset,
            segment.virt,
            segment.physical,
            segment.data.len() as u64,
            segment.memory_size,
            segment.alignment,
        ] {
            file.extend(word.to_le_bytes());
        }
        data_offset += segment.data.len() as u64;
    }
    for segment in segments {
        file.extend_from_slice(&segment.data);
    }
    file
}

/// A vmlinux at 16 MiB: two segments, the second with zeroed memory.
pub(crate) fn vmlinux() -> Vec<u8> {
    elf(
        EXECUTABLE,
        0x100_0040,
        &[
            ElfSegment::new(0x100_0000, pattern(0x2345, 1), 0x2345),
            ElfSegment::new(0x100_8000, pattern(0x1000, 2), 0x9000),
        ],
    )
}

/// An arm64 `Image` with this header (`Documentation/arch/arm64/booting.rst`).
pub(crate) fn arm64_image(text_offset: u64, image_size: u64, flags: u64, size: usize) -> Vec<u8> {
    let mut file = pattern(size.max(64), 9);
    file[0..4].copy_from_slice(b"MZ\x40\xfa");
    file[8..16].copy_from_slice(&text_offset.to_le_bytes());
    file[16..24].copy_from_slice(&image_size.to_le_bytes());
    file[24..32].copy_from_slice(&flags.to_le_bytes());
    file[32..56].fill(0);
    file[56..60].copy_from_slice(b"ARM\x64");
    file
}
