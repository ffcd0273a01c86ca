//! Hardware breakpoints: where the guest is stopped, and where nobody else is.

use super::environment::access;
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::memory::Page;
use crate::machine::probe::{self, DB, Fault, GP, Registers, UD, cpuid};
use crate::report::{Failure, TestResult};
use core::ops::Range;
use x86_defs::CR4_DE;

pub(super) const TESTS: &[Test] = &[
    test(
        "breakpoints.own_instructions_stop",
        Needs::Nothing,
        own_instructions_stop,
    ),
    test(
        "breakpoints.registers_are_checked",
        Needs::Nothing,
        registers_are_checked,
    ),
    test(
        "breakpoints.own_data_does_not_stop",
        Needs::Host,
        own_data_does_not_stop,
    ),
    test(
        "breakpoints.the_host_does_not_stop",
        Needs::Host,
        the_host_does_not_stop,
    ),
    test(
        "breakpoints.vtl2_does_not_stop",
        Needs::Host,
        vtl2_does_not_stop,
    ),
];

/// DR7 after reset.
const NONE: u64 = 0x400;
/// All breakpoints are on instructions.
const INSTRUCTIONS: u64 = NONE | 0xaa;
/// All are on accesses to eight bytes.
const ACCESSES: u64 = NONE | 0xbbbb_00aa;
/// DR6 without a cause.
const NO_CAUSE: u64 = 0xffff_0ff0;
/// Bits of DR6 that name breakpoints.
const CAUSES: u64 = 0xf;

/// Bytes of the host's memory that its code is in, at least.
const HOST_CODE: u64 = 256 << 10;
/// Linear addresses of VTL2's kernel, and of its processes.
const VTL2_CODE: [Range<u64>; 2] = [
    0xffff_ffff_8100_0000..0xffff_ffff_8200_0000,
    0x40_0000..0x100_0000,
];

/// NOP four times, RET.
const CODE: u64 = 0xc3_9090_9090;

/// Sets the breakpoints anew.
fn set(addresses: [u64; 4], dr7: u64) -> TestResult {
    clear()?;
    let [rax, rbx, rcx, rdx] = addresses;
    probe::set_breakpoints(Registers {
        rax,
        rbx,
        rcx,
        rdx,
        rdi: dr7,
        ..Default::default()
    })?;
    Ok(())
}

fn clear() -> TestResult {
    probe::set_dr7(with_rax(NONE))?;
    probe::set_dr6(with_rax(NO_CAUSE))?;
    Ok(())
}

fn with_rax(rax: u64) -> Registers {
    Registers {
        rax,
        ..Default::default()
    }
}

/// Leaves to the host, and to VTL2.
fn leave() -> TestResult {
    cpuid(1);
    // A port that VTL2 answers for.
    probe::in8_immediate(Registers::default())?;
    Ok(())
}

fn call(address: u64) -> Result<Registers, Fault> {
    probe::call(Registers {
        rbx: address,
        ..Default::default()
    })
}

/// Runs a test and takes the breakpoints back.
fn with_breakpoints(work: impl FnOnce() -> TestResult) -> TestResult {
    let result = work();
    clear().and(result)
}

fn own_instructions_stop(_: &Machine<'_>) -> TestResult {
    Page::ANY.write(0, CODE);
    let at = Page::ANY.address();
    let addresses = [at + 3, at + 2, at + 1, at];
    with_breakpoints(|| {
        for number in 0..4u64 {
            let dr7 = NONE | 2 << (2 * number);
            set(addresses, dr7)?;
            for leaves in [false, true, true] {
                if leaves {
                    leave()?;
                }
                let result = call(at);
                ensure!(
                    result.is_err_and(|fault| fault.vector == DB),
                    "breakpoint {number}: {result:x?}"
                );
                let found = probe::debug_registers(Registers::default())?;
                ensure!(
                    found.rax == dr7 && found.rbx & CAUSES == 1 << number,
                    "breakpoint {number}: {found:x?}"
                );
                ensure!(
                    (found.rcx, found.rdx) == (addresses[0], addresses[3]),
                    "{found:x?}, expected {addresses:x?}"
                );
            }
            // One behind it is not reached, one that is off stops nobody.
            set(addresses, NONE)?;
            ensure!(call(at).is_ok(), "breakpoint {number} is still on");
        }
        // Elsewhere, while it is on.
        set([0, 0, 0, at + 4096], INSTRUCTIONS)?;
        ensure!(call(at).is_ok(), "stopped by a breakpoint elsewhere");
        probe::set_dr3(with_rax(at + 1))?;
        let result = call(at);
        ensure!(
            result.is_err_and(|fault| fault.vector == DB),
            "moved breakpoint: {result:x?}"
        );
        Ok(())
    })
}

fn registers_are_checked(_: &Machine<'_>) -> TestResult {
    let expect = |name: &str, result: Result<Registers, Fault>, vector| {
        ensure!(
            result.is_err_and(|fault| fault.vector == vector),
            "{name} gives {result:x?}, expected exception {vector}"
        );
        Ok(())
    };
    with_breakpoints(|| {
        expect("DR7", probe::set_dr7(with_rax(1 << 32)), GP)?;
        probe::set_dr5(with_rax(0x500))?;
        let found = probe::debug_registers(Registers::default())?.rax;
        ensure!(found == 0x500, "DR7 is {found:#x} after a write of DR5");
        let before = probe::cr4(Registers::default())?.rax;
        probe::set_cr4(with_rax(before | CR4_DE))?;
        let result = probe::set_dr5(with_rax(NONE));
        probe::set_cr4(with_rax(before))?;
        expect("DR5 with CR4.DE", result, UD)
    })
}

/// The host does not arm these: the processor would stop others.
fn own_data_does_not_stop(_: &Machine<'_>) -> TestResult {
    let at = Page::ANY.address();
    with_breakpoints(|| {
        set([at, at + 8, at + 16, at + 24], ACCESSES)?;
        access(probe::store64, at, 1)?;
        leave()?;
        access(probe::store64, at + 8, 1)?;
        let found = probe::debug_registers(Registers::default())?;
        ensure!(
            found.rax == ACCESSES && found.rbx & CAUSES == 0,
            "{found:x?}"
        );
        Ok(())
    })
}

/// Breakpoints all over a range, at every `step` bytes, while others run.
fn stop_nobody(range: Range<u64>, step: u64, dr7: u64, leave: fn() -> TestResult) -> TestResult {
    with_breakpoints(|| {
        let mut at = range.start;
        while at < range.end {
            set([0, 1, 2, 3].map(|number| at + number * step), dr7)?;
            leave()?;
            at += 4 * step;
        }
        Ok(())
    })
}

fn the_host_does_not_stop(machine: &Machine<'_>) -> TestResult {
    let Some(host) = machine.options.forbidden().next() else {
        return Err(Failure::Skipped("no range is forbidden"));
    };
    let exit = || {
        cpuid(1);
        Ok(())
    };
    let code = host.start..host.end.min(host.start + HOST_CODE);
    // Instructions may begin anywhere, and an exit executes many of them.
    stop_nobody(code, 3, INSTRUCTIONS, exit)?;
    // What it has on stacks and heap.
    stop_nobody(host, 1032, ACCESSES, exit)
}

fn vtl2_does_not_stop(_: &Machine<'_>) -> TestResult {
    for code in VTL2_CODE {
        stop_nobody(code.clone(), 509, INSTRUCTIONS, leave)?;
        stop_nobody(code, 4104, ACCESSES, leave)?;
    }
    Ok(())
}
