//! The command page of a CPU.
//!
//! Both sides have it at a time, never at once: which one is told by the CPU's status. The
//! worker does not trust what it reads there more than a guest's memory, since the registers
//! in it are the guest's.

use crate::ErrorText;
use core::mem::offset_of;
use hv_defs::hypercall::TranslateVirtualAddressOutput;
use hv_defs::registers::HvRegisterAssoc;
use hv_defs::synic::HvMessage;
use loader_defs::PAGE_SIZE;
use open_enum::open_enum;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// What a CPU can be asked to do.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum Command {
    /// Nothing but to answer.
    NONE = 0,
    /// To run VTL0 until it is intercepted or the CPU is told to stop: [`RunResponse`].
    RUN_VP = 1,
    /// To read registers: [`RegisterRequest`].
    GET_VP_REGISTERS = 2,
    /// To write registers: [`RegisterRequest`].
    SET_VP_REGISTERS = 3,
    /// To translate an address of VTL0: [`TranslateRequest`], [`TranslateResponse`].
    TRANSLATE_GVA = 4,
}

/// Position of CR2 among [`CpuContext::gp`], where RSP would be: it is in the register page.
pub const GP_CR2: usize = 4;

/// Registers that the VTLs share. The worker finds them here when VTL0 has stopped, and VTL0
/// finds them when it runs again.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuContext {
    /// General-purpose registers in the order of their numbers, with CR2 at [`GP_CR2`].
    pub gp: [u64; 16],
    /// The area of FXSAVE64.
    pub fx: [u8; 512],
    /// Zero.
    pub reserved: [u8; 384],
}

/// Bytes of [`CommandPage::request`].
pub const REQUEST_CAPACITY: usize = 1024;

/// A command, its input and its output.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandPage {
    /// What to do.
    pub command: Command,
    /// Not 0: it has failed as [`CommandPage::error`] says.
    pub has_error: u8,
    /// Zero.
    pub reserved: [u8; 11],
    /// VTL0's registers.
    pub cpu_context: CpuContext,
    /// What has stopped VTL0.
    pub intercept: HvMessage,
    /// Why the command, or the kernel on this CPU, has failed.
    pub error: ErrorText,
    /// Input and output of the command.
    pub request: [u8; REQUEST_CAPACITY],
    /// Zero.
    pub reserved_end: [u8; 1520],
}

/// Output of [`Command::RUN_VP`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RunResponse {
    /// Not 0: [`CommandPage::intercept`] says what VTL0 does. 0: it was stopped.
    pub intercepted: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// Most registers of a request.
pub const MAX_REGISTERS: usize = 31;

/// Input and output of the commands on registers.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterRequest {
    /// Registers in use.
    pub count: u16,
    /// The VTL whose they are, as a TLFS input VTL: 0 for the own, 0x10 for VTL0.
    pub target_vtl: u8,
    /// Zero.
    pub reserved: u8,
    /// Output: what the hypervisor says of the first register that it refuses.
    pub status: u16,
    /// Output: registers that were done.
    pub done: u16,
    /// Zero.
    pub reserved_2: [u8; 8],
    /// Names, and values that are read or written.
    pub registers: [HvRegisterAssoc; MAX_REGISTERS],
}

/// Input of [`Command::TRANSLATE_GVA`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateRequest {
    /// Control flags, as HvCallTranslateVirtualAddress takes them.
    pub control_flags: u64,
    /// Page of the guest's virtual address.
    pub gva_page: u64,
}

/// Output of [`Command::TRANSLATE_GVA`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateResponse {
    /// What the hypervisor says of the call.
    pub status: u16,
    /// Zero.
    pub reserved: [u8; 6],
    /// Output of the call.
    pub output: TranslateVirtualAddressOutput,
}

const _: () = assert!(size_of::<CommandPage>() as u64 == PAGE_SIZE);
const _: () = assert!(offset_of!(CommandPage, cpu_context) == 16);
const _: () = assert!(offset_of!(CommandPage, intercept) == 1040);
const _: () = assert!(offset_of!(CommandPage, error) == 1296);
const _: () = assert!(offset_of!(CommandPage, request) == 1552);
// FXSAVE and FXRSTOR want a multiple of 16 bytes.
const _: () = assert!((16 + offset_of!(CpuContext, fx)).is_multiple_of(16));
const _: () = assert!(size_of::<RegisterRequest>() <= REQUEST_CAPACITY);
const _: () = assert!(size_of::<TranslateResponse>() <= REQUEST_CAPACITY);
