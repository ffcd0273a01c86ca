//! Instructions that are a hypervisor's, or that nobody has.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::memory::Page;
use crate::machine::probe::{self, Fault, GP, Instruction, Registers, UD, rdmsr, wrmsr};
use crate::report::TestResult;
use x86_defs::msr::EFER;

pub(super) const TESTS: &[Test] = &[
    test(
        "instructions.svm_does_not_exist",
        Needs::Host,
        svm_does_not_exist,
    ),
    test(
        "instructions.svm_cannot_be_enabled",
        Needs::Host,
        svm_cannot_be_enabled,
    ),
    test(
        "instructions.vmx_does_not_exist",
        Needs::Host,
        vmx_does_not_exist,
    ),
    test(
        "instructions.smm_cannot_be_left",
        Needs::Nothing,
        smm_cannot_be_left,
    ),
    test(
        "instructions.xsetbv_is_checked",
        Needs::Nothing,
        xsetbv_is_checked,
    ),
];

/// EFER: SVM.
const SVME: u64 = 1 << 12;

fn faults(name: &str, result: Result<Registers, Fault>, vectors: &[u8]) -> TestResult {
    ensure!(
        result.is_err_and(|fault| vectors.contains(&fault.vector)),
        "{name} gives {result:x?}, expected exception {vectors:?}"
    );
    Ok(())
}

fn svm_does_not_exist(_: &Machine<'_>) -> TestResult {
    let all: [(&str, Instruction); 7] = [
        ("VMRUN", probe::vmrun),
        ("VMLOAD", probe::vmload),
        ("VMSAVE", probe::vmsave),
        ("STGI", probe::stgi),
        ("CLGI", probe::clgi),
        ("SKINIT", probe::skinit),
        ("INVLPGA", probe::invlpga),
    ];
    for (name, instruction) in all {
        // An address that no processor has may be noticed first.
        for (rax, vectors) in [
            (Page::ANY.address(), &[UD][..]),
            (0, &[UD]),
            (u64::MAX, &[UD, GP]),
        ] {
            let result = instruction(Registers {
                rax,
                ..Default::default()
            });
            faults(name, result, vectors)?;
        }
    }
    Ok(())
}

fn svm_cannot_be_enabled(_: &Machine<'_>) -> TestResult {
    let before = rdmsr(EFER)?;
    ensure!(before & SVME == 0, "EFER is {before:#x}");
    let result = wrmsr(EFER, before | SVME);
    let after = rdmsr(EFER)?;
    ensure!(
        after == before,
        "EFER is {after:#x} afterwards, expected {before:#x}"
    );
    ensure!(
        result.is_ok() || result.is_err_and(|fault| fault.vector == GP),
        "{result:?}"
    );
    svm_does_not_exist_now()
}

fn svm_does_not_exist_now() -> TestResult {
    faults("VMSAVE", probe::vmsave(Registers::default()), &[UD])
}

fn vmx_does_not_exist(_: &Machine<'_>) -> TestResult {
    let result = probe::vmxon(Registers {
        rbx: Page::ANY.address(),
        ..Default::default()
    });
    faults("VMXON", result, &[UD])
}

fn smm_cannot_be_left(_: &Machine<'_>) -> TestResult {
    faults("RSM", probe::rsm(Registers::default()), &[UD])
}

fn xsetbv_is_checked(_: &Machine<'_>) -> TestResult {
    // XCR0 without x87, and a register that does not exist. Without OSXSAVE it is #UD.
    for (rcx, rax) in [(0, 0), (0, 2), (7, 1)] {
        let result = probe::xsetbv(Registers {
            rcx,
            rax,
            ..Default::default()
        });
        faults("XSETBV", result, &[GP, UD])?;
    }
    Ok(())
}
