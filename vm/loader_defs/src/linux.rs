//! The boot protocols of Linux: that of x86, as far as a 64-bit entry needs it
//! (`Documentation/arch/x86/boot.rst`, `arch/x86/include/uapi/asm/{bootparam,setup_data}.h`),
//! and the header of an arm64 `Image` (`Documentation/arch/arm64/booting.rst`).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Usable RAM.
pub const E820_RAM: u32 = 1;
/// Not for the kernel.
pub const E820_RESERVED: u32 = 2;
/// ACPI tables; RAM once they have been read.
pub const E820_ACPI: u32 = 3;
/// Entries that fit into `boot_params` itself.
pub const E820_MAX_ENTRIES_ZEROPAGE: usize = 128;
/// `setup_data` with further memory map entries.
pub const SETUP_E820_EXT: u32 = 1;
/// `setup_data` with a device tree.
pub const SETUP_DTB: u32 = 2;
/// Signature of the setup header, "HdrS".
pub const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
/// Signature of a boot sector.
pub const BOOT_FLAG: u16 = 0xaa55;
/// The boot protocol that is spoken here, 2.15.
pub const BOOT_PROTOCOL_VERSION: u16 = 0x020f;
/// The first boot protocol that says whether there is a 64-bit entry, 2.12.
pub const BOOT_PROTOCOL_XLOADFLAGS: u16 = 0x020c;
/// The first boot protocol with `acpi_rsdp_addr`, 2.14.
pub const BOOT_PROTOCOL_RSDP: u16 = 0x020e;
/// Value of `type_of_loader` of a boot loader without an assigned id.
pub const LOADER_UNKNOWN: u8 = 0xff;
/// Offset of the setup header in `boot_params` and in a bzImage.
pub const SETUP_HEADER_OFFSET: usize = 0x1f1;
/// Size of a sector, the unit of `setup_sects`.
pub const SECTOR_SIZE: u64 = 512;
/// What `setup_sects` = 0 means.
pub const DEFAULT_SETUP_SECTS: u8 = 4;
/// The unit of `syssize`.
pub const PARAGRAPH_SIZE: u64 = 16;
/// Offset of the 64-bit entry in the loaded part of a bzImage.
pub const ENTRY64_OFFSET: u64 = 0x200;
/// Longest command line of an x86 kernel without a header that says it
/// (`COMMAND_LINE_SIZE`, without the terminating zero).
pub const COMMAND_LINE_MAX: u32 = 2047;
/// Where the memory of the legacy video adapter starts: end of low memory.
pub const LEGACY_HOLE_START: u64 = 0xa_0000;
/// Where the area starts in which a kernel looks for the RSDP if nobody says where it is.
pub const BIOS_AREA_START: u64 = 0xe_0000;
/// End of that area.
pub const BIOS_AREA_END: u64 = 0x10_0000;

/// `loadflags`.
#[bitfield(u8)]
pub struct LoadFlags {
    /// The protected-mode part is loaded at 1 MiB or above (bzImage), not at 64 KiB.
    pub loaded_high: bool,
    /// Address space randomization was applied; between parts of the kernel.
    pub kaslr: bool,
    #[bits(3)]
    _reserved: u8,
    /// No early messages.
    pub quiet: bool,
    /// Obsolete.
    pub keep_segments: bool,
    /// `heap_end_ptr` is valid.
    pub can_use_heap: bool,
}

/// `xloadflags`.
#[bitfield(u16)]
pub struct XloadFlags {
    /// There is a 64-bit entry at [`ENTRY64_OFFSET`].
    pub kernel_64: bool,
    /// Everything may be loaded above 4 GiB.
    pub above_4g: bool,
    #[bits(14)]
    _others: u16,
}

/// An entry of the memory map. Packed: 20 bytes.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// `E820_*`.
    pub typ: u32,
}

