//! Random hypercalls and MSR accesses.
//!
//! The choice is biased: mostly known numbers with one thing wrong, because purely
//! random calls would all be refused by the first check. What a correct host would obey
//! and what would end the test (power-off, start of a VP at a random address, disabling
//! the payload's own mode) is left out here; other suites do it deliberately.

use crate::prng::Prng;
use core::ops::Range;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::HV_VP_INDEX_SELF;
use hv_defs::hypercall::{HypercallCode, HypercallControl};
use hv_defs::msr;
use hv_defs::registers::HvRegisterName;
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};

/// 64-bit words of random input that a hypercall gets.
pub const INPUT_WORDS: usize = 64;
/// Size of a page in bytes.
const PAGE_SIZE: u64 = crate::abi::PAGE_SIZE;

/// EFER.
const MSR_EFER: u32 = 0xc000_0080;
/// APIC base; a write of a random value may switch the local APIC off.
const MSR_APIC_BASE: u32 = 0x1b;
/// Time stamp counter.
const MSR_TSC: u32 = 0x10;
/// First and last number of MSRs that exist natively and that may be read.
const NATIVE_LOW: Range<u32> = 0..0x2000;
/// The same for AMD's range.
const NATIVE_HIGH: Range<u32> = 0xc000_0000..0xc000_2000;
/// AMD's own MSRs: SVM, SMM and machine configuration, which the host must guard.
const NATIVE_AMD: Range<u32> = 0xc001_0000..0xc001_2000;
/// Synthetic MSRs that exist.
const SYNTHETIC: [u32; 19] = [
    msr::HV_X64_MSR_GUEST_OS_ID,
    msr::HV_X64_MSR_HYPERCALL,
    msr::HV_X64_MSR_VP_INDEX,
    msr::HV_X64_MSR_TIME_REF_COUNT,
    msr::HV_X64_MSR_REFERENCE_TSC,
    msr::HV_X64_MSR_TSC_FREQUENCY,
    msr::HV_X64_MSR_APIC_FREQUENCY,
    msr::HV_X64_MSR_VP_ASSIST_PAGE,
    msr::HV_X64_MSR_CRASH_P0,
    msr::HV_X64_MSR_CRASH_P0 + 3,
    msr::HV_X64_MSR_CRASH_P4,
    msr::HV_X64_MSR_CRASH_CTL,
    msr::HV_X64_MSR_TSC_INVARIANT_CONTROL,
    msr::HV_X64_MSR_SCONTROL,
    msr::HV_X64_MSR_SIEFP,
    msr::HV_X64_MSR_SIMP,
    msr::HV_X64_MSR_EOM,
    msr::HV_X64_MSR_SINT0,
    msr::HV_X64_MSR_SINT0 + 2,
];
/// Calls that exist, and whether they repeat.
const CALLS: [(HypercallCode, bool); 13] = [
    (HypercallCode::MODIFY_VTL_PROTECTION_MASK, true),
    (HypercallCode::ENABLE_VP_VTL, false),
    (HypercallCode::GET_VP_REGISTERS, true),
    (HypercallCode::SET_VP_REGISTERS, true),
    (HypercallCode::POST_MESSAGE, false),
    (HypercallCode::SIGNAL_EVENT, false),
    (HypercallCode::ENTER_SLEEP_STATE, false),
    (HypercallCode::START_VIRTUAL_PROCESSOR, false),
    (HypercallCode::GET_VP_INDEX_FROM_APIC_ID, true),
    (HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, false),
    (HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX, false),
    (HypercallCode::SIGNAL_EVENT_DIRECT, false),
    (HypercallCode::POST_MESSAGE_DIRECT, false),
];
/// Registers that exist. Without crash control: a host obeys that one by ending the
/// machine.
const REGISTERS: [HvRegisterName; 18] = [
    // Of VTL0.
    HvRegisterName::RIP,
    HvRegisterName::RFLAGS,
    HvRegisterName::CR0,
    HvRegisterName::CS,
    HvRegisterName::GDTR,
    HvRegisterName::EFER,
    HvRegisterName::DR0,
    HvRegisterName::DR7,
    HvRegisterName::VP_INDEX,
    HvRegisterName::VSM_CODE_PAGE_OFFSETS,
    HvRegisterName::VSM_VP_STATUS,
    HvRegisterName::VSM_PARTITION_STATUS,
    HvRegisterName::VSM_CAPABILITIES,
    HvRegisterName::VSM_PARTITION_CONFIG,
    HvRegisterName::GUEST_OS_ID,
    HvRegisterName::GUEST_CRASH_P0,
    HvRegisterName::REG_PAGE,
    // No value that is written suspends the VP.
    HvRegisterName::INTERNAL_ACTIVITY_STATE,
];

