//! The x86 Linux boot protocol, as far as a 64-bit entry needs it
//! (`Documentation/arch/x86/boot.rst`, `arch/x86/include/uapi/asm/{bootparam,setup_data}.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Usable RAM.
pub const E820_RAM: u32 = 1;
/// Not for the kernel.
pub const E820_RESERVED: u32 = 2;
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

const _: () = assert!(size_of::<E820Entry>() == 20);
const _: () = assert!(size_of::<SetupHeader>() == 0x26c - 0x1f1);
const _: () = assert!(size_of::<BootParams>() == 4096);
