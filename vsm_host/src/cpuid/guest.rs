//! The processor as the guest in VTL0 sees it: one thread per core, all cores in one
//! package, APIC ids from 0 on, a local APIC of the host's, and extended state, which
//! VTL2 leaves alone.

use super::{
    Asker, EAX, EBX, ECX, EDX, HYPERVISOR_PRESENT, LEAF7_ECX_SHOWN, LEAF7_EDX_SHOWN,
    LEAF80000001_ECX_HIDDEN, LEAF80000008_EBX_SHOWN, Registers, bits,
};

/// Leaf 1 ECX: 64-bit debug store, MONITOR, its CPL qualification, VMX, SMX, SpeedStep,
/// thermal monitor, silicon debug, task priority messages, performance capabilities,
/// direct cache access.
const LEAF1_ECX_HIDDEN: u32 = bits(&[2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 18]);
/// x2APIC and TSC deadline.
const LEAF1_ECX_OFFERED: u32 = bits(&[21, 24]);
const LEAF1_ECX_XSAVE: u32 = bits(&[26]);
const LEAF1_ECX_OSXSAVE: u32 = bits(&[27]);
/// Leaf 1 EDX: debug store, thermal control and monitors, pending break.
const LEAF1_EDX_HIDDEN: u32 = bits(&[21, 22, 29, 31]);
/// Leaf 1 EDX: more than one APIC id in the package.
const LEAF1_EDX_MANY: u32 = bits(&[28]);

/// Leaf 7 EBX: TSC_ADJUST, SGX, RDT, MPX, PT.
const LEAF7_EBX_HIDDEN: u32 = bits(&[1, 2, 12, 14, 15, 25]);
/// Leaf 7 ECX, beside what VTL2 sees: vector instructions.
const LEAF7_ECX_VECTORS: u32 = bits(&[1, 6, 9, 10, 11, 12, 14]);
/// Leaf 7 ECX: 57-bit addresses, which VTL2 does not set registers to.
const LEAF7_ECX_LA57: u32 = bits(&[16]);
/// Leaf 7 EDX, beside what VTL2 sees: vector instructions.
const LEAF7_EDX_VECTORS: u32 = bits(&[2, 3, 8, 23]);
/// The timer of the local APIC does not stop.
const LEAF6_EAX: u32 = bits(&[2]);

/// Extended state that the guest may use: x87, SSE, AVX, AVX-512. Not MPX, protection
/// keys, tracing, shadow stacks and tiles, which have MSRs or state that VTL2 would change.
pub(crate) const XSTATE: u32 = bits(&[0, 1, 2, 5, 6, 7]);
/// Leaf 0xd, subleaf 1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX 1.
const LEAFD_1_EAX_SHOWN: u32 = bits(&[0, 1, 2]);
/// x87, SSE and header of the XSAVE area.
const XSAVE_FIRST_PART: u32 = 576;

/// Leaf 0x80000001 ECX: APICs of other cores follow those of threads.
const LEAF80000001_ECX_CORES: u32 = bits(&[1]);

/// Types of levels of leaf 0xb.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// Whether the guest may set XCR0 to `value` where leaf 0xd offers `offered`.
pub(crate) fn is_valid_xcr0(offered: u32, value: u64) -> bool {
    const X87: u64 = 1 << 0;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const AVX512: u64 = 7 << 5;
    let implies = |parts: u64, others: u64| value & parts == 0 || value & others == others;
    let possible = u64::from(offered & XSTATE) | X87;
    value & !possible == 0 && value & X87 != 0 && implies(AVX, SSE) && implies(AVX512, AVX512 | AVX)
}

