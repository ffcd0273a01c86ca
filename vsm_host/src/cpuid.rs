//! CPUID as a VTL sees it: the processor's answers without what the host keeps for
//! itself or cannot switch, plus the hypervisor's own leaves (TLFS chapter 2).

mod guest;

pub(crate) use guest::is_valid_xcr0;

use crate::vtl::Vtl;
use hv_defs::cpuid::{
    Features, HV_CPUID_ENLIGHTENMENTS, HV_CPUID_FEATURES, HV_CPUID_HARDWARE, HV_CPUID_INTERFACE,
    HV_CPUID_LIMITS, HV_CPUID_VENDOR, HV_CPUID_VERSION, HV_INTERFACE, HV_VENDOR,
    PartitionPrivileges, Recommendations,
};

/// EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Last leaf that software asks hypervisors for; nothing native is there.
const HYPERVISOR_LEAVES_END: u32 = 0x4fff_ffff;

const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// Leaf 1 ECX: VMX, FMA, x2APIC, TSC deadline, XSAVE, OSXSAVE, AVX, F16C. Linux in VTL2
/// refuses to run with XSAVE: VTL0's extended state stays in the registers while VTL2
/// runs.
const LEAF1_ECX_HIDDEN: u32 = bits(&[5, 12, 21, 24, 26, 27, 28, 29]);
/// Leaf 7 EBX: TSC_ADJUST, SGX, AVX2, RDT, MPX, all of AVX-512, PT.
const LEAF7_EBX_HIDDEN: u32 = bits(&[1, 2, 5, 12, 14, 15, 16, 17, 21, 25, 26, 27, 28, 30, 31]);
/// Leaf 7 ECX: what of it needs no XSAVE and no MSR: PREFETCHWT1, UMIP, GFNI, LA57,
/// RDPID, MOVDIRI, MOVDIR64B.
const LEAF7_ECX_SHOWN: u32 = bits(&[0, 2, 8, 16, 22, 27, 28]);
/// Leaf 7 EDX: fast short REP MOV, and nothing that has an MSR.
const LEAF7_EDX_SHOWN: u32 = bits(&[4]);
/// Leaf 6 EAX: the timer of the local APIC does not stop.
const LEAF6_EAX_SHOWN: u32 = bits(&[2]);
/// Leaf 0x80000001 ECX: SVM, OSVW, IBS, XOP, SKINIT, LWP, FMA4, TCE, node id MSR,
/// performance counters.
const LEAF80000001_ECX_HIDDEN: u32 = bits(&[2, 9, 10, 11, 12, 15, 16, 17, 19, 23, 24, 26, 27, 28]);
/// Leaf 0x80000008 EBX: CLZERO, WBNOINVD.
const LEAF80000008_EBX_SHOWN: u32 = bits(&[0, 9]);

const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// VTL.
    pub vtl: Vtl,
    /// VP.
    pub vp: u32,
    /// VPs of the partition.
    pub vp_count: u32,
    /// There is no paravisor: VTL2 is a guest that knows of no VTLs.
    pub alone: bool,
    /// CR4.OSXSAVE is set.
    pub os_xsave: bool,
}

/// What `leaf` and `subleaf` show to whoever asks; `native` is the processor's CPUID.
pub fn answer(
    asker: &Asker,
    leaf: u32,
    subleaf: u32,
    native: impl Fn(u32, u32) -> Registers,
) -> Registers {
    match (leaf, asker.vtl) {
        (HV_CPUID_VENDOR..=HYPERVISOR_LEAVES_END, _) => hypervisor(leaf, asker),
        (_, Vtl::GUEST) => guest::answer(asker, leaf, subleaf, native),
        _ => paravisor(leaf, subleaf, native(leaf, subleaf)),
    }
}

/// The processor as VTL2 sees it.
fn paravisor(leaf: u32, subleaf: u32, native: Registers) -> Registers {
    let mut r = native;
    match leaf {
        1 => {
            r[ECX] = r[ECX] & !LEAF1_ECX_HIDDEN | HYPERVISOR_PRESENT;
        }
        6 => r = [r[EAX] & LEAF6_EAX_SHOWN, 0, 0, 0],
        7 if subleaf == 0 => {
            r[EAX] = 0; // no further subleaves
            r[EBX] &= !LEAF7_EBX_HIDDEN;
            r[ECX] &= LEAF7_ECX_SHOWN;
            r[EDX] &= LEAF7_EDX_SHOWN;
        }
        // Performance counters, XSAVE, resource control, SGX, tracing, key locker, LBR,
        // AMX, AVX10.
        7 | 0xa | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x19 | 0x1c | 0x1d | 0x1e | 0x23 | 0x24 => {
            r = [0; 4];
        }
        0x8000_0001 => r[ECX] &= !LEAF80000001_ECX_HIDDEN,
        // The TSC counts at one rate on all CPUs; power management is the machine's.
        0x8000_0007 => r = [0, 0, 0, 1 << 8],
        0x8000_0008 => r[EBX] &= LEAF80000008_EBX_SHOWN,
        // SVM, IBS, LWP, SEV, resource control, features with MSRs, performance counters.
        0x8000_000a | 0x8000_001b | 0x8000_001c | 0x8000_001f..=0x8000_0022 => r = [0; 4],
        _ => {}
    }
    r
}

/// Whether a leaf is one that software asks hypervisors for, and not one of those that the
/// host has.
pub fn is_unimplemented(leaf: u32) -> bool {
    (HV_CPUID_HARDWARE + 1..=HYPERVISOR_LEAVES_END).contains(&leaf)
}

