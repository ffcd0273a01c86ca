//! The synthetic interrupt controller and synthetic timers (TLFS chapters "Virtual
//! Interrupt Control", "Inter-Partition Communication" and "Timers").

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Synthetic interrupt sources of a VP.
pub const HV_SYNIC_SINT_COUNT: usize = 16;
/// Synthetic timers of a VP.
pub const HV_SYNIC_STIMER_COUNT: usize = 4;
/// What register `SVERSION` says.
pub const HV_SYNIC_VERSION: u32 = 1;
/// Event flags of a source.
pub const HV_EVENT_FLAGS_COUNT: u16 = 2048;
/// Size in bytes of a message slot, and of the event flags of a source.
pub const HV_MESSAGE_SIZE: usize = 256;
/// Bytes of payload in a message.
pub const HV_MESSAGE_PAYLOAD_SIZE: usize = 240;

/// `HV_SYNIC_SINT`: a source.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SyntheticSource {
    /// Interrupt vector.
    pub vector: u8,
    preserved1: u8,
    /// No interrupts.
    pub masked: bool,
    /// Interrupts end themselves when they are delivered.
    pub auto_eoi: bool,
    /// Messages and events arrive, interrupts do not.
    pub polling: bool,
    /// The arrival is told to a higher VTL by a message.
    pub as_intercept: bool,
    /// The interrupt is recorded for a higher VTL instead of being delivered.
    pub proxy: bool,
    #[bits(43)]
    preserved2: u64,
}

/// `HV_X64_MSR_STIMER_CONFIG`: a timer.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TimerConfig {
    /// It runs.
    pub enabled: bool,
    /// It repeats.
    pub periodic: bool,
    /// Expirations that could not be delivered are skipped.
    pub lazy: bool,
    /// Writing the count enables it.
    pub auto_enable: bool,
    /// Vector in direct mode.
    pub vector: u8,
    /// It raises an interrupt instead of sending a message.
    pub direct: bool,
    #[bits(3)]
    _reserved1: u8,
    /// Source that its messages go to.
    #[bits(4)]
    pub sint: u8,
    #[bits(44)]
    _reserved2: u64,
}

impl TimerConfig {
    /// Bits that must be zero.
    pub const RESERVED: u64 = !0xf_1fff;
}

/// `HV_MESSAGE_TYPE`: those of the SynIC, and those of [`crate::intercept`].
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum HvMessageType {
    /// The slot is empty.
    NONE = 0,
    /// Access to an address that the VTL does not have.
    UNMAPPED_GPA = 0x8000_0000,
    /// Access that a protection forbids.
    GPA_INTERCEPT = 0x8000_0001,
    /// A synthetic timer has expired.
    TIMER_EXPIRED = 0x8000_0010,
    /// The registers contradict each other; the payload names one.
    INVALID_VP_REGISTER_VALUE = 0x8000_0020,
    /// The VP can only be reset: triple fault.
    UNRECOVERABLE_EXCEPTION = 0x8000_0021,
    /// A hypercall that the higher VTL has asked for.
    HYPERCALL_INTERCEPT = 0x8000_0050,
    /// A source that was asked for can take a message.
    SYNIC_SINT_DELIVERABLE = 0x8000_0062,
    /// IN, OUT, INS or OUTS.
    X64_IO_PORT_INTERCEPT = 0x8001_0000,
    /// RDMSR or WRMSR.
    X64_MSR_INTERCEPT = 0x8001_0001,
    /// CPUID.
    X64_CPUID_INTERCEPT = 0x8001_0002,
    /// An exception that the higher VTL has asked for.
    X64_EXCEPTION_INTERCEPT = 0x8001_0003,
    /// The lower VTL has ended a level-triggered interrupt.
    X64_APIC_EOI = 0x8001_0004,
    /// HLT.
    X64_HALT = 0x8001_0007,
    /// The VP can take an interrupt now.
    X64_INTERRUPTION_DELIVERABLE = 0x8001_0008,
}

/// `HV_MESSAGE_FLAGS`.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvMessageFlags {
    /// Another message waits for this slot: write to EOM when it is empty.
    pub message_pending: bool,
    #[bits(7)]
    _reserved: u8,
}

/// `HV_MESSAGE_HEADER`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvMessageHeader {
    /// Type; zero means that the slot is empty.
    pub message_type: HvMessageType,
    /// Bytes of payload that count.
    pub payload_size: u8,
    /// Flags.
    pub flags: HvMessageFlags,
    /// Zero.
    pub reserved: [u8; 2],
    /// Port that the message came through, or the sender.
    pub sender: u64,
}

/// `HV_MESSAGE`: the content of a slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvMessage {
    /// Header.
    pub header: HvMessageHeader,
    /// Payload.
    pub payload: [u8; HV_MESSAGE_PAYLOAD_SIZE],
}