/// Memory that random calls name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arena {
    /// Pages for input and output.
    pub scratch: Range<u64>,
    /// The payload itself, scratch pages included, which no output may hit.
    pub image: Range<u64>,
}

/// A hypercall to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RandomCall {
    /// RCX.
    pub control: u64,
    /// RDX.
    pub input: u64,
    /// R8.
    pub output: u64,
    /// What shall lie at `input`, if that is in the scratch pages.
    pub words: [u64; INPUT_WORDS],
}

/// An MSR access to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RandomMsr {
    /// Read this MSR.
    Read(u32),
    /// Write this value to this MSR.
    Write(u32, u64),
}

/// Chooses a call: a plausible one, in which mostly one thing is wrong.
pub fn random_call(prng: &mut Prng, arena: &Arena) -> RandomCall {
    let (code, repeats) = prng.pick(&CALLS).unwrap_or(CALLS[0]);
    let mut control = HypercallControl::new().with_code(code.0);
    if repeats {
        control.set_rep_count(1 + prng.below(5) as u16);
        if prng.one_in(4) {
            control.set_rep_start(prng.below(control.rep_count().into()) as u16);
        }
    }
    let mut call = RandomCall {
        control: control.into_bits(),
        input: scratch_page(prng, arena),
        output: scratch_page(prng, arena),
        words: random_input(prng, code, arena),
    };
    match prng.below(10) {
        0 => control.set_code(prng.any_magnitude() as u16),
        1 => {
            control.set_rep_count((prng.any_magnitude() & 0xfff) as u16);
            control.set_rep_start((prng.any_magnitude() & 0xfff) as u16);
        }
        2 => control.set_variable_header_size((prng.any_magnitude() & 0x1ff) as u16),
        3 => control.set_fast(true),
        4 => call.input = random_address(prng, arena),
        5 => call.output = random_address(prng, arena),
        6 => call.words.fill_with(|| prng.any_magnitude()),
        _ => {}
    }
    call.control = control.into_bits();
    if prng.one_in(16) {
        // Upper half: reserved bits, nested bit. The code stays.
        call.control |= prng.any_magnitude() << 16;
    }
    call
}

/// True if a host may obey the call in a way that ends the test: power-off with a valid
/// parameter, or a VTL switch.
pub fn is_destructive(call: &RandomCall) -> bool {
    let control = HypercallControl::from_bits(call.control);
    match HypercallCode(control.code()) {
        HypercallCode::ENTER_SLEEP_STATE => {
            let state = if control.fast() {
                call.input
            } else {
                call.words[0]
            };
            (1..=5).contains(&(state as u32))
        }
        HypercallCode::VTL_CALL | HypercallCode::VTL_RETURN => true,
        _ => false,
    }
}

