//! The interface of Linux's `mshv_vtl` driver, through which a process in VTL2 runs VTL0:
//! numbers and structures of `/dev/mshv`, the VTL's file, `/dev/mshv_hvcall`,
//! `/dev/mshv_vtl_low` and `/dev/mshv_sint`, and the page that the driver shares with it for
//! each CPU.
//!
//! Definitions only, declared once. The driver's sources (`drivers/hv/mshv_vtl_main.c`,
//! `drivers/hv/mshv_vtl.h`) are the only description, and what is not in
//! `include/uapi/linux/mshv.h` may change with each kernel. So a test of `xtask` compiles a
//! C program against the headers of the kernel that is built, which compares each size,
//! offset and number with [`LAYOUT`] and [`NUMBERS`].
//!
//! `/dev/mshv_sint` is for event flags only: without VMBus, reading it stops the kernel.

#![no_std]
#![forbid(unsafe_code)]

mod layout;

pub use layout::Field;
pub use layout::LAYOUT;
pub use layout::NUMBERS;
pub use layout::Structure;

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Path of the device that gives the VTL's file.
pub const DEVICE: &str = "/dev/mshv";
/// Path of the device for hypercalls.
pub const HVCALL_DEVICE: &str = "/dev/mshv_hvcall";
/// Path of the device that maps VTL0's memory; an offset in it is a physical address.
pub const LOW_DEVICE: &str = "/dev/mshv_vtl_low";

/// Path of the device for event flags. It may be opened only if VTL2 has VMBus.
pub const SINT_DEVICE: &str = "/dev/mshv_sint";

/// `MSHV_CHECK_EXTENSION` of [`DEVICE`]: returns what it knows of a `CAP_*`.
pub const CHECK_EXTENSION: u32 = number(WRITE, 0x00, size_of::<u32>());
/// `MSHV_GET_VP_REGISTERS` of the VTL: [`VpRegisters`].
pub const GET_VP_REGISTERS: u32 = number(READ | WRITE, 0x05, size_of::<VpRegisters>());
/// `MSHV_SET_VP_REGISTERS` of the VTL: [`VpRegisters`].
pub const SET_VP_REGISTERS: u32 = number(WRITE, 0x06, size_of::<VpRegisters>());
/// `MSHV_CREATE_VTL` of [`DEVICE`]: returns the VTL's file.
pub const CREATE_VTL: u32 = number(READ, 0x1d, size_of::<u8>());
/// `MSHV_HVCALL_SETUP` of [`HVCALL_DEVICE`]: [`HvcallSetup`], once.
pub const HVCALL_SETUP: u32 = number(WRITE, 0x1e, size_of::<HvcallSetup>());
/// `MSHV_HVCALL` of [`HVCALL_DEVICE`]: [`Hvcall`].
pub const HVCALL: u32 = number(READ | WRITE, 0x1f, size_of::<Hvcall>());
/// `MSHV_ADD_VTL0_MEMORY` of the VTL: [`RamDisposition`].
pub const ADD_VTL0_MEMORY: u32 = number(WRITE, 0x21, size_of::<RamDisposition>());
/// `MSHV_SINT_SET_EVENTFD` of [`SINT_DEVICE`]: [`SetEventfd`].
pub const SINT_SET_EVENTFD: u32 = number(WRITE, 0x24, size_of::<SetEventfd>());
/// `MSHV_SINT_PAUSE_MESSAGE_STREAM` of [`SINT_DEVICE`]: [`SintMask`].
pub const SINT_PAUSE_MESSAGE_STREAM: u32 = number(WRITE, 0x25, size_of::<SintMask>());
/// `MSHV_SET_POLL_FILE` of the VTL: [`SetPollFile`].
pub const SET_POLL_FILE: u32 = number(WRITE, 0x25, size_of::<SetPollFile>());
/// `MSHV_RETURN_TO_LOWER_VTL` of the VTL: runs VTL0 on this CPU.
pub const RETURN_TO_LOWER_VTL: u32 = number(0, 0x27, 0);

/// `MSHV_CAP_REGISTER_PAGE`: each CPU has a register page.
pub const CAP_REGISTER_PAGE: u32 = 1;

