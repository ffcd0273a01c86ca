//! Synthetic MSRs, and MSRs that a VTL may not have.

use super::{Context, GUEST_OS_ID, enable_hypercall_page};
use crate::abi::PAGE_SIZE;
use crate::ensure;
use crate::machine::memory::{self, ScratchPage};
use crate::machine::probe::{Fault, MSR_EFER, VECTOR_GP, rdmsr, wrmsr};
use crate::report::{CheckResult, Failure};
use hv_defs::msr::*;
use vsm_host_defs::HOST_MEMORY_BASE;

/// APIC base.
const MSR_APIC_BASE: u32 = 0x1b;
/// SVM: what the host saves at VMRUN.
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
/// SVM: switches.
const MSR_VM_CR: u32 = 0xc001_0114;
/// VM_CR: SVM is disabled.
const VM_CR_SVMDIS: u64 = 1 << 4;
/// EFER: SVM is enabled.
const EFER_SVME: u64 = 1 << 12;
/// EFER: system calls.
const EFER_SCE: u64 = 1;
/// APIC base: this is the boot processor.
const APIC_BASE_BSP: u64 = 1 << 8;
/// APIC base: enabled.
const APIC_BASE_ENABLED: u64 = 1 << 11;
/// Address of the local APIC.
const APIC_ADDRESS: u64 = 0xfee0_0000;
/// An address behind all RAM and devices.
const UNMAPPED: u64 = 0x7f_ffff_f000;
/// 100 ns units per second.
const REFERENCE_HZ: u64 = 10_000_000;

/// Numbers that nobody defines: synthetic, native, and outside of the ranges of the
/// processor's permission map.
const UNKNOWN: [u32; 8] = [
    0x4000_0024,
    0x4000_0fff,
    0x4000_1fff,
    0x4000_2000,
    0x1234_5678,
    0x8000_0000,
    0xc002_0000,
    0xffff_ffff,
];