/// Input for a call, with a plausible header most of the time.
fn random_input(prng: &mut Prng, code: HypercallCode, arena: &Arena) -> [u64; INPUT_WORDS] {
    let mut words = [0; INPUT_WORDS];
    words.fill_with(|| prng.any_magnitude());
    if !prng.one_in(8) {
        words[0] = HV_PARTITION_ID_SELF;
    }
    let vp = if prng.one_in(8) {
        prng.any_magnitude() as u32
    } else {
        HV_VP_INDEX_SELF
    };
    let vtl: u64 = if prng.one_in(4) {
        prng.pick(&[0x10, 0x11, 0x12, 0xff]).unwrap_or(0)
    } else {
        0
    };
    match code {
        HypercallCode::GET_VP_REGISTERS => {
            words[1] = u64::from(vp) | (vtl << 32);
            for word in &mut words[2..] {
                let (low, high) = (random_register(prng), random_register(prng));
                *word = u64::from(low) | (u64::from(high) << 32);
            }
        }
        HypercallCode::SET_VP_REGISTERS => {
            words[1] = u64::from(vp) | (vtl << 32);
            for element in words[2..].as_chunks_mut::<4>().0 {
                let value = random_page_value(prng, arena);
                *element = [random_register(prng).into(), 0, value, 0];
            }
        }
        HypercallCode::GET_VP_INDEX_FROM_APIC_ID => {
            words[1] = vtl;
            for word in &mut words[2..] {
                *word = prng.below(4) | (prng.below(4) << 32);
            }
        }
        // A vector for VPs that exist, or one bank of them.
        HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI => {
            (words[0], words[1]) = (prng.below(0x120), prng.below(8));
        }
        HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX => {
            (words[0], words[1], words[2]) = (prng.below(0x120), prng.below(2), 0);
        }
        // A message or an event for VTL2.
        HypercallCode::SIGNAL_EVENT_DIRECT | HypercallCode::POST_MESSAGE_DIRECT => {
            let sint = prng.below(16);
            words[1] = u64::from(vp) | 2 << 32 | sint << 40 | prng.below(2048) << 48;
            if code == HypercallCode::POST_MESSAGE_DIRECT {
                words[1] = u64::from(vp) | 2 << 32;
                words[2] = sint | 1 << 32;
                words[3] = 16;
            }
        }
        // A valid VTL; the VP runs, or does not exist.
        HypercallCode::ENABLE_VP_VTL | HypercallCode::START_VIRTUAL_PROCESSOR => {
            let own = u64::from(!prng.one_in(8)) * 2;
            words[1] = u64::from(vp) | (own << 32);
        }
        _ => {}
    }
    words
}

fn random_register(prng: &mut Prng) -> u32 {
    if prng.one_in(16) {
        prng.any_magnitude() as u32
    } else {
        prng.pick(&REGISTERS).map_or(0, |name| name.0)
    }
}

fn scratch_page(prng: &mut Prng, arena: &Arena) -> u64 {
    let size = arena.scratch.end - arena.scratch.start;
    arena.scratch.start + (prng.below(size) & !(PAGE_SIZE - 1))
}

/// An address that is wrong, or right by chance.
fn random_address(prng: &mut Prng, arena: &Arena) -> u64 {
    let host = HOST_MEMORY_BASE + prng.below(HOST_MEMORY_SIZE);
    let own = scratch_page(prng, arena) + prng.below(PAGE_SIZE);
    let address = match prng.below(10) {
        0 => prng.next_u64(),
        1 => prng.any_magnitude(),
        2 => prng.any_magnitude() & !7,
        3 => host,
        4 => host & !7,
        5 => host & !(PAGE_SIZE - 1),
        6 => 0xfed0_0000 + prng.below(0x400),
        7 => own,
        // Close to the end of a page, so that the block crosses it.
        8 => own | 0xff8,
        _ => own & !7,
    };
    let size = PAGE_SIZE;
    let hits_image = address < arena.image.end && address.saturating_add(size) > arena.image.start;
    if hits_image && !arena.scratch.contains(&address) {
        arena.scratch.start
    } else {
        address
    }
}

/// Chooses an MSR access.
pub fn random_msr(prng: &mut Prng, arena: &Arena) -> RandomMsr {
    let any_of = |prng: &mut Prng, range: Range<u32>| {
        let count = range.len() as u64;
        range.start + prng.below(count) as u32
    };
    let number = match prng.below(10) {
        0 => prng.next_u64() as u32,
        1 => any_of(prng, NATIVE_LOW),
        2 => any_of(prng, NATIVE_HIGH),
        3 => any_of(prng, NATIVE_AMD),
        4 => msr::HV_X64_MSR_SYNTHETIC_FIRST + prng.below(0x1a0) as u32,
        _ => prng.pick(&SYNTHETIC).unwrap_or(0),
    };
    if prng.one_in(2) || !may_write(number) {
        RandomMsr::Read(number)
    } else {
        RandomMsr::Write(number, random_page_value(prng, arena))
    }
}

