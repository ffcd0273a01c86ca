//! CPUID, and instructions whose length the host must find out itself.

use super::Context;
use crate::ensure;
use crate::machine::entry::UserCode;
use crate::machine::memory;
use crate::machine::probe::{
    self, Fault, Registers, VECTOR_GP, VECTOR_UD, cpuid_leaf, cpuid_subleaf,
};
use crate::report::CheckResult;
use hv_defs::cpuid::{
    Features, HV_CPUID_FEATURES, HV_CPUID_INTERFACE, HV_CPUID_LIMITS, HV_CPUID_VENDOR,
    HV_INTERFACE, HV_VENDOR, PartitionPrivileges,
};
use hv_defs::hypercall::{HvStatus, HypercallControl};
use hv_defs::msr::{HV_X64_MSR_TSC_FREQUENCY, HV_X64_MSR_VP_INDEX};

/// Leaf that Linux reads without looking at the highest leaf; bit 3 would claim a
/// confidential VMBus.
const HV_CPUID_VIRTUALIZATION_STACK: u32 = 0x4000_0082;
/// A hypercall code that nobody implements.
const NO_SUCH_CALL: u16 = 0x7ead;

/// A form of an instruction.
type Form = fn(Registers) -> Result<Registers, Fault>;

/// CPUID leaves.
pub(super) fn cpuid(c: &mut Context<'_>) {
    let vps = c.parameters.vp_count().unwrap_or(0);
    let first_id = c
        .parameters
        .apic_ids()
        .ok()
        .and_then(|ids| ids.first().copied());
    let r = &mut c.reporter;
    r.check("cpuid.hypervisor_is_announced", || {
        let [_, _, ecx, _] = cpuid_leaf(1)?;
        ensure!(ecx >> 31 == 1, "leaf 1 ecx {ecx:#x}");
        let [max, vendor @ ..] = cpuid_leaf(HV_CPUID_VENDOR)?;
        ensure!(vendor == HV_VENDOR, "vendor {vendor:x?}");
        ensure!(
            (0x4000_0005..0x4000_000a).contains(&max),
            "highest leaf {max:#x}"
        );
        let [interface, ..] = cpuid_leaf(HV_CPUID_INTERFACE)?;
        ensure!(interface == HV_INTERFACE, "interface {interface:#x}");
        Ok(())
    });
    r.check("cpuid.xsave_is_hidden", || {
        let [_, _, ecx, _] = cpuid_leaf(1)?;
        // FMA, XSAVE, OSXSAVE, AVX, F16C.
        let bits = 1 << 12 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
        ensure!(ecx & bits == 0, "leaf 1 ecx {ecx:#x}");
        let [_, ebx, ..] = cpuid_subleaf(7, 0)?;
        // AVX2, AVX-512.
        let bits = 1 << 5 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31;
        ensure!(ebx & bits == 0, "leaf 7 ebx {ebx:#x}");
        for subleaf in 0..3 {
            let leaf = cpuid_subleaf(0xd, subleaf)?;
            ensure!(leaf == [0; 4], "leaf 0xd.{subleaf} {leaf:x?}");
        }
        Ok(())
    });
    r.check("cpuid.svm_is_hidden", || {
        let [_, _, ecx, _] = cpuid_leaf(0x8000_0001)?;
        ensure!(ecx & 4 == 0, "leaf 0x80000001 ecx {ecx:#x}");
        let leaf = cpuid_leaf(0x8000_000a)?;
        ensure!(leaf == [0; 4], "leaf 0x8000000a {leaf:x?}");
        Ok(())
    });
    r.check("cpuid.tsc_is_invariant", || {
        let [.., edx] = cpuid_leaf(0x8000_0007)?;
        ensure!(edx & 1 << 8 != 0, "leaf 0x80000007 edx {edx:#x}");
        Ok(())
    });
    r.check("cpuid.privileges_are_those_that_are_needed", || {
        let [eax, ebx, _, edx] = cpuid_leaf(HV_CPUID_FEATURES)?;
        let privileges = PartitionPrivileges::from_bits(u64::from(eax) | (u64::from(ebx) << 32));
        let features = Features::from_bits(edx);
        ensure!(
            privileges.access_hypercall()
                && privileges.access_vp_index()
                && privileges.access_frequency()
                && privileges.access_partition_reference_counter()
                && privileges.access_reference_tsc()
                && privileges.access_tsc_invariant()
                && features.frequency_msrs(),
            "a needed bit is missing: eax {eax:#x} ebx {ebx:#x} edx {edx:#x}"
        );
        ensure!(
            !privileges.isolation() && ebx & 1 == 0,
            "a bit that must not be set: ebx {ebx:#x}"
        );
        Ok(())
    });
    r.check("cpuid.limits_hold_the_vps", || {
        let [max_vps, ..] = cpuid_leaf(HV_CPUID_LIMITS)?;
        ensure!(
            max_vps as usize >= vps,
            "{max_vps}, expected at least {vps}"
        );
        Ok(())
    });
    r.check("cpuid.leaves_without_meaning_are_zero", || {
        let leaf = cpuid_leaf(HV_CPUID_VIRTUALIZATION_STACK)?;
        ensure!(leaf == [0; 4], "leaf 0x40000082 {leaf:x?}");
        Ok(())
    });
    r.check("cpuid.apic_id_is_that_of_vp_0", || {
        let [_, ebx, ..] = cpuid_leaf(1)?;
        ensure!(
            Some(ebx >> 24) == first_id,
            "id {}, MADT {first_id:?}",
            ebx >> 24
        );
        Ok(())
    });
}