impl HvMessage {
    /// A message without sender. Of a payload that does not fit, what fits.
    pub fn new(message_type: HvMessageType, payload: &[u8]) -> Self {
        let size = payload.len().min(HV_MESSAGE_PAYLOAD_SIZE);
        let mut message = Self {
            header: HvMessageHeader {
                message_type,
                payload_size: size as u8,
                flags: HvMessageFlags::new(),
                reserved: [0; 2],
                sender: 0,
            },
            payload: [0; HV_MESSAGE_PAYLOAD_SIZE],
        };
        message.payload[..size].copy_from_slice(&payload[..size]);
        message
    }
}

/// `HV_TIMER_MESSAGE_PAYLOAD`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TimerMessagePayload {
    /// Number of the timer.
    pub timer: u32,
    /// Zero.
    pub reserved: u32,
    /// When it expired, in 100 ns.
    pub expiration_time: u64,
    /// When the message was written, in 100 ns.
    pub delivery_time: u64,
}

/// Input of `POST_MESSAGE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PostMessage {
    /// Connection.
    pub connection_id: u32,
    /// Must be zero.
    pub rsvd: u32,
    /// Type; not zero, bit 31 clear.
    pub message_type: u32,
    /// Bytes of payload, at most 240.
    pub payload_size: u32,
    /// Payload.
    pub payload: [u8; HV_MESSAGE_PAYLOAD_SIZE],
}

/// Input of `SIGNAL_EVENT`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalEvent {
    /// Connection.
    pub connection_id: u32,
    /// Flag, relative to the port's first.
    pub flag_number: u16,
    /// Must be zero.
    pub rsvd: u16,
}

/// Input of `POST_MESSAGE_DIRECT`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PostMessageDirect {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// VP.
    pub vp_index: u32,
    /// VTL, a plain number.
    pub vtl: u8,
    /// Must be zero.
    pub rsvd1: [u8; 3],
    /// Source.
    pub sint: u8,
    /// Must be zero.
    pub rsvd2: [u8; 3],
    /// Message, of any type but zero. Begins at offset 20, so its parts are not aligned.
    pub message: [u8; HV_MESSAGE_SIZE],
    /// Not part of the input: rounds the size up to a multiple of 8.
    pub padding: [u8; 4],
}

/// Input of `SIGNAL_EVENT_DIRECT`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalEventDirect {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// VP.
    pub vp_index: u32,
    /// VTL, a plain number.
    pub vtl: u8,
    /// Source.
    pub sint: u8,
    /// Flag.
    pub flag_number: u16,
}

/// Output of `SIGNAL_EVENT_DIRECT`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalEventDirectOutput {
    /// 1 if the flag was clear before.
    pub newly_signaled: u8,
    /// Zero.
    pub rsvd: [u8; 7],
}

/// `HV_INTERRUPT_TYPE` of x64.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum HvInterruptType {
    /// To each destination.
    FIXED = 0,
    /// To one of them.
    LOWEST_PRIORITY = 1,
    /// System management interrupt.
    SMI = 2,
    /// Remote read.
    REMOTE_READ = 3,
    /// Non-maskable interrupt.
    NMI = 4,
    /// INIT.
    INIT = 5,
    /// Start-up.
    SIPI = 6,
    /// Interrupt of an 8259.
    EXTINT = 7,
    /// Pin LINT0.
    LOCAL_INT0 = 8,
    /// Pin LINT1.
    LOCAL_INT1 = 9,
}

/// Flags of `HV_INTERRUPT_CONTROL`.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvInterruptFlags {
    /// Level triggered: its end will be told.
    pub level_triggered: bool,
    /// The destination is logical.
    pub logical_destination: bool,
    #[bits(30)]
    reserved: u32,
}

impl HvInterruptFlags {
    /// True if every bit that the TLFS reserves is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// Input of `ASSERT_VIRTUAL_INTERRUPT`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AssertVirtualInterrupt {
    /// Partition; `HV_PARTITION_ID_SELF`.
    pub partition_id: u64,
    /// What it does.
    pub interrupt_type: HvInterruptType,
    /// How.
    pub flags: HvInterruptFlags,
    /// APIC id, or a set of them.
    pub destination: u64,
    /// Vector.
    pub vector: u32,
    /// VTL, a plain number.
    pub target_vtl: u8,
    /// Must be zero.
    pub rsvd: [u8; 3],
}

const _: () = assert!(size_of::<HvMessage>() == HV_MESSAGE_SIZE);
const _: () = assert!(size_of::<PostMessage>() == 256);
const _: () = assert!(size_of::<PostMessageDirect>() == 280);
const _: () = assert!(core::mem::offset_of!(PostMessageDirect, message) == 20);
const _: () = assert!(size_of::<SignalEvent>() == 8);
const _: () = assert!(size_of::<SignalEventDirect>() == 16);
const _: () = assert!(size_of::<AssertVirtualInterrupt>() == 32);
const _: () = assert!(
    SyntheticSource::new().with_proxy(true).into_bits() == 1 << 20
        && TimerConfig::new().with_direct(true).into_bits() == 1 << 12
        && TimerConfig::new().with_sint(1).into_bits() == 1 << 16
);
