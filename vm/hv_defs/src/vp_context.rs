//! `HV_INITIAL_VP_CONTEXT` and segment registers (TLFS "Virtual Processor Register Formats").

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Segment attributes in Hyper-V's 16-bit form (the middle of a descriptor).
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SegmentAttributes {
    /// Descriptor type.
    #[bits(4)]
    pub segment_type: u8,
    /// Code or data, not system.
    pub non_system: bool,
    /// Privilege level.
    #[bits(2)]
    pub dpl: u8,
    /// Present.
    pub present: bool,
    #[bits(4)]
    reserved: u8,
    /// For software.
    pub available: bool,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit default.
    pub default: bool,
    /// Limit in pages.
    pub granularity: bool,
}

impl SegmentAttributes {
    /// The 12-bit form of the AMD VMCB: descriptor bits 8-15 and 20-23, packed
    /// (AMD APM vol. 2, table B-2).
    pub const fn to_vmcb(self) -> u16 {
        let bits = self.into_bits();
        (bits & 0xff) | ((bits >> 4) & 0xf00)
    }

    /// Back from the 12-bit form of the AMD VMCB.
    pub const fn from_vmcb(attributes: u16) -> Self {
        Self::from_bits((attributes & 0xff) | ((attributes & 0xf00) << 4))
    }
}

/// `HV_X64_SEGMENT_REGISTER`.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HvX64SegmentRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Access rights.
    pub attributes: SegmentAttributes,
}

/// `HV_X64_TABLE_REGISTER`.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HvX64TableRegister {
    /// Must be zero.
    pub pad: [u16; 3],
    /// Limit in bytes.
    pub limit: u16,
    /// Linear base address.
    pub base: u64,
}

/// `HV_INITIAL_VP_CONTEXT` of x64: where a VP begins when a VTL is enabled on it.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HvInitialVpContext {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags.
    pub rflags: u64,
    /// Code segment.
    pub cs: HvX64SegmentRegister,
    /// Data segment.
    pub ds: HvX64SegmentRegister,
    /// Extra segment.
    pub es: HvX64SegmentRegister,
    /// FS.
    pub fs: HvX64SegmentRegister,
    /// GS.
    pub gs: HvX64SegmentRegister,
    /// Stack segment.
    pub ss: HvX64SegmentRegister,
    /// Task register.
    pub tr: HvX64SegmentRegister,
    /// Local descriptor table.
    pub ldtr: HvX64SegmentRegister,
    /// Interrupt descriptor table.
    pub idtr: HvX64TableRegister,
    /// Global descriptor table.
    pub gdtr: HvX64TableRegister,
    /// EFER.
    pub efer: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_PAT.
    pub msr_cr_pat: u64,
}

const _: () = assert!(size_of::<HvInitialVpContext>() == 224);