/// See [`super::answer`].
pub(super) fn answer(
    asker: &Asker,
    leaf: u32,
    subleaf: u32,
    native: impl Fn(u32, u32) -> Registers,
) -> Registers {
    let mut r = native(leaf, subleaf);
    let id = asker.vp;
    let count = asker.vp_count;
    match leaf {
        1 => {
            r[EBX] = r[EBX] & 0xffff | count.min(0xff) << 16 | (id & 0xff) << 24;
            r[ECX] = r[ECX] & !(LEAF1_ECX_HIDDEN | LEAF1_ECX_OSXSAVE)
                | LEAF1_ECX_OFFERED
                | HYPERVISOR_PRESENT;
            if asker.os_xsave && r[ECX] & LEAF1_ECX_XSAVE != 0 {
                r[ECX] |= LEAF1_ECX_OSXSAVE;
            }
            r[EDX] &= !(LEAF1_EDX_HIDDEN | LEAF1_EDX_MANY);
            if count > 1 {
                r[EDX] |= LEAF1_EDX_MANY;
            }
        }
        4 => {
            r[EAX] = share(r[EAX], count);
            if r[EAX] & 0x1f != 0 {
                r[EAX] = r[EAX] & 0x03ff_ffff | (count - 1).min(0x3f) << 26;
            }
        }
        6 => r = [LEAF6_EAX, 0, 0, 0],
        7 if subleaf == 0 => {
            r[EAX] = 0; // no further subleaves
            r[EBX] &= !LEAF7_EBX_HIDDEN;
            r[ECX] &= LEAF7_ECX_SHOWN & !LEAF7_ECX_LA57 | LEAF7_ECX_VECTORS;
            r[EDX] &= LEAF7_EDX_SHOWN | LEAF7_EDX_VECTORS;
        }
        0xb => r = topology(subleaf, id, count),
        0xd => r = xsave(subleaf, r, native),
        // Performance counters, resource control, SGX, tracing, key locker, LBR, AMX, more
        // topology, AVX10.
        5 | 7 | 0xa | 0xf | 0x10 | 0x12 | 0x14 | 0x19 | 0x1c | 0x1d | 0x1e | 0x1f | 0x23 | 0x24 => {
            r = [0; 4]
        }
        0x8000_0001 => {
            r[ECX] &= !(LEAF80000001_ECX_HIDDEN | LEAF80000001_ECX_CORES);
            if count > 1 {
                r[ECX] |= LEAF80000001_ECX_CORES;
            }
        }
        // The TSC counts at one rate on all CPUs; power management is not the guest's.
        0x8000_0007 => r = [0, 0, 0, 1 << 8],
        0x8000_0008 => {
            r[EBX] &= LEAF80000008_EBX_SHOWN;
            r[ECX] = (count - 1).min(0xff) | id_bits(count) << 12;
            r[EDX] = 0;
        }
        0x8000_001d => r[EAX] = share(r[EAX], count),
        // The core is the VP, and has one thread; one node.
        0x8000_001e => r = [id, id & 0xff, 0, 0],
        // SVM, IBS, LWP, SEV, resource control, features with MSRs, performance counters,
        // more topology.
        0x8000_000a | 0x8000_001b | 0x8000_001c | 0x8000_001f..=0x8000_0022 | 0x8000_0026 => {
            r = [0; 4];
        }
        _ => {}
    }
    r
}

/// Bits that APIC ids have.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// A cache: the first two levels are each core's, the third is shared.
fn share(eax: u32, count: u32) -> u32 {
    let sharers = if eax >> 5 & 7 < 3 { 1 } else { count };
    if eax & 0x1f == 0 {
        return eax;
    }
    eax & !(0xfff << 14) | (sharers - 1).min(0xfff) << 14
}

/// Leaf 0xb.
fn topology(subleaf: u32, id: u32, count: u32) -> Registers {
    let level = subleaf & 0xff;
    match subleaf {
        0 => [0, 1, level | LEVEL_THREAD, id],
        1 => [id_bits(count), count, level | LEVEL_CORE, id],
        _ => [0, 0, level, id],
    }
}

/// Leaf 0xd.
fn xsave(
    subleaf: u32,
    native_answer: Registers,
    native: impl Fn(u32, u32) -> Registers,
) -> Registers {
    let mut r = native_answer;
    match subleaf {
        0 => {
            r[EAX] &= XSTATE;
            let end = (2..32).filter(|part| r[EAX] & 1 << part != 0).map(|part| {
                let [size, offset, ..] = native(0xd, part);
                size.saturating_add(offset)
            });
            // EBX: for what XCR0 says now, which is the guest's.
            r[ECX] = end.fold(XSAVE_FIRST_PART, u32::max);
            r[EDX] = 0;
        }
        1 => {
            r[EAX] &= LEAFD_1_EAX_SHOWN;
            r[ECX] = 0;
            r[EDX] = 0;
        }
        2..32 if XSTATE & 1 << subleaf != 0 => {}
        _ => r = [0; 4],
    }
    r
}

#[cfg(test)]
mod tests {
    use super::super::{Asker, answer};
    use super::*;
    use crate::vtl::Vtl;

    const ALL: Registers = [u32::MAX; 4];

    fn asker(vp: u32, vp_count: u32) -> Asker {
        Asker {
            vtl: Vtl::GUEST,
            vp,
            vp_count,
            alone: false,
            os_xsave: false,
        }
    }

    fn asked(leaf: u32, subleaf: u32) -> Registers {
        answer(&asker(2, 3), leaf, subleaf, |_, _| ALL)
    }