/// MSRs whose write a correct host obeys and which would end or falsify the test. Native
/// MSRs are left out altogether, except AMD's guarded range: they are VTL2's own.
fn may_write(number: u32) -> bool {
    match number {
        msr::HV_X64_MSR_GUEST_OS_ID
        | msr::HV_X64_MSR_HYPERCALL
        | msr::HV_X64_MSR_RESET
        | msr::HV_X64_MSR_CRASH_CTL
        | MSR_EFER
        | MSR_APIC_BASE
        | MSR_TSC => false,
        number => {
            (msr::HV_X64_MSR_SYNTHETIC_FIRST..=msr::HV_X64_MSR_SYNTHETIC_LAST).contains(&number)
                || NATIVE_AMD.contains(&number)
        }
    }
}

/// Values that place a page anywhere but over the payload: in the scratch pages, in the
/// host's memory, far outside, or disabled.
fn random_page_value(prng: &mut Prng, arena: &Arena) -> u64 {
    let enable = prng.below(2);
    match prng.below(4) {
        0 => scratch_page(prng, arena) | enable,
        1 => ((HOST_MEMORY_BASE + prng.below(HOST_MEMORY_SIZE)) & !(PAGE_SIZE - 1)) | enable,
        2 => prng.next_u64() | (1 << 62),
        _ => prng.next_u64() & 0xffe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        Arena {
            scratch: 0x900_0000..0x901_0000,
            image: 0x800_0000..0x910_0000,
        }
    }

    fn calls(seed: u64) -> Vec<RandomCall> {
        let mut prng = Prng::new(seed);
        (0..5000)
            .map(|_| random_call(&mut prng, &arena()))
            .collect()
    }

    #[test]
    fn the_sequence_depends_on_the_seed_only() {
        assert_eq!(calls(1), calls(1));
        assert_ne!(calls(1), calls(2));
    }

    #[test]
    fn calls_aim_at_the_host_and_at_the_scratch_pages_but_not_at_the_payload() {
        let host = HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
        let arena = arena();
        let calls = calls(3);
        assert!(calls.iter().any(|call| host.contains(&call.output)));
        assert!(calls.iter().any(|call| host.contains(&call.input)));
        for address in calls.iter().flat_map(|call| [call.input, call.output]) {
            assert!(!arena.image.contains(&address) || arena.scratch.contains(&address));
        }
    }

    #[test]
    fn many_calls_are_right_but_for_their_content() {
        let right = calls(5)
            .iter()
            .filter(|call| {
                let control = HypercallControl::from_bits(call.control);
                let form = CALLS.iter().find(|(code, _)| code.0 == control.code());
                form.is_some_and(|(_, repeats)| *repeats == (control.rep_count() > 0))
                    && !control.fast()
                    && control.reserved_bits_are_zero()
                    && call.input % PAGE_SIZE == 0
                    && call.output % PAGE_SIZE == 0
            })
            .count();
        assert!(right > 2000, "{right}");
    }

    #[test]
    fn power_off_and_vtl_switch_are_left_out() {
        let call = |code: HypercallCode, word| RandomCall {
            control: code.0.into(),
            input: 0,
            output: 0,
            words: [word; INPUT_WORDS],
        };
        assert!(is_destructive(&call(HypercallCode::ENTER_SLEEP_STATE, 5)));
        assert!(!is_destructive(&call(HypercallCode::ENTER_SLEEP_STATE, 6)));
        assert!(is_destructive(&call(HypercallCode::VTL_RETURN, 0)));
        assert!(!is_destructive(&call(HypercallCode::GET_VP_REGISTERS, 0)));
    }

    #[test]
    fn msr_writes_never_end_the_test() {
        let mut prng = Prng::new(4);
        for _ in 0..10_000 {
            if let RandomMsr::Write(number, _) = random_msr(&mut prng, &arena()) {
                assert!(may_write(number), "{number:#x}");
            }
        }
        assert!(!may_write(msr::HV_X64_MSR_RESET));
    }
}