/// Header of a node of the `setup_data` list; `len` bytes follow.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupData {
    /// GPA of the next node, 0 at the end.
    pub next: u64,
    /// `SETUP_*`.
    pub typ: u32,
    /// Bytes that follow.
    pub len: u32,
}

/// `struct setup_header`, packed, at 0x1f1 of `boot_params`.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupHeader {
    /// Setup sectors.
    pub setup_sects: u8,
    /// Root is read-only.
    pub root_flags: u16,
    /// Size of the kernel in paragraphs.
    pub syssize: u32,
    /// Obsolete.
    pub ram_size: u16,
    /// Video mode.
    pub vid_mode: u16,
    /// Root device.
    pub root_dev: u16,
    /// `BOOT_FLAG`.
    pub boot_flag: u16,
    /// Jump instruction.
    pub jump: u16,
    /// `SETUP_HEADER_MAGIC`.
    pub header: u32,
    /// Boot protocol version.
    pub version: u16,
    /// Obsolete.
    pub realmode_swtch: u32,
    /// Obsolete.
    pub start_sys_seg: u16,
    /// Pointer to the version text.
    pub kernel_version: u16,
    /// Boot loader id, 0xff = unknown.
    pub type_of_loader: u8,
    /// Boot protocol flags.
    pub loadflags: u8,
    /// Obsolete.
    pub setup_move_size: u16,
    /// 32-bit entry.
    pub code32_start: u32,
    /// Low half of the initrd address.
    pub ramdisk_image: u32,
    /// Low half of the initrd size.
    pub ramdisk_size: u32,
    /// Obsolete.
    pub bootsect_kludge: u32,
    /// End of the real-mode heap.
    pub heap_end_ptr: u16,
    /// Extended loader version.
    pub ext_loader_ver: u8,
    /// Extended loader id.
    pub ext_loader_type: u8,
    /// Low half of the command line address.
    pub cmd_line_ptr: u32,
    /// Highest address of the initrd.
    pub initrd_addr_max: u32,
    /// Alignment of the kernel.
    pub kernel_alignment: u32,
    /// The kernel can be moved.
    pub relocatable_kernel: u8,
    /// Smallest alignment.
    pub min_alignment: u8,
    /// Extended flags.
    pub xloadflags: u16,
    /// Longest command line.
    pub cmdline_size: u32,
    /// Paravirtual platform, 0 = PC.
    pub hardware_subarch: u32,
    /// Its data.
    pub hardware_subarch_data: u64,
    /// Offset of the compressed payload.
    pub payload_offset: u32,
    /// Size of the compressed payload.
    pub payload_length: u32,
    /// GPA of the first `SetupData`.
    pub setup_data: u64,
    /// Preferred address.
    pub pref_address: u64,
    /// Memory needed at start.
    pub init_size: u32,
    /// EFI hand-over.
    pub handover_offset: u32,
    /// Offset of `kernel_info`.
    pub kernel_info_offset: u32,
}

/// `struct boot_params`, one page ("zero page").
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BootParams {
    /// Screen, APM, IST and other firmware data that a VM without firmware leaves zero.
    pub firmware: [u8; 0x70],
    /// GPA of the ACPI RSDP, 0 if there is none.
    pub acpi_rsdp_addr: u64,
    /// More firmware data.
    pub firmware2: [u8; 0xc0 - 0x78],
    /// High half of the initrd address.
    pub ext_ramdisk_image: u32,
    /// High half of the initrd size.
    pub ext_ramdisk_size: u32,
    /// High half of the command line address.
    pub ext_cmd_line_ptr: u32,
    /// More firmware data.
    pub firmware3: [u8; 0x1e8 - 0xcc],
    /// Entries of `e820_table` in use.
    pub e820_entries: u8,
    /// More firmware data.
    pub firmware4: [u8; 0x1f1 - 0x1e9],
    /// The setup header.
    pub hdr: SetupHeader,
    /// Padding and EDD data.
    pub pad: [u8; 0x2d0 - 0x26c],
    /// The memory map.
    pub e820_table: [E820Entry; E820_MAX_ENTRIES_ZEROPAGE],
    /// EDD data.
    pub pad2: [u8; 0x1000 - 0xcd0],
}

