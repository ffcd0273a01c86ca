//! The zero page, byte by byte. Offsets are those of
//! `Documentation/arch/x86/{boot,zero-page}.rst`.

use crate::files::{BzImageFile, vmlinux};
use crate::machine::{CHIPSET, GIB, MIB, Memory, SMALL, ram, range};
use vm_loader::x86_64::{LinuxDirect, LoadError};
use vm_loader::{MemoryLayout, Ram};

/// A zero page and what leads to it.
struct ZeroPage(Vec<u8>);

impl ZeroPage {
    fn of(direct: &LinuxDirect<'_>) -> Self {
        let plan = direct.plan().expect("it fits");
        Self(Memory::with(&plan).read(plan.registers().rsi, 4096))
    }

    fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.0[offset], self.0[offset + 1]])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset + 4)) << 32
    }

    /// E820: first byte, end, type.
    fn memory_map(&self) -> Vec<(u64, u64, u32)> {
        (0..usize::from(self.u8(0x1e8)))
            .map(|index| 0x2d0 + 20 * index)
            .map(|at| {
                (
                    self.u64(at),
                    self.u64(at) + self.u64(at + 8),
                    self.u32(at + 16),
                )
            })
            .collect()
    }
}

fn direct<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> LinuxDirect<'a> {
    LinuxDirect {
        kernel,
        initrd,
        command_line: "console=ttyS0",
        memory: SMALL,
        chipset: Some(&CHIPSET),
    }
}