pub(super) fn run(c: &mut Context<'_>) {
    let r = &mut c.reporter;
    r.check("msrs.hypercall_page_needs_guest_os_id", || {
        wrmsr(HV_X64_MSR_GUEST_OS_ID, 0)?;
        let page = overlay(ScratchPage::HYPERCALL.address());
        let written = wrmsr(HV_X64_MSR_HYPERCALL, page);
        let value = rdmsr(HV_X64_MSR_HYPERCALL)?;
        ensure!(
            written.is_err() || value & 1 == 0,
            "it was enabled: {value:#x}"
        );
        Ok(())
    });
    r.check("msrs.guest_os_id_is_kept", || {
        wrmsr(HV_X64_MSR_GUEST_OS_ID, GUEST_OS_ID)?;
        reads(HV_X64_MSR_GUEST_OS_ID, GUEST_OS_ID)
    });
    r.check("msrs.hypercall_page_has_code", || {
        ScratchPage::HYPERCALL.fill(0);
        enable_hypercall_page()?;
        let first = ScratchPage::HYPERCALL.read(0);
        ensure!(
            first & 0xff_ffff == 0xd9_010f,
            "page begins with {first:#x}, expected VMMCALL"
        );
        Ok(())
    });
    r.check("msrs.vp_index_is_read_only", || {
        reads(HV_X64_MSR_VP_INDEX, 0)?;
        protected(wrmsr(HV_X64_MSR_VP_INDEX, 1))?;
        reads(HV_X64_MSR_VP_INDEX, 0)
    });
    r.check("msrs.reset_reads_zero", || reads(HV_X64_MSR_RESET, 0));
    r.check("msrs.frequencies_are_plausible_and_read_only", || {
        for msr in [HV_X64_MSR_TSC_FREQUENCY, HV_X64_MSR_APIC_FREQUENCY] {
            let hertz = rdmsr(msr)?;
            ensure!(
                (10_000_000..20_000_000_000).contains(&hertz),
                "{msr:#x}: {hertz} Hz"
            );
            protected(wrmsr(msr, 1))?;
        }
        Ok(())
    });
    r.check("msrs.reference_counter_runs", || {
        let (tsc_hz, before) = (
            rdmsr(HV_X64_MSR_TSC_FREQUENCY)?,
            rdmsr(HV_X64_MSR_TIME_REF_COUNT)?,
        );
        let start = memory::tsc();
        while memory::tsc().wrapping_sub(start) < tsc_hz / 50 {
            core::hint::spin_loop();
        }
        let passed = rdmsr(HV_X64_MSR_TIME_REF_COUNT)?.wrapping_sub(before);
        ensure!(
            (REFERENCE_HZ / 50..REFERENCE_HZ).contains(&passed),
            "{passed} units in 20 ms of TSC time"
        );
        protected(wrmsr(HV_X64_MSR_TIME_REF_COUNT, 0))
    });
    r.check("msrs.reference_tsc_page_agrees_with_counter", || {
        reference_tsc_page()
    });
    r.check("msrs.vp_assist_page_is_kept", || {
        let page = overlay(ScratchPage::OVERLAY.address());
        wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, page)?;
        reads(HV_X64_MSR_VP_ASSIST_PAGE, page)?;
        wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, 0)?;
        Ok(())
    });
    r.check("msrs.crash_parameters_are_kept", || {
        for msr in HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 {
            wrmsr(msr, u64::from(msr) << 20)?;
        }
        for msr in HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 {
            reads(msr, u64::from(msr) << 20)?;
        }
        let control = CrashControl::from_bits(rdmsr(HV_X64_MSR_CRASH_CTL)?);
        ensure!(control.crash_notify(), "control {control:?}");
        Ok(())
    });
    r.check("msrs.tsc_invariant_control_is_kept", || {
        wrmsr(HV_X64_MSR_TSC_INVARIANT_CONTROL, 1)?;
        reads(HV_X64_MSR_TSC_INVARIANT_CONTROL, 1)
    });
    for (name, msr) in [
        ("msrs.hypercall_page_is_confined", HV_X64_MSR_HYPERCALL),
        ("msrs.reference_tsc_is_confined", HV_X64_MSR_REFERENCE_TSC),
        ("msrs.vp_assist_is_confined", HV_X64_MSR_VP_ASSIST_PAGE),
    ] {
        r.check(name, || confined(msr));
    }
    r.check("msrs.hypercall_page_can_be_restored", enable_hypercall_page);
    r.check("msrs.unknown_ones_are_protected", || {
        for msr in UNKNOWN {
            let fault = rdmsr(msr);
            ensure!(fault.is_err(), "{msr:#x} can be read: {fault:x?}");
            protected(wrmsr(msr, 0))?;
        }
        Ok(())
    });
    r.check("msrs.svm_cannot_be_enabled", || {
        let efer = rdmsr(MSR_EFER)?;
        ensure!(efer & EFER_SVME == 0, "efer {efer:#x}");
        protected(wrmsr(MSR_EFER, efer | EFER_SVME))?;
        reads(MSR_EFER, efer)
    });
    r.check("msrs.efer_is_otherwise_usable", || {
        let efer = rdmsr(MSR_EFER)?;
        wrmsr(MSR_EFER, efer | EFER_SCE)?;
        reads(MSR_EFER, efer | EFER_SCE)?;
        wrmsr(MSR_EFER, efer)?;
        // Reserved bits, and leaving long mode while paging is on.
        protected(wrmsr(MSR_EFER, efer | 1 << 40))?;
        protected(wrmsr(MSR_EFER, efer & !(1 << 8)))?;
        reads(MSR_EFER, efer)
    });
    r.check("msrs.host_save_area_is_protected", || {
        let read = rdmsr(MSR_VM_HSAVE_PA);
        ensure!(read.is_err(), "it can be read: {read:x?}");
        protected(wrmsr(MSR_VM_HSAVE_PA, ScratchPage::OVERLAY.address()))
    });
    r.check("msrs.vm_cr_is_protected", || {
        if let Ok(value) = rdmsr(MSR_VM_CR) {
            ensure!(value & VM_CR_SVMDIS != 0, "reads {value:#x}, SVM enabled");
        }
        protected(wrmsr(MSR_VM_CR, 0))
    });
    r.check("msrs.apic_base_cannot_be_moved", || {
        let value = rdmsr(MSR_APIC_BASE)?;
        let expected = APIC_ADDRESS | APIC_BASE_BSP | APIC_BASE_ENABLED;
        ensure!(value == expected, "{value:#x}, expected {expected:#x}");
        wrmsr(MSR_APIC_BASE, value)?;
        for other in [HOST_MEMORY_BASE, ScratchPage::OVERLAY.address(), UNMAPPED] {
            protected(wrmsr(
                MSR_APIC_BASE,
                other | APIC_BASE_BSP | APIC_BASE_ENABLED,
            ))?;
        }
        reads(MSR_APIC_BASE, value)
    });
    r.check("msrs.memory_types_are_own", || {
        // The kernel reads and writes them natively.
        let capabilities = rdmsr(0xfe)?;
        let default = rdmsr(0x2ff)?;
        wrmsr(0x2ff, default)?;
        ensure!(capabilities & 0xff != 0, "MTRRcap {capabilities:#x}");
        Ok(())
    });
}

