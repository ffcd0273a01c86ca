//! Memory that is not the guest's: of VTL2 and of the host.

use super::environment::access;
use super::mmio::SIZES;
use super::synic::one_timer_message;
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::hyperv::{enable_hypercalls, raw};
use crate::machine::memory::{MAPPED_END, Page};
use crate::machine::probe::{self, Fault, GP, Registers, rdmsr, wrmsr};
use crate::report::{Failure, TestResult};
use hv_defs::hypercall::{HvStatus, HypercallCode as Code};
use hv_defs::msr::{
    HV_X64_MSR_GUEST_OS_ID, HV_X64_MSR_HYPERCALL, HV_X64_MSR_REFERENCE_TSC, HV_X64_MSR_SIEFP,
    HV_X64_MSR_SIMP, HV_X64_MSR_VP_ASSIST_PAGE, OverlayPage,
};

pub(super) const TESTS: &[Test] = &[
    test(
        "isolation.executing_is_a_fault",
        Needs::Host,
        executing_is_a_fault,
    ),
    test(
        "isolation.reading_gives_nothing",
        Needs::Host,
        reading_gives_nothing,
    ),
    test(
        "isolation.writing_changes_nothing",
        Needs::Host,
        writing_changes_nothing,
    ),
    test(
        "isolation.reading_and_writing_in_one_does_nothing",
        Needs::Host,
        atomics_do_nothing,
    ),
    test(
        "isolation.strings_give_nothing",
        Needs::Host,
        strings_give_nothing,
    ),
    test(
        "isolation.hypercalls_do_not_reach_it",
        Needs::Host,
        hypercalls_do_not_reach_it,
    ),
    test(
        "isolation.overlay_pages_do_not_reach_it",
        Needs::Host,
        overlays_do_not_reach_it,
    ),
];

/// Places in each range.
const SAMPLES: u64 = 6;

/// Addresses in all ranges: begin, end, and some between.
fn addresses<'a>(machine: &Machine<'a>) -> Result<impl Iterator<Item = u64> + 'a, Failure> {
    if machine.options.forbidden().next().is_none() {
        return Err(Failure::Skipped("no range is forbidden"));
    }
    Ok(machine.options.forbidden().flat_map(|range| {
        let last = (range.end - 8).min(MAPPED_END - 8);
        let step = ((last - range.start) / SAMPLES).max(4096) & !7;
        (range.start..last).step_by(step as usize).chain([last])
    }))
}

/// Nothing: ones, or a fault.
fn expect_nothing(address: u64, found: Result<u64, Fault>, ones: u64) -> TestResult {
    ensure!(
        found.is_err() || found == Ok(ones),
        "{address:#x} reads {found:x?}, expected {ones:#x} or a fault"
    );
    Ok(())
}

fn reading_gives_nothing(machine: &Machine<'_>) -> TestResult {
    for address in addresses(machine)? {
        for (_, load, ones) in SIZES {
            expect_nothing(address, access(load, address, 0), ones)?;
        }
    }
    Ok(())
}

fn writing_changes_nothing(machine: &Machine<'_>) -> TestResult {
    for address in addresses(machine)? {
        for (store, load, ones) in SIZES {
            let _ = access(store, address, 0x1122_3344_5566_7788);
            expect_nothing(address, access(load, address, 0), ones)?;
        }
    }
    Ok(())
}

fn atomics_do_nothing(machine: &Machine<'_>) -> TestResult {
    for address in addresses(machine)? {
        let all = [
            probe::xchg32 as probe::Instruction,
            probe::or32,
            probe::and32,
        ];
        for instruction in all {
            let _ = access(instruction, address, 0);
            let found = access(probe::load32, address, 0);
            expect_nothing(address, found, u32::MAX.into())?;
        }
    }
    Ok(())
}

fn executing_is_a_fault(machine: &Machine<'_>) -> TestResult {
    for address in addresses(machine)? {
        let result = access(probe::call, address, 0);
        ensure!(result.is_err(), "executing {address:#x} gives {result:x?}");
    }
    Ok(())
}

fn strings_give_nothing(machine: &Machine<'_>) -> TestResult {
    for address in addresses(machine)? {
        Page::ANY.fill(u64::MAX);
        let copied = probe::rep_movsd(Registers {
            rsi: address,
            rdi: Page::ANY.address(),
            rcx: 2,
            ..Default::default()
        });
        let found = Page::ANY.read(0);
        ensure!(
            found == u64::MAX,
            "copying {address:#x}: {copied:x?}, {found:#x}"
        );
        let _ = probe::rep_stosd(Registers {
            rdi: address,
            rcx: 2,
            ..Default::default()
        });
        expect_nothing(address, access(probe::load64, address, 0), u64::MAX)?;
    }
    Ok(())
}

fn hypercalls_do_not_reach_it(machine: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    for address in addresses(machine)? {
        let page = address & !0xfff;
        // Input there, and output there.
        for (code, input, output) in [
            (u64::from(Code::SIGNAL_EVENT.0), page, 0),
            (Code::POST_MESSAGE.0.into(), page, 0),
            (u64::from(Code::GET_VP_REGISTERS.0) | (1 << 32), page, page),
            (
                u64::from(Code::GET_VP_INDEX_FROM_APIC_ID.0) | (1 << 32),
                Page::INPUT.address(),
                page,
            ),
        ] {
            Page::INPUT.fill(0);
            Page::INPUT.write(0, u64::MAX);
            let status = raw(code, input, output)?;
            ensure!(status != HvStatus::SUCCESS, "call {code:#x} uses {page:#x}");
        }
    }
    Ok(())
}

fn overlays_do_not_reach_it(machine: &Machine<'_>) -> TestResult {
    wrmsr(HV_X64_MSR_GUEST_OS_ID, crate::machine::hyperv::GUEST_OS_ID)?;
    let registers = [
        HV_X64_MSR_HYPERCALL,
        HV_X64_MSR_REFERENCE_TSC,
        HV_X64_MSR_SIMP,
        HV_X64_MSR_SIEFP,
        HV_X64_MSR_VP_ASSIST_PAGE,
    ];
    for address in addresses(machine)? {
        for msr in registers {
            let before = rdmsr(msr)?;
            let wanted = OverlayPage::new()
                .with_enabled(true)
                .with_page_number(address >> 12);
            // Refused, or an overlay of the guest's own over what it does not have. That
            // the memory below stays as it is, VTL2's health shows.
            let result = wrmsr(msr, wanted.into_bits());
            ensure!(
                result.is_ok() || result.is_err_and(|fault| fault.vector == GP),
                "MSR {msr:#x} gives {result:?}"
            );
            if msr == HV_X64_MSR_SIMP && result.is_ok() {
                // And the host writes there.
                one_timer_message(2);
            }
            wrmsr(msr, before & !1)?;
            expect_nothing(address, access(probe::load64, address & !7, 0), u64::MAX)?;
        }
    }
    Ok(())
}