#[test]
fn header_of_a_bz_image_is_kept_and_completed() {
    let kernel = BzImageFile::default().bytes();

    let page = ZeroPage::of(&direct(&kernel, Some(&[7; 0x1001])));

    assert_eq!(page.u8(0x1f1), 4, "setup_sects");
    assert_eq!(page.u16(0x1f2), 1, "root_flags");
    assert_eq!(page.u16(0x1fe), 0xaa55, "boot_flag");
    assert_eq!(page.u32(0x202), 0x5372_6448, "header");
    assert_eq!(page.u16(0x206), 0x20f, "version");
    assert_eq!(page.u8(0x210), 0xff, "type_of_loader");
    assert_eq!(page.u8(0x211), 1, "loadflags: LOADED_HIGH");
    assert_eq!(page.u32(0x214), 0x10_0000, "code32_start");
    assert_eq!(page.u32(0x218), 24 << 20, "ramdisk_image");
    assert_eq!(page.u32(0x21c), 0x1001, "ramdisk_size");
    assert_eq!(page.u32(0x228), 0x9000, "cmd_line_ptr");
    assert_eq!(page.u32(0x22c), 0x7fff_ffff, "initrd_addr_max");
    assert_eq!(page.u32(0x230), 2 << 20, "kernel_alignment");
    assert_eq!(page.u8(0x234), 1, "relocatable_kernel");
    assert_eq!(page.u16(0x236), 0x7f, "xloadflags");
    assert_eq!(page.u32(0x238), 2047, "cmdline_size");
    assert_eq!(page.u64(0x250), 0, "setup_data");
    assert_eq!(page.u64(0x258), 16 * MIB, "pref_address");
    assert_eq!(page.u32(0x260), 8 << 20, "init_size");
    assert_eq!(page.u64(0x070), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(page.u32(0x0c0), 0, "ext_ramdisk_image");
    assert_eq!(page.u32(0x0c4), 0, "ext_ramdisk_size");
    assert_eq!(page.u32(0x0c8), 0, "ext_cmd_line_ptr");
    assert_eq!(page.u8(0x1ef), 0, "sentinel");
    assert!(
        page.0[0x26c..0x2d0].iter().all(|byte| *byte == 0),
        "code behind the header is not part of it"
    );
}

#[test]
fn fields_that_an_older_header_does_not_have_are_zero() {
    let mut kernel = BzImageFile {
        version: 0x20c,
        ..BzImageFile::default()
    }
    .bytes();
    // Protocol 2.12: it ends behind handover_offset.
    kernel[0x201] = 0x66;
    kernel[0x268..0x26c].fill(0xcc);

    let page = ZeroPage::of(&direct(&kernel, None));

    assert_eq!(page.u16(0x206), 0x20c);
    assert_eq!(page.u32(0x268), 0, "kernel_info_offset");
    assert_eq!(page.u32(0x218), 0, "no initrd");
}

#[test]
fn vmlinux_gets_a_header() {
    let kernel = vmlinux();

    let page = ZeroPage::of(&direct(&kernel, Some(&[7; 16])));

    assert_eq!(page.u16(0x1fe), 0xaa55);
    assert_eq!(page.u32(0x202), 0x5372_6448);
    assert_eq!(page.u16(0x206), 0x20f);
    assert_eq!(page.u8(0x210), 0xff);
    assert_eq!(page.u32(0x218), 0x120_0000);
    assert_eq!(page.u32(0x21c), 16);
    assert_eq!(page.u32(0x228), 0x9000);
}

#[test]
fn without_a_chipset_there_is_no_rsdp_and_no_memory_for_tables() {
    let kernel = vmlinux();
    let direct = LinuxDirect {
        chipset: None,
        ..direct(&kernel, None)
    };

    let page = ZeroPage::of(&direct);

    assert_eq!(page.u64(0x070), 0);
    assert_eq!(page.memory_map(), [(0, 0xa_0000, 1), (MIB, 256 * MIB, 1)]);
}

#[test]
fn memory_map_has_ram_reserved_memory_and_acpi_tables() {
    let kernel = vmlinux();
    let memory = MemoryLayout {
        ram: &[
            ram(0, GIB),
            Ram {
                node: 1,
                ..ram(GIB, 3 * GIB)
            },
            ram(4 * GIB, 5 * GIB),
        ],
        reserved: &[
            range(4 * GIB - 2 * MIB, 4 * GIB),
            range(2 * GIB, 2 * GIB + MIB),
        ],
        limit: u64::MAX,
    };
    let direct = LinuxDirect {
        memory,
        ..direct(&kernel, None)
    };

    let page = ZeroPage::of(&direct);

    assert_eq!(
        page.memory_map(),
        [
            (0, 0xa_0000, 1),
            (0xe_0000, 0xe_1000, 3),
            (MIB, 2 * GIB, 1),
            (2 * GIB, 2 * GIB + MIB, 2),
            (2 * GIB + MIB, 3 * GIB, 1),
            (4 * GIB - 2 * MIB, 4 * GIB, 2),
            (4 * GIB, 5 * GIB, 1),
        ]
    );
}

#[test]
fn acpi_tables_in_low_memory_are_not_ram() {
    let kernel = vmlinux();
    let memory = MemoryLayout {
        reserved: &[range(0xc_0000, 0x10_0000)],
        ..SMALL
    };
    let direct = LinuxDirect {
        memory,
        ..direct(&kernel, None)
    };

    let page = ZeroPage::of(&direct);

    assert_eq!(
        page.memory_map(),
        [
            (0, 0x2_0000, 1),
            (0x2_0000, 0x2_1000, 3),
            (0x2_1000, 0xa_0000, 1),
            (0xc_0000, 0x10_0000, 2),
            (MIB, 256 * MIB, 1),
        ]
    );
}

#[test]
fn memory_map_that_does_not_fit_is_refused() {
    let kernel = vmlinux();
    let pieces = |count: u64| -> Vec<Ram> {
        let high = (0..count).map(|i| ram(GIB + i * 2 * MIB, GIB + i * 2 * MIB + MIB));
        std::iter::once(ram(0, 256 * MIB)).chain(high).collect()
    };
    let plan = |ram: &[Ram]| {
        let memory = MemoryLayout { ram, ..SMALL };
        let direct = LinuxDirect {
            memory,
            ..direct(&kernel, None)
        };
        direct.plan().map(|_| ())
    };

    // Three entries below 256 MiB.
    assert_eq!(plan(&pieces(125)), Ok(()));
    assert_eq!(
        plan(&pieces(126)),
        Err(LoadError::MemoryMap {
            found: 129,
            max: 128
        })
    );
}