/// The hypervisor's leaves. Those that are not listed are zero, which software that asks
/// without looking at the highest leaf relies on.
fn hypervisor(leaf: u32, asker: &Asker) -> Registers {
    let guest = asker.vtl == Vtl::GUEST;
    let paravisor = !guest && !asker.alone;
    match leaf {
        HV_CPUID_VENDOR => [HV_CPUID_HARDWARE, HV_VENDOR[0], HV_VENDOR[1], HV_VENDOR[2]],
        HV_CPUID_INTERFACE => [HV_INTERFACE, 0, 0, 0],
        // Build number 1 of version 0.1; only printed.
        HV_CPUID_VERSION => [1, 1, 0, 0],
        HV_CPUID_FEATURES => {
            let privileges = PartitionPrivileges::new()
                .with_access_partition_reference_counter(true)
                .with_access_hypercall(true)
                .with_access_vp_index(true)
                .with_access_reset(true)
                .with_access_reference_tsc(true)
                .with_access_frequency(true)
                .with_access_tsc_invariant(true)
                // What VTL2 has for itself and for the guest.
                .with_access_vsm(paravisor)
                .with_access_vp_registers(paravisor)
                .with_start_virtual_processor(paravisor)
                .with_access_synic(guest || paravisor)
                .with_post_messages(guest || paravisor)
                .with_signal_events(guest || paravisor)
                // What the guest's virtual APIC has, and the physical one has not.
                .with_access_synthetic_timers(guest)
                .with_access_intr_ctrl(guest)
                .into_bits();
            let features = Features::new()
                .with_frequency_msrs(true)
                .with_guest_crash_msrs(true)
                .with_direct_timers(guest)
                .into_bits();
            [privileges as u32, (privileges >> 32) as u32, 0, features]
        }
        HV_CPUID_ENLIGHTENMENTS => {
            let recommended = Recommendations::new()
                .with_no_auto_eoi(true)
                // The bit for that in the assist page saves exits; VTL2 can stop the guest
                // for long.
                .with_apic_msrs(guest)
                .with_relaxed_timing(guest)
                .into_bits();
            // Never report long spinning.
            [recommended, u32::MAX, 0, 0]
        }
        HV_CPUID_LIMITS => [asker.vp_count, asker.vp_count, 0, 0],
        // MSR bitmaps and nested paging are in use.
        HV_CPUID_HARDWARE => [1 << 1 | 1 << 3, 0, 0, 0],
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Registers = [u32::MAX; 4];

    fn asked(leaf: u32, subleaf: u32, native: Registers) -> Registers {
        let asker = Asker {
            vtl: Vtl::PARAVISOR,
            vp: 1,
            vp_count: 4,
            alone: false,
            os_xsave: false,
        };
        answer(&asker, leaf, subleaf, |_, _| native)
    }

    #[test]
    fn extended_state_is_hidden_wherever_it_shows() {
        let leaf1 = asked(1, 0, ALL);
        assert_eq!(leaf1[ECX] & bits(&[12, 26, 27, 28, 29]), 0);
        let leaf7 = asked(7, 0, ALL);
        assert_eq!(leaf7[EBX] & bits(&[5, 16, 17, 28, 30, 31]), 0);
        assert_eq!(leaf7[EAX], 0);
        assert_eq!(asked(7, 1, ALL), [0; 4]);
        assert_eq!(asked(0xd, 1, ALL), [0; 4]);
    }

    #[test]
    fn svm_is_hidden_and_the_hypervisor_shown() {
        assert_eq!(asked(0x8000_0001, 0, ALL)[ECX] & 1 << 2, 0);
        assert_eq!(asked(0x8000_000a, 0, ALL), [0; 4]);
        assert_eq!(asked(1, 0, [0; 4])[ECX], HYPERVISOR_PRESENT);
        assert_eq!(asked(0x8000_0007, 0, [0; 4])[EDX], 1 << 8);
    }

    #[test]
    fn hyper_v_leaves_are_what_linux_needs() {
        let vendor = asked(0x4000_0000, 0, ALL);
        assert!((0x4000_0005..0x4000_000a).contains(&vendor[EAX]));
        let features = asked(0x4000_0003, 0, ALL);
        // Hypercalls, VP index, frequencies, reference TSC, invariant TSC.
        assert_eq!(features[EAX] & 0x8a60, 0x8a60);
        // No partition creation, extended hypercalls or isolation.
        assert_eq!(features[EBX] & (1 | 1 << 20 | 1 << 22), 0);
        assert_eq!(features[EDX] & (1 << 8 | 1 << 10), 1 << 8 | 1 << 10);
        assert_eq!(asked(0x4000_0005, 0, ALL)[EAX], 4);
        // Read without a check of the highest leaf: no confidential VMBus.
        assert_eq!(asked(0x4000_0082, 0, ALL), [0; 4]);
        assert_eq!(asked(0x4000_0100, 0, ALL), [0; 4]);
    }

    #[test]
    fn guest_without_paravisor_is_told_of_no_vtls() {
        let alone = Asker {
            vtl: Vtl::PARAVISOR,
            vp: 0,
            vp_count: 1,
            alone: true,
            os_xsave: false,
        };
        let features = answer(&alone, 0x4000_0003, 0, |_, _| ALL);
        assert_eq!(features[EBX], 0);
        // Clocks are what it has a hypervisor for.
        let synic = 1 << 2;
        assert_eq!(features[EAX] | synic, asked(0x4000_0003, 0, ALL)[EAX]);
        assert_eq!(features[EAX] & synic, 0);
    }

    #[test]
    fn other_leaves_are_the_processors() {
        assert_eq!(asked(0xb, 1, [1, 2, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(asked(0x8000_0002, 0, [1, 2, 3, 4]), [1, 2, 3, 4]);
    }
}
