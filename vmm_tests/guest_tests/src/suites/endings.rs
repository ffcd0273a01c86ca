//! Tests after which the guest cannot go on. Each runs only if it is named.

#![expect(unsafe_code, reason = "the guest is meant to end")]

use super::{Machine, Needs, Test, test};
use crate::machine::memory::Page;
use crate::machine::probe::{rdmsr, wrmsr};
use crate::machine::{power, vps};
use crate::report::{Failure, TestResult};
use core::arch::asm;
use hv_defs::msr::{CrashControl, HV_X64_MSR_CRASH_CTL, HV_X64_MSR_CRASH_P0, HV_X64_MSR_RESET};
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

pub(super) const TESTS: &[Test] = &[
    test("end.triple_fault", Needs::Ending, triple_fault),
    test(
        "end.triple_fault_of_another_vp",
        Needs::Ending,
        triple_fault_of_another_vp,
    ),
    test("end.reset_by_acpi", Needs::Ending, reset_by_acpi),
    test("end.reset_by_msr", Needs::Ending, reset_by_msr),
    test("end.crash_message", Needs::Ending, crash_message),
    test(
        "end.page_tables_in_forbidden_memory",
        Needs::Ending,
        forbidden_page_tables,
    ),
];

/// Text of the report of `end.crash_message`.
const CRASH_TEXT: &[u8] = b"the guest crashes on purpose";

fn survived() -> TestResult {
    Err(Failure::new(format_args!("the guest goes on")))
}

fn triple_fault(_: &Machine<'_>) -> TestResult {
    die();
    survived()
}

/// An exception without a table to find a handler in.
fn die() {
    let none = [0u16; 5];
    // SAFETY: nothing of this VP is meant to go on.
    unsafe { asm!("lidt [{}]", "xor r10d, r10d", "ud2", in(reg) none.as_ptr(), out("r10") _) };
}

fn triple_fault_of_another_vp(machine: &Machine<'_>) -> TestResult {
    let Some((vp, apic_id)) = machine.other_vps()?.last() else {
        return Err(Failure::Skipped("there is one VP"));
    };
    vps::run_on(vp, apic_id, die);
    survived()
}

fn reset_by_acpi(machine: &Machine<'_>) -> TestResult {
    power::reset(&machine.tables)
}

fn reset_by_msr(_: &Machine<'_>) -> TestResult {
    wrmsr(HV_X64_MSR_RESET, 1)?;
    survived()
}

fn crash_message(_: &Machine<'_>) -> TestResult {
    Page::ANY.write_bytes(CRASH_TEXT);
    let parameters = [1, 2, 3, Page::ANY.address(), CRASH_TEXT.len() as u64];
    for (msr, value) in (HV_X64_MSR_CRASH_P0..).zip(parameters) {
        wrmsr(msr, value)?;
    }
    let control = CrashControl::new()
        .with_crash_notify(true)
        .with_crash_message(true);
    wrmsr(HV_X64_MSR_CRASH_CTL, control.into_bits())?;
    rdmsr(HV_X64_MSR_CRASH_CTL)?;
    survived()
}

fn first_forbidden(machine: &Machine<'_>) -> Result<u64, Failure> {
    match machine.options.forbidden().next() {
        Some(range) => Ok(range.start),
        None => Err(Failure::Skipped("no range is forbidden")),
    }
}

fn forbidden_page_tables(machine: &Machine<'_>) -> TestResult {
    let root = PhysFrame::containing_address(PhysAddr::new_truncate(first_forbidden(machine)?));
    // SAFETY: nothing of this guest is meant to go on.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
    survived()
}