    #[test]
    fn the_guest_has_an_apic_of_its_own_and_extended_state() {
        let leaf1 = asked(1, 0);
        assert_eq!(leaf1[ECX] & bits(&[5, 27]), 0);
        let offered = bits(&[12, 21, 24, 26, 28, 29, 31]);
        assert_eq!(leaf1[ECX] & offered, offered);
        // A processor without them gets x2APIC and TSC deadline all the same.
        let bare = answer(&asker(0, 1), 1, 0, |_, _| [0; 4]);
        assert_eq!(bare[ECX], bits(&[21, 24, 31]));
        assert_eq!(asked(7, 0)[EBX] & bits(&[5, 16]), bits(&[5, 16]));
        assert_eq!(asked(7, 0)[ECX] & bits(&[3, 16]), 0);
        assert_eq!(asked(0x8000_0001, 0)[ECX] & 1 << 2, 0);
        assert_eq!(asked(0x8000_000a, 0), [0; 4]);
    }

    #[test]
    fn osxsave_follows_cr4() {
        let on = Asker {
            os_xsave: true,
            ..asker(0, 1)
        };
        assert_ne!(answer(&on, 1, 0, |_, _| ALL)[ECX] & 1 << 27, 0);
        assert_eq!(answer(&on, 1, 0, |_, _| [0; 4])[ECX] & 1 << 27, 0);
    }

    #[test]
    fn apic_ids_are_vp_indices_wherever_they_show() {
        assert_eq!(asked(1, 0)[EBX] >> 16, 2 << 8 | 3);
        assert_eq!(asked(0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(asked(0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(asked(0xb, 2), [0, 0, 2, 2]);
        assert_eq!(asked(0x8000_001e, 0), [2, 2, 0, 0]);
        assert_eq!(asked(0x8000_0008, 0)[ECX], 2 | 2 << 12);
        assert_eq!(asked(0x1f, 0), [0; 4]);
    }

    #[test]
    fn a_single_processor_is_alone() {
        let alone = |leaf, subleaf| answer(&asker(0, 1), leaf, subleaf, |_, _| ALL);
        assert_eq!(alone(1, 0)[EDX] & 1 << 28, 0);
        assert_eq!(alone(0xb, 1), [0, 1, 0x201, 0]);
        assert_eq!(alone(0x8000_0008, 0)[ECX], 0);
    }

    #[test]
    fn caches_of_the_third_level_are_shared() {
        let cache = |level: u32| answer(&asker(0, 4), 4, 0, |_, _| [level << 5 | 1, 0, 0, 0]);
        assert_eq!(cache(1)[EAX], 1 << 5 | 1 | 3 << 26);
        assert_eq!(cache(3)[EAX], 3 << 5 | 1 | 3 << 14 | 3 << 26);
        let none = answer(&asker(0, 4), 4, 4, |_, _| [0; 4]);
        assert_eq!(none, [0; 4]);
    }

    #[test]
    fn extended_state_is_what_the_guest_may_enable() {
        // Parts 2 and 9 (protection keys) exist.
        let native = |leaf, subleaf| match (leaf, subleaf) {
            (0xd, 0) => [0x207, 576, 2696, 0],
            (0xd, 1) => [0xf, 576, 0x100, 0],
            (0xd, 2) => [256, 576, 0, 0],
            _ => [8, 2688, 0, 0],
        };
        let asked = |subleaf| answer(&asker(0, 1), 0xd, subleaf, native);
        assert_eq!(asked(0), [7, 576, 832, 0]);
        assert_eq!(asked(1), [7, 576, 0, 0]);
        assert_eq!(asked(2), [256, 576, 0, 0]);
        assert_eq!((asked(9), asked(77)), ([0; 4], [0; 4]));
    }

    #[test]
    fn xcr0_has_what_belongs_together() {
        let offered = u32::MAX;
        for valid in [1, 3, 7, 0xe7] {
            assert!(is_valid_xcr0(offered, valid), "{valid:#x}");
        }
        for invalid in [0, 2, 5, 0x27, 0xe3, 0x0f, 0x207, 1 << 62 | 1] {
            assert!(!is_valid_xcr0(offered, invalid), "{invalid:#x}");
        }
        assert!(!is_valid_xcr0(3, 7));
    }

    #[test]
    fn the_hypervisor_offers_what_the_guest_may_use() {
        let features = asked(0x4000_0003, 0);
        // Reference counter, SynIC, timers, APIC, hypercalls, VP index, reset, reference
        // TSC, frequencies, invariant TSC.
        assert_eq!(features[EAX], 0x8afe);
        // Messages and events; no VSM, no registers, no start of VPs.
        assert_eq!(features[EBX], 0x30);
        assert_eq!(features[EDX], 1 << 8 | 1 << 10 | 1 << 19);
        // Neither flushes nor IPIs by hypercall.
        assert_eq!(asked(0x4000_0004, 0)[EAX], 1 << 3 | 1 << 5 | 1 << 9);
    }
}
