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

/// A hypercall to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomCall {
    /// RCX.
    pub control: u64,
    /// RDX, where the input has been written if it is within the scratch pages.
    pub input: u64,
    /// R8.
    pub output: u64,
}

/// An MSR access to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RandomMsr {
    /// Read this MSR.
    Read(u32),
    /// Write this value to this MSR.
    Write(u32, u64),
}

/// Chooses a call. `scratch` are the payload's own pages for input and output.
pub fn random_call(prng: &mut Prng, scratch: &Range<u64>) -> RandomCall {
    let known = [
        HypercallCode::MODIFY_VTL_PROTECTION_MASK.0,
        HypercallCode::ENABLE_VP_VTL.0,
        HypercallCode::GET_VP_REGISTERS.0,
        HypercallCode::SET_VP_REGISTERS.0,
        HypercallCode::POST_MESSAGE.0,
        HypercallCode::SIGNAL_EVENT.0,
        HypercallCode::ENTER_SLEEP_STATE.0,
        HypercallCode::START_VIRTUAL_PROCESSOR.0,
        HypercallCode::GET_VP_INDEX_FROM_APIC_ID.0,
    ];
    let code = if prng.one_in(6) {
        prng.any_magnitude() as u16
    } else {
        prng.pick(&known).unwrap_or(0)
    };
    let mut control = HypercallControl::new().with_code(code);
    if prng.one_in(2) {
        control.set_rep_count(prng.below(6) as u16);
        control.set_rep_start(prng.below(3) as u16);
    }
    if prng.one_in(8) {
        control.set_rep_count((prng.next_u64() & 0xfff) as u16);
        control.set_rep_start((prng.next_u64() & 0xfff) as u16);
    }
    if prng.one_in(8) {
        control.set_variable_header_size((prng.any_magnitude() & 0x1ff) as u16);
    }
    control.set_fast(prng.one_in(8));
    let mut control = control.into_bits();
    if prng.one_in(16) {
        // Upper half: reserved bits, nested bit. The code stays.
        control |= prng.any_magnitude() << 16;
    }
    RandomCall {
        control,
        input: random_address(prng, scratch),
        output: random_address(prng, scratch),
    }
}

/// True if a host may obey the call in a way that ends the test: power-off with its
/// valid parameter, a VP started at a random address, a VTL switch.
pub fn is_destructive(call: &RandomCall, first_words: &[u64; 2]) -> bool {
    let control = HypercallControl::from_bits(call.control);
    match HypercallCode(control.code()) {
        HypercallCode::ENTER_SLEEP_STATE => control.fast() || first_words[0] as u32 <= 5,
        HypercallCode::ENABLE_VP_VTL | HypercallCode::START_VIRTUAL_PROCESSOR => {
            // Without the right partition it is refused; with a VP that does not exist too.
            first_words[0] == HV_PARTITION_ID_SELF && first_words[1] as u32 <= u16::MAX.into()
        }
        HypercallCode::VTL_CALL | HypercallCode::VTL_RETURN => true,
        _ => false,
    }
}

/// Fills the input of a call: random words, with a plausible header most of the time.
pub fn random_input(prng: &mut Prng, words: &mut [u64; INPUT_WORDS]) {
    for word in words.iter_mut() {
        *word = prng.any_magnitude();
    }
    if !prng.one_in(4) {
        words[0] = HV_PARTITION_ID_SELF;
        let vp = if prng.one_in(2) {
            HV_VP_INDEX_SELF
        } else {
            prng.any_magnitude() as u32
        };
        let vtl = prng.pick(&[0, 0, 0x12, 0x10, 0x11, 0xff]).unwrap_or(0u64);
        words[1] = u64::from(vp) | (vtl << 32);
    }
    if prng.one_in(2) {
        // Register names, which are u32 for reading and 32 bytes apart for writing.
        for word in &mut words[2..] {
            let name = random_register(prng);
            let second = random_register(prng);
            *word = u64::from(name) | (u64::from(second) << 32);
        }
    }
}

fn random_register(prng: &mut Prng) -> u32 {
    let known = [
        HvRegisterName::VP_INDEX.0,
        HvRegisterName::VSM_CODE_PAGE_OFFSETS.0,
        HvRegisterName::VSM_VP_STATUS.0,
        HvRegisterName::VSM_PARTITION_STATUS.0,
        HvRegisterName::VSM_CAPABILITIES.0,
        HvRegisterName::VSM_PARTITION_CONFIG.0,
        HvRegisterName::GUEST_OS_ID.0,
        HvRegisterName::GUEST_CRASH_P0.0,
        HvRegisterName::REG_PAGE.0,
    ];
    if prng.one_in(3) {
        prng.any_magnitude() as u32
    } else {
        prng.pick(&known).unwrap_or(0)
    }
}

