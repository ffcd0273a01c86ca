//! The local APIC: Intel SDM volume 3A chapter 11 ("SDM 11"), AMD APM volume 2 chapter 16.
//!
//! A register has one number in both modes: bits 4 to 11 of its offset in the xAPIC page,
//! and its distance from [`X2APIC_MSR_FIRST`].

use bitfield_struct::bitfield;
use open_enum::open_enum;

/// Where a processor has its xAPIC page after reset.
pub const APIC_DEFAULT_BASE: u64 = 0xfee0_0000;
/// Size in bytes of the xAPIC page.
pub const APIC_PAGE_SIZE: u64 = 0x1000;
/// MSR of the x2APIC register with number 0.
pub const X2APIC_MSR_FIRST: u32 = 0x800;
/// Last MSR that belongs to the x2APIC.
pub const X2APIC_MSR_LAST: u32 = 0x8ff;
/// The deadline of the timer, a value of the TSC.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Vectors below this one are exceptions; an APIC never delivers them.
pub const FIRST_VECTOR: u8 = 16;

/// Numbers of registers (SDM 11.4.1 table 11-1, 11.12.1.2 table 11-6).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ApicRegister {
    /// APIC id.
    ID = 0x02,
    /// Version and number of local vectors.
    VERSION = 0x03,
    /// Task priority.
    TPR = 0x08,
    /// Arbitration priority (xAPIC of old processors).
    APR = 0x09,
    /// Processor priority.
    PPR = 0x0a,
    /// End of interrupt.
    EOI = 0x0b,
    /// Remote read (xAPIC of old processors).
    RRD = 0x0c,
    /// Logical destination.
    LDR = 0x0d,
    /// Format of the logical destination (xAPIC).
    DFR = 0x0e,
    /// Spurious vector and software enable.
    SVR = 0x0f,
    /// First of eight: vectors in service.
    ISR0 = 0x10,
    /// First of eight: vectors that are level triggered.
    TMR0 = 0x18,
    /// First of eight: vectors requested.
    IRR0 = 0x20,
    /// Error status.
    ESR = 0x28,
    /// Interrupt command; in xAPIC mode its low half.
    ICR = 0x30,
    /// High half of the interrupt command (xAPIC).
    ICR_HIGH = 0x31,
    /// Local vector of the timer.
    LVT_TIMER = 0x32,
    /// Local vector of the thermal sensor.
    LVT_THERMAL = 0x33,
    /// Local vector of the performance counters.
    LVT_PERFORMANCE = 0x34,
    /// Local vector of pin LINT0.
    LVT_LINT0 = 0x35,
    /// Local vector of pin LINT1.
    LVT_LINT1 = 0x36,
    /// Local vector of APIC errors.
    LVT_ERROR = 0x37,
    /// Initial count of the timer.
    TIMER_INITIAL = 0x38,
    /// Current count of the timer.
    TIMER_CURRENT = 0x39,
    /// Divider of the timer.
    TIMER_DIVIDE = 0x3e,
    /// Interrupt to itself (x2APIC).
    SELF_IPI = 0x3f,
}

/// What an interrupt message does (SDM 11.5.1 figure 11-8, 11.6.1).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// An interrupt to each destination.
    FIXED = 0,
    /// An interrupt to one of them.
    LOWEST_PRIORITY = 1,
    /// System management interrupt.
    SMI = 2,
    /// Non-maskable interrupt.
    NMI = 4,
    /// INIT.
    INIT = 5,
    /// Start-up; the vector is a page number.
    STARTUP = 6,
    /// An interrupt whose vector an 8259 supplies.
    EXTINT = 7,
}

/// `IA32_APIC_BASE` (SDM 11.4.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ApicBase {
    _reserved1: u8,
    /// This is the bootstrap processor.
    pub bsp: bool,
    _reserved2: bool,
    /// x2APIC mode.
    pub x2apic: bool,
    /// The APIC is on.
    pub enabled: bool,
    /// Page number of the xAPIC page.
    #[bits(52)]
    pub page: u64,
}

/// The interrupt command (SDM 11.6.1 figure 11-12, 11.12.9 figure 11-28).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptCommand {
    /// Vector.
    pub vector: u8,
    /// `DeliveryMode`.
    #[bits(3)]
    pub mode: u8,
    /// The destination is logical.
    pub logical: bool,
    /// Being sent (read only, xAPIC).
    pub pending: bool,
    _reserved1: bool,
    /// Not a de-assertion.
    pub assert: bool,
    /// Level triggered; means something for INIT only.
    pub level: bool,
    #[bits(2)]
    _reserved2: u8,
    /// `DestinationShorthand`.
    #[bits(2)]
    pub shorthand: u8,
    #[bits(12)]
    _reserved3: u16,
    /// Destination: 32 bits in x2APIC mode, bits 24 to 31 of these in xAPIC mode.
    pub destination: u32,
}

impl InterruptCommand {
    /// Bits of the low half that no mode defines.
    pub const RESERVED: u64 = 0xfff3_2000;
}

/// Shorthands for destinations (SDM 11.6.1).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DestinationShorthand {
    /// None: the destination field counts.
    NONE = 0,
    /// The sender.
    MYSELF = 1,
    /// All, the sender included.
    ALL = 2,
    /// All but the sender.
    OTHERS = 3,
}

/// An entry of the local vector table (SDM 11.5.1 figure 11-8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct LocalVector {
    /// Vector.
    pub vector: u8,
    /// `DeliveryMode`.
    #[bits(3)]
    pub mode: u8,
    _reserved1: bool,
    /// Being delivered (read only).
    pub pending: bool,
    /// The pin is active when low.
    pub active_low: bool,
    /// A level interrupt waits for its EOI (read only).
    pub remote_irr: bool,
    /// The pin is level triggered.
    pub level: bool,
    /// The source does nothing.
    pub masked: bool,
    /// `TimerMode`; only in the timer's entry.
    #[bits(2)]
    pub timer_mode: u8,
    #[bits(13)]
    _reserved2: u16,
}

/// Modes of the timer (SDM 11.5.4).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TimerMode {
    /// Counts down once.
    ONE_SHOT = 0,
    /// Counts down again and again.
    PERIODIC = 1,
    /// Waits for a value of the TSC.
    TSC_DEADLINE = 2,
}

/// The spurious-interrupt vector register (SDM 11.9 figure 11-23).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SpuriousVector {
    /// Vector.
    pub vector: u8,
    /// The APIC accepts interrupts.
    pub enabled: bool,
    /// Focus processor checking is off.
    pub focus_off: bool,
    #[bits(22)]
    _reserved: u32,
}

/// Errors (SDM 11.5.3 figure 11-9).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ApicErrors {
    #[bits(5)]
    _reserved1: u8,
    /// A message with a vector below 16 was to be sent.
    pub send_illegal_vector: bool,
    /// A vector below 16 was received or raised locally.
    pub receive_illegal_vector: bool,
    /// An access to a register that does not exist (xAPIC).
    pub illegal_register: bool,
    #[bits(24)]
    _reserved2: u32,
}

const _: () = assert!(
    ApicBase::new().with_enabled(true).into_bits() == 1 << 11
        && InterruptCommand::new().with_level(true).into_bits() == 1 << 15
        && InterruptCommand::new().with_shorthand(3).into_bits() == 3 << 18
        && LocalVector::new().with_masked(true).into_bits() == 1 << 16
        && ApicErrors::new().with_illegal_register(true).into_bits() == 1 << 7
);
