//! The register page: registers of the lower VTL in a page that VTL2 maps, so that the
//! common exits need no hypercall (`HV_X64_REGISTER_PAGE`).
//!
//! The host fills it when it enters VTL2 from a lower VTL. VTL2 may change what has a dirty
//! bit; the host takes over what is marked when VTL2 returns.

use crate::registers::PendingInterruption;
use crate::vp_context::HvX64SegmentRegister;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version that is described here.
pub const HV_X64_REGISTER_PAGE_VERSION: u16 = 1;

/// What VTL2 has changed.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterPageDirty {
    /// General-purpose registers.
    pub general_purpose: bool,
    /// RIP.
    pub instruction_pointer: bool,
    /// XMM0 to XMM5.
    pub xmm: bool,
    /// Segment registers.
    pub segments: bool,
    /// RFLAGS.
    pub flags: bool,
    #[bits(27)]
    _reserved: u32,
}

/// The page.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvX64RegisterPage {
    /// [`HV_X64_REGISTER_PAGE_VERSION`].
    pub version: u16,
    /// Not 0: the host has filled it.
    pub is_valid: u8,
    /// Whose registers these are.
    pub vtl: u8,
    /// What VTL2 has changed.
    pub dirty: RegisterPageDirty,
    /// General-purpose registers by their number in instruction encodings.
    pub gprs: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Zero.
    pub reserved: u64,
    /// XMM0 to XMM5.
    pub xmm: [[u64; 2]; 6],
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [HvX64SegmentRegister; 6],
    /// CR0; from here on VTL2 only reads.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// DR7.
    pub dr7: u64,
    /// Event that is delivered at the next entry.
    pub pending_interruption: PendingInterruption,
    /// Bit 0: an instruction casts an interrupt shadow; bit 1: NMIs are masked.
    pub interrupt_state: u64,
    /// For emulators of instructions.
    pub emulation_hints: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(HvX64RegisterPage, gprs) == 8);
    assert!(offset_of!(HvX64RegisterPage, rip) == 136);
    assert!(offset_of!(HvX64RegisterPage, rflags) == 144);
    assert!(offset_of!(HvX64RegisterPage, xmm) == 160);
    assert!(offset_of!(HvX64RegisterPage, segments) == 256);
    assert!(offset_of!(HvX64RegisterPage, cr0) == 352);
    assert!(offset_of!(HvX64RegisterPage, dr7) == 392);
    assert!(offset_of!(HvX64RegisterPage, pending_interruption) == 400);
    assert!(offset_of!(HvX64RegisterPage, interrupt_state) == 408);
    assert!(size_of::<HvX64RegisterPage>() == 424);
};
