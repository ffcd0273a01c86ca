//! Hypervisor CPUID leaves (TLFS chapter 2 "Feature and Interface Discovery").

use bitfield_struct::bitfield;

/// Highest leaf and vendor.
pub const HV_CPUID_VENDOR: u32 = 0x4000_0000;
/// Interface signature.
pub const HV_CPUID_INTERFACE: u32 = 0x4000_0001;
/// Version.
pub const HV_CPUID_VERSION: u32 = 0x4000_0002;
/// Privileges and features.
pub const HV_CPUID_FEATURES: u32 = 0x4000_0003;
/// Recommendations.
pub const HV_CPUID_ENLIGHTENMENTS: u32 = 0x4000_0004;
/// Implementation limits.
pub const HV_CPUID_LIMITS: u32 = 0x4000_0005;
/// Hardware features in use.
pub const HV_CPUID_HARDWARE: u32 = 0x4000_0006;
/// Isolation configuration.
pub const HV_CPUID_ISOLATION: u32 = 0x4000_000c;

/// "Microsoft Hv" in EBX, ECX, EDX.
pub const HV_VENDOR: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];
/// "Hv#1".
pub const HV_INTERFACE: u32 = 0x3123_7648;

/// `HV_PARTITION_PRIVILEGE_MASK`: EAX (low) and EBX (high) of `HV_CPUID_FEATURES`.
#[bitfield(u64)]
pub struct PartitionPrivileges {
    /// VP run time MSR.
    pub access_vp_run_time: bool,
    /// Partition reference counter MSR.
    pub access_partition_reference_counter: bool,
    /// SynIC MSRs.
    pub access_synic: bool,
    /// Synthetic timer MSRs.
    pub access_synthetic_timers: bool,
    /// APIC MSRs and VP assist page.
    pub access_intr_ctrl: bool,
    /// Guest OS id and hypercall page MSRs.
    pub access_hypercall: bool,
    /// VP index MSR.
    pub access_vp_index: bool,
    /// Reset MSR.
    pub access_reset: bool,
    /// Statistics MSRs.
    pub access_stats: bool,
    /// Reference TSC page MSR.
    pub access_reference_tsc: bool,
    /// Guest idle MSR.
    pub access_guest_idle: bool,
    /// TSC and APIC frequency MSRs.
    pub access_frequency: bool,
    #[bits(3)]
    _reserved1: u8,
    /// TSC invariant control MSR.
    pub access_tsc_invariant: bool,
    _reserved2: u16,
    #[bits(4)]
    _ebx_low: u8,
    /// Post messages.
    pub post_messages: bool,
    /// Signal events.
    pub signal_events: bool,
    #[bits(10)]
    _ebx_middle: u16,
    /// VSM hypercalls and registers.
    pub access_vsm: bool,
    /// Get/set VP registers.
    pub access_vp_registers: bool,
    #[bits(3)]
    _reserved3: u8,
    /// Start virtual processors.
    pub start_virtual_processor: bool,
    /// The partition is isolated.
    pub isolation: bool,
    #[bits(9)]
    _reserved4: u16,
}

/// EDX of `HV_CPUID_FEATURES`.
#[bitfield(u32)]
pub struct Features {
    _reserved1: u8,
    /// The frequency MSRs exist.
    pub frequency_msrs: bool,
    _reserved2: bool,
    /// The guest crash MSRs exist.
    pub guest_crash_msrs: bool,
    _reserved3: u8,
    /// Synthetic timers can raise interrupts without a message.
    pub direct_timers: bool,
    #[bits(12)]
    _reserved4: u32,
}

/// EAX of `HV_CPUID_ENLIGHTENMENTS`: what is recommended.
#[bitfield(u32)]
pub struct Recommendations {
    #[bits(3)]
    _reserved1: u8,
    /// End interrupts, and send them, by the hypervisor's MSRs.
    pub apic_msrs: bool,
    /// Reset by the hypervisor's MSR.
    pub reset_msr: bool,
    /// Do not watch for delays: the VP may not run for long.
    pub relaxed_timing: bool,
    #[bits(3)]
    _reserved2: u8,
    /// Do not use automatic end of interrupt.
    pub no_auto_eoi: bool,
    #[bits(22)]
    _reserved3: u32,
}

const _: () = assert!(
    PartitionPrivileges::new()
        .with_access_frequency(true)
        .into_bits()
        == 1 << 11
        && PartitionPrivileges::new()
            .with_access_tsc_invariant(true)
            .into_bits()
            == 1 << 15
        && PartitionPrivileges::new().with_access_vsm(true).into_bits() == 1 << 48
        && PartitionPrivileges::new().with_isolation(true).into_bits() == 1 << 54
        && PartitionPrivileges::new()
            .with_signal_events(true)
            .into_bits()
            == 1 << 37
        && Features::new().with_guest_crash_msrs(true).into_bits() == 1 << 10
        && Features::new().with_direct_timers(true).into_bits() == 1 << 19
        && Recommendations::new().with_no_auto_eoi(true).into_bits() == 1 << 9
);