/// Most bytes of input, and of output, of [`HVCALL`].
pub const HVCALL_MAX_BYTES: usize = 4096;
/// Bytes of a set of all hypercall codes, a bit for each.
pub const HVCALL_SET_BYTES: usize = 1 << 13;

/// Bytes of an intercept message.
pub const MESSAGE_BYTES: usize = 256;
/// Position of CR2 among [`CpuContext::gp`], where the number of RSP would be. The other
/// positions are the numbers of the registers in instructions.
pub const GP_CR2: usize = 4;

/// Argument of [`GET_VP_REGISTERS`] and [`SET_VP_REGISTERS`]. Registers are those of VTL0
/// of the VP that the caller runs on.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VpRegisters {
    /// 1.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
    /// Address of an `HV_REGISTER_ASSOC`.
    pub regs_ptr: u64,
}

/// Argument of [`ADD_VTL0_MEMORY`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RamDisposition {
    /// First page.
    pub start_pfn: u64,
    /// The page behind the last.
    pub last_pfn: u64,
}

/// Argument of [`SET_POLL_FILE`]: what becomes ready there cancels the run of the CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPollFile {
    /// CPU.
    pub cpu: u32,
    /// File.
    pub fd: u32,
}

/// Argument of [`SINT_SET_EVENTFD`]: what an event flag of source 7 signals.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetEventfd {
    /// File; negative: none any more.
    pub fd: i32,
    /// Flag.
    pub flag: u32,
}

/// Argument of [`SINT_PAUSE_MESSAGE_STREAM`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SintMask {
    /// Not 0: source 7 interrupts no CPU.
    pub mask: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// Argument of [`HVCALL_SETUP`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvcallSetup {
    /// Bytes of the set.
    pub bitmap_array_size: u64,
    /// Address of the set of hypercalls that are permitted.
    pub allow_bitmap_ptr: u64,
}

/// Argument of [`HVCALL`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hvcall {
    /// The control word.
    pub control: u64,
    /// Bytes of input.
    pub input_size: u64,
    /// Address of the input.
    pub input_ptr: u64,
    /// The result word is written here.
    pub status: u64,
    /// Bytes of output.
    pub output_size: u64,
    /// Address of the output.
    pub output_ptr: u64,
}

/// `mshv_vtl_cpu_context`: registers that VTL0 and VTL2 share, as VTL0 left them and will
/// find them.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuContext {
    /// General registers and, at [`GP_CR2`], CR2.
    pub gp: [u64; 16],
    /// What FXSAVE saves.
    pub fx: FxState,
}

/// What FXSAVE saves in 64-bit mode.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FxState {
    /// x87 control word.
    pub fcw: u16,
    /// Other state of the x87, without its registers.
    pub x87: [u8; 22],
    /// MXCSR.
    pub mxcsr: u32,
    /// Its bits that exist.
    pub mxcsr_mask: u32,
    /// x87 registers.
    pub st: [[u64; 2]; 8],
    /// SSE registers.
    pub xmm: [[u64; 2]; 16],
    /// Unused.
    pub reserved: [u64; 12],
}

/// The page of a CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RunPage {
    /// Not 0: VTL0 is not to be run. Whoever sees it sets it to 0.
    pub cancel: u32,
    /// Bytes of `vtl_ret_actions`.
    pub vtl_ret_action_size: u32,
    /// Zero.
    pub pad: [u32; 2],
    /// The message of the last intercept.
    pub exit_message: [u8; MESSAGE_BYTES],
    /// Registers.
    pub cpu_context: CpuContext,
    /// For a larger context.
    pub reserved: [u8; 384],
    /// What the host does on the way to VTL0.
    pub vtl_ret_actions: [u8; 256],
}

/// Offset in the VTL's file of the [`RunPage`] of `cpu`.
pub const fn run_page_offset(cpu: u16) -> u64 {
    (cpu as u64) << 12
}

/// Offset in the VTL's file of the register page of `cpu`.
pub const fn register_page_offset(cpu: u16) -> u64 {
    (1 << 16 | cpu as u64) << 12
}

const READ: u32 = 2;
const WRITE: u32 = 1;

/// As Linux numbers the requests of ioctl on x86 and arm64.
const fn number(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xb8 << 8 | number
}
