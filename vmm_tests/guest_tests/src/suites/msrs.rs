//! Model-specific registers that are not the guest's to change.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::apic;
use crate::machine::probe::{Fault, GP, rdmsr, wrmsr};
use crate::report::TestResult;
use hv_defs::msr::{HV_X64_MSR_SYNTHETIC_LAST, HV_X64_MSR_VP_INDEX};
use x86_defs::msr::{APIC_BASE, PATCH_LEVEL, SYSCFG, VM_CR, VM_HSAVE_PA};

pub(super) const TESTS: &[Test] = &[
    test(
        "msrs.hypervisors_registers_are_not_there",
        Needs::Host,
        not_there,
    ),
    test("msrs.apic_does_not_move", Needs::Host, apic_does_not_move),
    test(
        "msrs.apic_has_no_illegal_mode",
        Needs::Host,
        apic_has_no_illegal_mode,
    ),
    test(
        "msrs.own_number_is_read_only",
        Needs::Host,
        own_number_is_read_only,
    ),
    test(
        "msrs.wild_accesses_are_harmless",
        Needs::Host,
        wild_accesses_are_harmless,
    ),
];

/// Intel: update of the microcode. AMD: the same.
const MICROCODE: [u32; 2] = [0x79, 0xc001_0020];
/// AMD: where system management mode has its state and its memory.
const SMM: [u32; 4] = [0xc001_0111, 0xc001_0112, 0xc001_0113, 0xc001_0116];

/// A fault that a register which is not there gives, or nothing.
fn tolerated<T: core::fmt::Debug>(msr: u32, result: &Result<T, Fault>) -> TestResult {
    ensure!(
        !result.as_ref().is_err_and(|fault| fault.vector != GP),
        "MSR {msr:#x} gives {result:x?}"
    );
    Ok(())
}

fn not_there(_: &Machine<'_>) -> TestResult {
    let all = [VM_HSAVE_PA, VM_CR, SYSCFG, PATCH_LEVEL];
    for msr in all.into_iter().chain(MICROCODE).chain(SMM) {
        let before = rdmsr(msr);
        tolerated(msr, &before)?;
        for value in [0, 1, 0x10_0000, u64::MAX] {
            tolerated(msr, &wrmsr(msr, value))?;
        }
        let after = rdmsr(msr);
        ensure!(
            before == after,
            "MSR {msr:#x} was {before:x?} and is {after:x?}"
        );
    }
    Ok(())
}

fn apic_does_not_move(_: &Machine<'_>) -> TestResult {
    let before = apic::base();
    for page in [0xfec00, 0x100, before.page() + 1, 0xf_ffff_ffff] {
        let result = wrmsr(APIC_BASE, before.with_page(page).into());
        tolerated(APIC_BASE, &result)?;
        let after = apic::base();
        ensure!(after == before, "moved to {:#x}", after.page());
    }
    Ok(())
}

fn apic_has_no_illegal_mode(_: &Machine<'_>) -> TestResult {
    let before = apic::base();
    // x2APIC without "enabled", and reserved bits.
    for value in [
        before.with_enabled(false).with_x2apic(true).into_bits(),
        before.into_bits() | 1,
        before.into_bits() | (1 << 63),
    ] {
        let result = wrmsr(APIC_BASE, value);
        ensure!(
            result.is_err_and(|fault| fault.vector == GP),
            "{value:#x} gives {result:?}"
        );
        ensure!(apic::base() == before, "base is {:?}", apic::base());
    }
    Ok(())
}

fn own_number_is_read_only(_: &Machine<'_>) -> TestResult {
    let found = rdmsr(HV_X64_MSR_VP_INDEX)?;
    ensure!(found == 0, "VP 0 has number {found}");
    let result = wrmsr(HV_X64_MSR_VP_INDEX, 1);
    ensure!(result.is_err_and(|fault| fault.vector == GP), "{result:?}");
    Ok(())
}

fn wild_accesses_are_harmless(machine: &Machine<'_>) -> TestResult {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 16
    };
    for _ in 0..machine.options.count {
        let low = random() as u32;
        // Where nothing is that this kernel needs, or that would reset the machine.
        let msr = match low % 4 {
            0 => 0x4000_0110 + low / 4 % (HV_X64_MSR_SYNTHETIC_LAST - 0x4000_0110),
            1 => 0xc001_0000 + low / 4 % 0x2000,
            2 => 0x400 + low / 4 % 0x200,
            _ => low | 0x8000_0000,
        };
        // What LSTAR, GS and their like hold is the guest's own affair, and EFER's bits
        // have a test of their own.
        if (0xc000_0080..0xc000_0110).contains(&msr) {
            continue;
        }
        tolerated(msr, &rdmsr(msr))?;
        tolerated(msr, &wrmsr(msr, random() << (low % 17)))?;
    }
    Ok(())
}