fn overlay(address: u64) -> u64 {
    OverlayPage::new()
        .with_enabled(true)
        .with_page_number(address / PAGE_SIZE)
        .into_bits()
}

fn reads(msr: u32, expected: u64) -> CheckResult {
    let found = rdmsr(msr)?;
    ensure!(
        found == expected,
        "{msr:#x} reads {found:#x}, expected {expected:#x}"
    );
    Ok(())
}

fn protected(result: Result<(), Fault>) -> Result<(), Failure> {
    ensure!(
        result.err().map(|fault| fault.vector) == Some(VECTOR_GP),
        "gave {result:?}, expected #GP"
    );
    Ok(())
}

/// The page cannot be placed where VTL2 has no RAM. Refusal may be #GP or a cleared
/// enable bit.
fn confined(msr: u32) -> CheckResult {
    for address in [
        HOST_MEMORY_BASE,
        HOST_MEMORY_BASE + 0x10_0000,
        UNMAPPED,
        !0xfff,
    ] {
        let written = wrmsr(msr, overlay(address));
        let value = rdmsr(msr)?;
        ensure!(
            written.is_err() || value & 1 == 0,
            "{msr:#x} accepted {address:#x}: reads {value:#x}"
        );
    }
    // Whatever was in the register before, the feature works again afterwards.
    wrmsr(msr, 0)?;
    Ok(())
}

/// Layout of the page: u32 sequence, u32, u64 scale, i64 offset; the time is
/// ((tsc * scale) >> 64) + offset.
fn reference_tsc_page() -> CheckResult {
    let page = ScratchPage::OVERLAY;
    page.fill(0);
    wrmsr(HV_X64_MSR_REFERENCE_TSC, overlay(page.address()))?;
    let (sequence, scale, offset) = (page.read(0) as u32, page.read(1), page.read(2));
    ensure!(sequence != 0, "sequence is 0: page not valid");
    let now = |tsc: u64| {
        ((u128::from(tsc) * u128::from(scale)) >> 64).wrapping_add_signed(i128::from(offset as i64))
            as u64
    };
    let before = rdmsr(HV_X64_MSR_TIME_REF_COUNT)?;
    let by_page = now(memory::tsc());
    let after = rdmsr(HV_X64_MSR_TIME_REF_COUNT)?;
    wrmsr(HV_X64_MSR_REFERENCE_TSC, 0)?;
    ensure!(
        // One unit for rounding.
        before <= by_page + 1 && by_page <= after + 1,
        "page says {by_page}, counter {before} before and {after} after"
    );
    Ok(())
}