impl BootParams {
    /// Says that there is a boot loader, and what it speaks. For a kernel without a setup
    /// header of its own, this makes one.
    pub fn set_loader(&mut self) {
        self.hdr.boot_flag = BOOT_FLAG;
        self.hdr.header = SETUP_HEADER_MAGIC;
        self.hdr.version = BOOT_PROTOCOL_VERSION;
        self.hdr.type_of_loader = LOADER_UNKNOWN;
    }

    /// Where the command line is. It ends with a zero.
    pub fn set_command_line(&mut self, gpa: u64) {
        (self.hdr.cmd_line_ptr, self.ext_cmd_line_ptr) = halves(gpa);
    }

    /// Where the initrd is, and how many bytes it has.
    pub fn set_initrd(&mut self, gpa: u64, size: u64) {
        (self.hdr.ramdisk_image, self.ext_ramdisk_image) = halves(gpa);
        (self.hdr.ramdisk_size, self.ext_ramdisk_size) = halves(size);
    }

    /// Writes the first [`E820_MAX_ENTRIES_ZEROPAGE`] entries of the memory map and returns
    /// the others.
    pub fn set_memory_map<'a>(&mut self, map: &'a [E820Entry]) -> &'a [E820Entry] {
        let (inline, rest) = map.split_at(map.len().min(E820_MAX_ENTRIES_ZEROPAGE));
        self.e820_entries = inline.len() as u8;
        self.e820_table[..inline.len()].copy_from_slice(inline);
        rest
    }
}

/// Low and high half.
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// "ARM\x64", the magic number of [`Arm64ImageHeader`].
pub const ARM64_IMAGE_MAGIC: u32 = 0x644d_5241;

/// Header of an arm64 `Image`, 64 bytes, little-endian.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Arm64ImageHeader {
    /// Executable code; the first instruction of the kernel. Its bytes may spell "MZ".
    pub code0: u32,
    /// Executable code.
    pub code1: u32,
    /// Where the image is loaded, in bytes from a 2 MiB boundary.
    pub text_offset: u64,
    /// Memory that the kernel needs from the start of the image on, in bytes; 0 in kernels
    /// before 3.17.
    pub image_size: u64,
    /// [`Arm64ImageFlags`].
    pub flags: u64,
    /// Zero.
    pub res2: u64,
    /// Zero.
    pub res3: u64,
    /// Zero.
    pub res4: u64,
    /// [`ARM64_IMAGE_MAGIC`].
    pub magic: u32,
    /// Offset of the PE header, or zero.
    pub res5: u32,
}

/// `flags` of [`Arm64ImageHeader`].
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Arm64ImageFlags {
    /// The kernel is big-endian.
    pub big_endian: bool,
    /// Page size: 0 unspecified, 1 = 4 KiB, 2 = 16 KiB, 3 = 64 KiB.
    #[bits(2)]
    pub page_size: u8,
    /// The image may be anywhere in physical memory; without it, it belongs as close to
    /// the start of RAM as possible.
    pub anywhere: bool,
    #[bits(60)]
    _reserved: u64,
}

const _: () = assert!(size_of::<Arm64ImageHeader>() == 64);
const _: () = assert!(core::mem::offset_of!(Arm64ImageHeader, magic) == 56);
const _: () = assert!(core::mem::offset_of!(BootParams, hdr) == SETUP_HEADER_OFFSET);
const _: () = assert!(size_of::<E820Entry>() == 20);
const _: () = assert!(size_of::<SetupHeader>() == 0x26c - 0x1f1);
const _: () = assert!(size_of::<BootParams>() == 4096);