fn random_address(prng: &mut Prng, scratch: &Range<u64>) -> u64 {
    let size = scratch.end - scratch.start;
    match prng.below(16) {
        0 => prng.next_u64(),
        1 => prng.any_magnitude(),
        2 => HOST_MEMORY_BASE + prng.below(HOST_MEMORY_SIZE),
        3 => (HOST_MEMORY_BASE + prng.below(HOST_MEMORY_SIZE)) & !7,
        4 => (HOST_MEMORY_BASE + prng.below(HOST_MEMORY_SIZE)) & !0xfff,
        5 => 0xfed0_0000 + prng.below(0x400),
        6 => scratch.start + prng.below(size),
        // Close to the end of a page, so that the block crosses it.
        7 => (scratch.start + prng.below(size)) | 0xff8,
        8 => 0,
        _ => (scratch.start + prng.below(size)) & !0xfff,
    }
}

/// Chooses an MSR access.
pub fn random_msr(prng: &mut Prng, scratch: &Range<u64>) -> RandomMsr {
    let number = match prng.below(8) {
        0 => prng.next_u64() as u32,
        1 => NATIVE_LOW.start + prng.below(NATIVE_LOW.len() as u64) as u32,
        2 => NATIVE_HIGH.start + prng.below(NATIVE_HIGH.len() as u64) as u32,
        3 => NATIVE_AMD.start + prng.below(NATIVE_AMD.len() as u64) as u32,
        _ => msr::HV_X64_MSR_SYNTHETIC_FIRST + prng.below(0x1a0) as u32,
    };
    if prng.one_in(2) || !may_write(number) {
        RandomMsr::Read(number)
    } else {
        RandomMsr::Write(number, random_msr_value(prng, scratch))
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

/// Values that place a page anywhere but over the payload's code: in the scratch pages,
/// in the host's memory, far outside, or disabled.
fn random_msr_value(prng: &mut Prng, scratch: &Range<u64>) -> u64 {
    let enable = prng.below(2);
    match prng.below(4) {
        0 => ((scratch.start + prng.below(scratch.end - scratch.start)) & !0xfff) | enable,
        1 => ((HOST_MEMORY_BASE + prng.below(HOST_MEMORY_SIZE)) & !0xfff) | enable,
        2 => prng.next_u64() | (1 << 62),
        _ => prng.next_u64() & !1 & 0xfff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRATCH: Range<u64> = 0x900_0000..0x901_0000;

    #[test]
    fn the_sequence_depends_on_the_seed_only() {
        let calls = |seed| {
            let mut prng = Prng::new(seed);
            (0..100)
                .map(|_| random_call(&mut prng, &SCRATCH))
                .collect::<Vec<_>>()
        };
        assert_eq!(calls(1), calls(1));
        assert_ne!(calls(1), calls(2));
    }

    #[test]
    fn calls_aim_at_the_host_and_at_the_scratch_pages() {
        let mut prng = Prng::new(3);
        let calls: Vec<_> = (0..1000)
            .map(|_| random_call(&mut prng, &SCRATCH))
            .collect();
        let host = HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
        assert!(calls.iter().any(|call| host.contains(&call.output)));
        assert!(calls.iter().any(|call| SCRATCH.contains(&call.input)));
    }

    #[test]
    fn power_off_and_vtl_switch_are_left_out() {
        let call = |code: HypercallCode| RandomCall {
            control: code.0.into(),
            input: 0,
            output: 0,
        };
        assert!(is_destructive(
            &call(HypercallCode::ENTER_SLEEP_STATE),
            &[5, 0]
        ));
        assert!(is_destructive(&call(HypercallCode::VTL_RETURN), &[0, 0]));
        assert!(is_destructive(
            &call(HypercallCode::START_VIRTUAL_PROCESSOR),
            &[u64::MAX, 1]
        ));
        assert!(!is_destructive(
            &call(HypercallCode::START_VIRTUAL_PROCESSOR),
            &[7, 1]
        ));
    }

    #[test]
    fn msr_writes_never_end_the_test() {
        let mut prng = Prng::new(4);
        for _ in 0..10_000 {
            if let RandomMsr::Write(number, _) = random_msr(&mut prng, &SCRATCH) {
                assert!(may_write(number), "{number:#x}");
            }
        }
        assert!(!may_write(msr::HV_X64_MSR_RESET));
    }
}