/// Forms of instructions, and instructions that a VTL may not use.
pub(super) fn run(c: &mut Context<'_>) {
    let r = &mut c.reporter;
    r.check("instructions.probes_catch_faults", || {
        let fault = probe::int3(Registers::default()).err();
        ensure!(fault.map(|f| f.vector) == Some(3), "int3 gave {fault:?}");
        Ok(())
    });
    let vendor = Registers {
        rax: HV_CPUID_VENDOR.into(),
        ..Default::default()
    };
    for (name, form) in [
        ("instructions.cpuid_66", probe::cpuid_66 as Form),
        ("instructions.cpuid_rex", probe::cpuid_rex),
        ("instructions.cpuid_2e_f3", probe::cpuid_2e_f3),
        ("instructions.cpuid_longest", probe::cpuid_longest),
    ] {
        r.check(name, || same_as(probe::cpuid, form, vendor));
    }
    // The first exits because it is synthetic, the second by the permission map.
    for (name, msr, form) in [
        (
            "instructions.rdmsr_rex_synthetic",
            HV_X64_MSR_TSC_FREQUENCY,
            probe::rdmsr_rex as Form,
        ),
        (
            "instructions.rdmsr_66_synthetic",
            HV_X64_MSR_TSC_FREQUENCY,
            probe::rdmsr_66,
        ),
        (
            "instructions.rdmsr_rex_native",
            probe::MSR_EFER,
            probe::rdmsr_rex,
        ),
        (
            "instructions.rdmsr_66_native",
            probe::MSR_EFER,
            probe::rdmsr_66,
        ),
    ] {
        let input = Registers {
            rcx: msr.into(),
            ..Default::default()
        };
        r.check(name, || same_as(probe::rdmsr_plain, form, input));
    }
    r.check("instructions.wrmsr_2e_rex", || {
        let msr = hv_defs::msr::HV_X64_MSR_CRASH_P0;
        probe::wrmsr_2e_rex(Registers {
            rcx: msr.into(),
            rax: 0x1234,
            rdx: 0x5678,
            ..Default::default()
        })
        .map_err(Into::into)
        .and_then(marked)?;
        let value = probe::rdmsr(msr)?;
        ensure!(value == 0x5678_0000_1234, "crash P0 is {value:#x}");
        Ok(())
    });
    r.check("instructions.across_a_page_border", || {
        // CPUID or VMMCALL, split between two pages, then RET. RAX and RCX are right for
        // both: an unknown leaf, an unknown call.
        for (code, split) in [
            (&[0x0f, 0xa2, 0xc3][..], 1),
            (&[0x48, 0x0f, 0xa2, 0xc3], 1),
            (&[0x0f, 0x01, 0xd9, 0xc3], 1),
            (&[0x0f, 0x01, 0xd9, 0xc3], 2),
        ] {
            let address = memory::write_code_across_pages(code, split);
            let after = probe::call_rbx(Registers {
                rax: u64::from(HV_CPUID_VENDOR),
                rbx: address,
                rcx: HypercallControl::new().with_code(NO_SUCH_CALL).into_bits(),
                ..Default::default()
            })?;
            marked(after)?;
            ensure!(
                after.rax != u64::from(HV_CPUID_VENDOR),
                "{code:x?} split at {split} did nothing"
            );
        }
        Ok(())
    });
    for (name, form) in [
        ("instructions.vmmcall_66", probe::vmmcall_66 as Form),
        ("instructions.vmmcall_rex", probe::vmmcall_rex),
    ] {
        r.check(name, || {
            let control = HypercallControl::new().with_code(NO_SUCH_CALL);
            let after = form(Registers {
                rax: u64::MAX,
                rcx: control.into_bits(),
                ..Default::default()
            })?;
            ensure!(
                after.rax == u64::from(HvStatus::INVALID_HYPERCALL_CODE.0),
                "rax {:#x}",
                after.rax
            );
            marked(after)
        });
    }
    for (name, form) in [
        ("instructions.vmrun_is_undefined", probe::vmrun as Form),
        ("instructions.vmload_is_undefined", probe::vmload),
        ("instructions.vmsave_is_undefined", probe::vmsave),
        ("instructions.stgi_is_undefined", probe::stgi),
        ("instructions.clgi_is_undefined", probe::clgi),
        ("instructions.skinit_is_undefined", probe::skinit),
        ("instructions.invlpga_is_undefined", probe::invlpga),
        ("instructions.xgetbv_is_undefined", probe::xgetbv),
        ("instructions.xsetbv_is_undefined", probe::xsetbv),
    ] {
        r.check(name, || {
            let fault = form(Registers::default()).err();
            ensure!(
                fault.map(|f| f.vector) == Some(VECTOR_UD),
                "gave {fault:?}, expected #UD"
            );
            Ok(())
        });
    }
    r.check("instructions.vmmcall_in_user_mode_is_undefined", || {
        user_mode_gives(UserCode::Vmmcall, VECTOR_UD)
    });
    r.check("instructions.rdmsr_in_user_mode_is_protected", || {
        // INT3 behind it would give #GP too (its gate is not for user mode), so the error
        // code is looked at: 0 for RDMSR, the gate's number for INT3.
        user_mode_gives(UserCode::Rdmsr, VECTOR_GP)
    });
    r.check("instructions.vp_index_is_0_on_vp_0", || {
        let index = probe::rdmsr(HV_X64_MSR_VP_INDEX)?;
        ensure!(index == 0, "{index}");
        Ok(())
    });
}

fn user_mode_gives(code: UserCode, vector: u8) -> CheckResult {
    let fault = probe::user_fault(code);
    let expected = Some(Fault { vector, error: 0 });
    ensure!(fault == expected, "gave {fault:?}, expected {expected:?}");
    Ok(())
}

/// Both forms do the same, and the one under test is left at its very end.
fn same_as(plain: Form, form: Form, input: Registers) -> CheckResult {
    let expected = plain(input)?;
    let found = form(input)?;
    ensure!(
        found == expected,
        "gave {found:x?}, plain form {expected:x?}"
    );
    marked(found)
}

fn marked(registers: Registers) -> CheckResult {
    ensure!(registers.marker == 1, "the next instruction was skipped");
    Ok(())
}
