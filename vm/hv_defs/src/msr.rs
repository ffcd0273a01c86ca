//! Synthetic MSRs (TLFS appendix "Hypervisor Synthetic MSRs").

use bitfield_struct::bitfield;

/// Identity of the guest OS; enables the hypercall page when not zero.
pub const HV_X64_MSR_GUEST_OS_ID: u32 = 0x4000_0000;
/// Place of the hypercall page.
pub const HV_X64_MSR_HYPERCALL: u32 = 0x4000_0001;
/// Index of this VP.
pub const HV_X64_MSR_VP_INDEX: u32 = 0x4000_0002;
/// Writing 1 resets the machine.
pub const HV_X64_MSR_RESET: u32 = 0x4000_0003;
/// Partition reference counter, 100 ns units.
pub const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
/// Place of the reference TSC page.
pub const HV_X64_MSR_REFERENCE_TSC: u32 = 0x4000_0021;
/// TSC frequency in Hz.
pub const HV_X64_MSR_TSC_FREQUENCY: u32 = 0x4000_0022;
/// Local APIC timer frequency in Hz.
pub const HV_X64_MSR_APIC_FREQUENCY: u32 = 0x4000_0023;
/// End of interrupt.
pub const HV_X64_MSR_EOI: u32 = 0x4000_0070;
/// Interrupt command, high and low half.
pub const HV_X64_MSR_ICR: u32 = 0x4000_0071;
/// Task priority.
pub const HV_X64_MSR_TPR: u32 = 0x4000_0072;
/// Place of the VP assist page.
pub const HV_X64_MSR_VP_ASSIST_PAGE: u32 = 0x4000_0073;
/// SynIC control.
pub const HV_X64_MSR_SCONTROL: u32 = 0x4000_0080;
/// SynIC version.
pub const HV_X64_MSR_SVERSION: u32 = 0x4000_0081;
/// Place of the page of event flags.
pub const HV_X64_MSR_SIEFP: u32 = 0x4000_0082;
/// Place of the page of messages.
pub const HV_X64_MSR_SIMP: u32 = 0x4000_0083;
/// End of message.
pub const HV_X64_MSR_EOM: u32 = 0x4000_0084;
/// First synthetic interrupt source.
pub const HV_X64_MSR_SINT0: u32 = 0x4000_0090;
/// Last synthetic interrupt source.
pub const HV_X64_MSR_SINT15: u32 = 0x4000_009f;
/// Configuration of the first synthetic timer; its count, and the other timers, follow.
pub const HV_X64_MSR_STIMER0_CONFIG: u32 = 0x4000_00b0;
/// Count of the last synthetic timer.
pub const HV_X64_MSR_STIMER3_COUNT: u32 = 0x4000_00b7;
/// First guest crash parameter; P1 to P4 follow.
pub const HV_X64_MSR_CRASH_P0: u32 = 0x4000_0100;
/// Last guest crash parameter.
pub const HV_X64_MSR_CRASH_P4: u32 = 0x4000_0104;
/// Guest crash control: says that P0 to P4 (and a message) are complete.
pub const HV_X64_MSR_CRASH_CTL: u32 = 0x4000_0105;
/// Says that the guest copes with an invariant TSC.
pub const HV_X64_MSR_TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// First number of the range that belongs to the hypervisor.
pub const HV_X64_MSR_SYNTHETIC_FIRST: u32 = 0x4000_0000;
/// Last number of the range that belongs to the hypervisor.
pub const HV_X64_MSR_SYNTHETIC_LAST: u32 = 0x4000_1fff;

/// Layout of the MSRs that place a page: hypercall, reference TSC, VP assist.
#[bitfield(u64)]
pub struct OverlayPage {
    /// The page is in use.
    pub enabled: bool,
    /// No further change is allowed (hypercall page only).
    pub locked: bool,
    #[bits(10)]
    pub reserved: u16,
    /// GPA page number.
    #[bits(52)]
    pub page_number: u64,
}

/// `HV_X64_MSR_CRASH_CTL`.
#[bitfield(u64)]
pub struct CrashControl {
    #[bits(58)]
    _reserved: u64,
    /// The crash comes from an environment that has no crash dump yet.
    pub pre_os_id_low: bool,
    #[bits(2)]
    _pre_os_id_high: u8,
    /// No crash dump will be written.
    pub no_crash_dump: bool,
    /// P3 holds the GPA and P4 the length in bytes of a text.
    pub crash_message: bool,
    /// The guest reports a crash.
    pub crash_notify: bool,
}

const _: () = assert!(CrashControl::new().with_crash_notify(true).into_bits() == 1 << 63);
const _: () = assert!(CrashControl::new().with_crash_message(true).into_bits() == 1 << 62);
