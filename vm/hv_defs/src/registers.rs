//! Register names and the name/value pairs of the register hypercalls
//! (TLFS "Virtual Processor Registers").

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HV_REGISTER_NAME`, the subset that this project uses.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HvRegisterName {
    /// [`InternalActivity`].
    INTERNAL_ACTIVITY_STATE = 0x0000_0004,
    /// [`PendingInterruption`].
    PENDING_INTERRUPTION = 0x0001_0002,
    /// [`InterruptState`].
    INTERRUPT_STATE = 0x0001_0003,
    /// [`PendingEvent`].
    PENDING_EVENT0 = 0x0001_0004,
    /// Another event; only nested hypervisors use it.
    PENDING_EVENT1 = 0x0001_0005,
    /// [`DeliverabilityNotifications`].
    DELIVERABILITY_NOTIFICATIONS = 0x0001_0006,
    /// Place of the hypercall page.
    HYPERCALL = 0x0009_0001,
    /// Index of the VP.
    VP_INDEX = 0x0009_0003,
    /// Place of the VP assist page.
    VP_ASSIST_PAGE = 0x0009_0013,
    /// Place of the reference TSC page.
    REFERENCE_TSC = 0x0009_0017,
    /// Place of the register page.
    REG_PAGE = 0x0009_001c,
    /// First synthetic interrupt source.
    SINT0 = 0x000a_0000,
    /// Last synthetic interrupt source.
    SINT15 = 0x000a_000f,
    /// SynIC control.
    SCONTROL = 0x000a_0010,
    /// SynIC version.
    SVERSION = 0x000a_0011,
    /// Place of the page of event flags.
    SIEFP = 0x000a_0012,
    /// Place of the page of messages.
    SIMP = 0x000a_0013,
    /// End of message.
    EOM = 0x000a_0014,
    /// Configuration of the first synthetic timer; its count, and the other timers, follow.
    STIMER0_CONFIG = 0x000b_0000,
    /// Count of the last synthetic timer.
    STIMER3_COUNT = 0x000b_0007,
    /// `vsm::VsmCodePageOffsets`.
    VSM_CODE_PAGE_OFFSETS = 0x000d_0002,
    /// `vsm::VsmVpStatus`.
    VSM_VP_STATUS = 0x000d_0003,
    /// `vsm::VsmPartitionStatus`.
    VSM_PARTITION_STATUS = 0x000d_0004,
    /// `vsm::VsmCapabilities`.
    VSM_CAPABILITIES = 0x000d_0006,
    /// `vsm::VsmPartitionConfig`.
    VSM_PARTITION_CONFIG = 0x000d_0007,
    /// Guest OS identity (aarch64 and x64).
    GUEST_OS_ID = 0x0009_0002,
    /// Partition reference counter, 100 ns units (aarch64, where it is no MSR).
    TIME_REF_COUNT = 0x0009_0004,
    /// First guest crash parameter; P1 to P4 follow.
    GUEST_CRASH_P0 = 0x0000_0210,
    /// Guest crash control.
    GUEST_CRASH_CTL = 0x0000_0215,
    /// Accumulator.
    RAX = 0x0002_0000,
    /// RCX.
    RCX = 0x0002_0001,
    /// RDX.
    RDX = 0x0002_0002,
    /// RBX.
    RBX = 0x0002_0003,
    /// Stack pointer.
    RSP = 0x0002_0004,
    /// RBP.
    RBP = 0x0002_0005,
    /// RSI.
    RSI = 0x0002_0006,
    /// RDI.
    RDI = 0x0002_0007,
    /// R8.
    R8 = 0x0002_0008,
    /// R9.
    R9 = 0x0002_0009,
    /// R10.
    R10 = 0x0002_000a,
    /// R11.
    R11 = 0x0002_000b,
    /// R12.
    R12 = 0x0002_000c,
    /// R13.
    R13 = 0x0002_000d,
    /// R14.
    R14 = 0x0002_000e,
    /// R15.
    R15 = 0x0002_000f,
    /// Instruction pointer.
    RIP = 0x0002_0010,
    /// Flags.
    RFLAGS = 0x0002_0011,
    /// CR0.
    CR0 = 0x0004_0000,
    /// CR2.
    CR2 = 0x0004_0001,
    /// CR3.
    CR3 = 0x0004_0002,
    /// CR4.
    CR4 = 0x0004_0003,
    /// CR8.
    CR8 = 0x0004_0004,
    /// XCR0.
    XFEM = 0x0004_0005,
    /// DR0; DR1 to DR3 follow.
    DR0 = 0x0005_0000,
    /// DR3.
    DR3 = 0x0005_0003,
    /// DR6.
    DR6 = 0x0005_0004,
    /// DR7.
    DR7 = 0x0005_0005,
    /// ES.
    ES = 0x0006_0000,
    /// CS.
    CS = 0x0006_0001,
    /// SS.
    SS = 0x0006_0002,
    /// DS.
    DS = 0x0006_0003,
    /// FS.
    FS = 0x0006_0004,
    /// GS.
    GS = 0x0006_0005,
    /// LDTR.
    LDTR = 0x0006_0006,
    /// TR.
    TR = 0x0006_0007,
    /// IDTR.
    IDTR = 0x0007_0000,
    /// GDTR.
    GDTR = 0x0007_0001,
    /// EFER.
    EFER = 0x0008_0001,
    /// MSR KERNEL_GS_BASE.
    KERNEL_GS_BASE = 0x0008_0002,
    /// IA32_APIC_BASE.
    APIC_BASE = 0x0008_0003,
    /// IA32_PAT.
    PAT = 0x0008_0004,
    /// MSR SYSENTER_CS.
    SYSENTER_CS = 0x0008_0005,
    /// MSR SYSENTER_EIP.
    SYSENTER_EIP = 0x0008_0006,
    /// MSR SYSENTER_ESP.
    SYSENTER_ESP = 0x0008_0007,
    /// MSR STAR.
    STAR = 0x0008_0008,
    /// MSR LSTAR.
    LSTAR = 0x0008_0009,
    /// MSR CSTAR.
    CSTAR = 0x0008_000a,
    /// MSR SFMASK.
    SFMASK = 0x0008_000b,
    /// MSR 0x2ff (default memory type); the names up to `MTRR_LAST` are the other MTRRs.
    MTRR_DEF_TYPE = 0x0008_000e,
    /// Last of the MTRRs.
    MTRR_LAST = 0x0008_007a,
}

/// `HV_INTERNAL_ACTIVITY_REGISTER`: why a VP does not execute.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InternalActivity {
    /// It waits for a start-up message.
    pub startup_suspend: bool,
    /// It has halted.
    pub halt_suspend: bool,
    /// It is idle (the guest idle register).
    pub idle_suspend: bool,
    #[bits(61)]
    reserved: u64,
}

impl InternalActivity {
    /// True if every bit that is not above is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// Types of a [`PendingInterruption`].
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum InterruptionType {
    /// External interrupt.
    INTERRUPT = 0,
    /// Non-maskable interrupt.
    NMI = 2,
    /// Exception.
    EXCEPTION = 3,
    /// INT n.
    SOFTWARE_INTERRUPT = 4,
    /// INT1.
    PRIVILEGED_SOFTWARE_EXCEPTION = 5,
    /// INT3 or INTO.
    SOFTWARE_EXCEPTION = 6,
}

/// `HV_X64_PENDING_INTERRUPTION_REGISTER`: an event that the VP takes when it runs next.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PendingInterruption {
    /// There is one.
    pub pending: bool,
    /// [`InterruptionType`].
    #[bits(3)]
    pub kind: u8,
    /// It pushes an error code.
    pub deliver_error_code: bool,
    /// Bytes of the instruction, for software interrupts and exceptions.
    #[bits(4)]
    pub instruction_length: u8,
    /// The event is for a nested guest.
    pub nested: bool,
    #[bits(6)]
    reserved: u8,
    /// Vector.
    pub vector: u16,
    /// Error code.
    pub error_code: u32,
}

impl PendingInterruption {
    /// True if every bit that is not above is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// `HV_X64_INTERRUPT_STATE_REGISTER`: what holds interrupts back.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptState {
    /// The instruction after STI or a load of SS.
    pub interrupt_shadow: bool,
    /// An NMI is being handled.
    pub nmi_masked: bool,
    #[bits(62)]
    reserved: u64,
}

impl InterruptState {
    /// True if every bit that is not above is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// `HV_X64_PENDING_EVENT_TYPE`: an exception.
pub const PENDING_EVENT_EXCEPTION: u8 = 0;
/// `HV_X64_PENDING_EVENT_TYPE`: an interrupt of an 8259, which no APIC holds back.
pub const PENDING_EVENT_EXT_INT: u8 = 5;

/// `HV_X64_PENDING_EVENT`, the lower half of its 128 bits. The upper half is the
/// parameter of an exception (CR2, DR6), else zero.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PendingEvent {
    /// There is one.
    pub pending: bool,
    /// [`PENDING_EVENT_EXCEPTION`] or [`PENDING_EVENT_EXT_INT`].
    #[bits(3)]
    pub kind: u8,
    #[bits(4)]
    _reserved: u8,
    /// Interrupt: its vector. Exception: bit 0 says that there is an error code.
    pub vector_or_flags: u8,
    /// Exception: its vector.
    pub exception_vector: u16,
    /// Exception: its error code.
    pub error_code: u32,
}

/// `HV_DELIVERABILITY_NOTIFICATIONS_REGISTER`: what a higher VTL wants to be told.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeliverabilityNotifications {
    /// An NMI can be delivered.
    pub nmi: bool,
    /// An interrupt can be delivered.
    pub interrupt: bool,
    /// Of this class; 0: of any.
    #[bits(4)]
    pub interrupt_priority: u8,
    #[bits(42)]
    reserved: u64,
    /// A message can be delivered to these sources, as a bit set.
    pub sints: u16,
}

impl DeliverabilityNotifications {
    /// True if every bit that is not above is zero.
    pub const fn reserved_bits_are_zero(self) -> bool {
        self.reserved() == 0
    }
}

/// `HV_REGISTER_ASSOC`: one element of `SET_VP_REGISTERS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HvRegisterAssoc {
    /// `HvRegisterName`.
    pub name: u32,
    /// Must be zero.
    pub pad: [u32; 3],
    /// The value, low part first.
    pub value: [u64; 2],
}

const _: () = assert!(size_of::<HvRegisterAssoc>() == 32);
const _: () = assert!(
    PendingInterruption::new().with_vector(1).into_bits() == 1 << 16
        && PendingInterruption::new().with_error_code(1).into_bits() == 1 << 32
        && DeliverabilityNotifications::new().with_sints(1).into_bits() == 1 << 48
);
