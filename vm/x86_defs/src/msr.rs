//! Numbers of model-specific registers.

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Place and state of the local APIC.
pub const APIC_BASE: u32 = 0x1b;
/// Microcode patch level.
pub const PATCH_LEVEL: u32 = 0x8b;
/// What memory type range registers there are.
pub const MTRR_CAP: u32 = 0xfe;
/// SYSENTER code segment; stack and entry follow.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER entry.
pub const SYSENTER_EIP: u32 = 0x176;
/// What machine check banks there are.
pub const MCG_CAP: u32 = 0x179;
/// State of machine checks.
pub const MCG_STATUS: u32 = 0x17a;
/// Debug control.
pub const DEBUG_CTL: u32 = 0x1d9;
/// First of the variable memory type ranges: pairs of base and mask.
pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
/// Last of them that any processor has (eight pairs).
pub const MTRR_VARIABLE_LAST: u32 = 0x20f;
/// The fixed memory type ranges, from address 0 upwards.
pub const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// Page attribute table.
pub const PAT: u32 = 0x277;
/// Default memory type.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// Extended features.
pub const EFER: u32 = 0xc000_0080;
/// System call: selectors.
pub const STAR: u32 = 0xc000_0081;
/// System call: 64-bit entry.
pub const LSTAR: u32 = 0xc000_0082;
/// System call: compatibility entry.
pub const CSTAR: u32 = 0xc000_0083;
/// System call: flags.
pub const SFMASK: u32 = 0xc000_0084;
/// Base of FS.
pub const FS_BASE: u32 = 0xc000_0100;
/// Base of GS.
pub const GS_BASE: u32 = 0xc000_0101;
/// Base of GS behind SWAPGS.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What RDTSCP returns beside the time.
pub const TSC_AUX: u32 = 0xc000_0103;
/// AMD system configuration.
pub const SYSCFG: u32 = 0xc001_0010;
/// AMD hardware configuration.
pub const HWCR: u32 = 0xc001_0015;
/// AMD interrupt pending message (C1E).
pub const INT_PENDING: u32 = 0xc001_0055;
/// SVM: what the firmware permits.
pub const VM_CR: u32 = 0xc001_0114;
/// SVM: where VMRUN saves the state of the host.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// AMD decoder configuration.
pub const DE_CFG: u32 = 0xc001_1029;
