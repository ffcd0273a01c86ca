//! What VTL2 may do to its host, from inside: the test payload `tmk` runs in VTL2 in place
//! of shim and kernel.

use qemu::ByteCount;
use qemu::Exit;
use qemu::Source;
use std::time::Duration;
use tmk::abi::CRASH_TEXT;
use tmk::abi::FORGERY;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vmm_tests::TmkImage;
use vsm_host_defs::ExitReason;
use vsm_host_defs::HOST_MEMORY_BASE;
use vsm_host_defs::HOST_MEMORY_SIZE;

/// Prefix of a failed check on VTL2's console.
const FAILED: &str = ": fail: ";
/// 1 MiB.
const MIB: u64 = 1 << 20;
/// Exits that a machine with its first vCPU parked must survive.
const PARKED_EXITS: u64 = 200_000;
/// Exits within which a machine without a parked vCPU is expected to die.
const UNPARKED_EXITS: u64 = 500_000;
/// When the unparked machine counts as hanging, which is one way to die.
const UNPARKED_DEADLINE: Duration = Duration::from_secs(180);

/// A machine with the payload that runs these suites.
#[track_caller]
fn tmk(image: TmkImage, arguments: &str) -> Scenario {
    Scenario::image_bytes(&image.pack()).bootargs(&format!("tmk.test={arguments}"))
}

/// Every check passes and the payload powers the machine off.
#[track_caller]
fn passes(scenario: Scenario) -> TestVm {
    let mut vm = scenario.start();
    vm.expect(Source::Vtl2, "tmk: done ");
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    assert!(!console.contains(FAILED), "{console}");
    assert!(console.contains(" 0 failed"), "{console}");
    vm
}

/// The payload announces that it ends the machine, which then ends by a crash; the cause.
#[track_caller]
fn crashes(scenario: Scenario) -> (String, TestVm) {
    let mut vm = scenario.start();
    vm.expect(Source::Vtl2, ": ends the machine");
    let cause = vm.expect_crash();
    (cause, vm)
}

#[test]
fn parameters_of_every_kind_agree_with_each_other() {
    passes(tmk(TmkImage::built(), "params"));
    passes(tmk(TmkImage::built(), "params").vps(4));
}

#[test]
fn parameters_tell_memory_above_4_gib() {
    passes(tmk(TmkImage::built(), "params").memory(ByteCount::gib(5)));
}

#[test]
fn an_image_of_another_layout_runs_at_any_fixed_place() {
    for base in [64 * MIB, 256 * MIB] {
        let vm = passes(tmk(TmkImage::built().base(base), "params"));
        let console = vm.console(Source::Vtl2);
        assert!(console.contains("relocated false"), "{console}");
    }
}

#[test]
fn an_image_that_cannot_stay_is_moved_and_runs_identically() {
    for image in [
        TmkImage::built().must_move(),
        TmkImage::built().must_move().small_leaves(),
    ] {
        let vm = passes(tmk(image, "params,cpuid,hypercalls,smp").vps(2));
        let console = vm.console(Source::Vtl2);
        assert!(console.contains("relocated true"), "{console}");
    }
}

#[test]
fn a_relocatable_image_stays_if_it_can() {
    let vm = passes(tmk(TmkImage::built().relocatable(2 * MIB), "params"));
    let console = vm.console(Source::Vtl2);
    assert!(console.contains("relocated false"), "{console}");
}

#[test]
fn a_file_of_the_second_version_with_another_platform_is_loaded() {
    passes(tmk(
        TmkImage::built().second_version().other_platform(),
        "params",
    ));
}

#[test]
fn a_fixed_image_in_the_memory_of_the_host_is_refused() {
    let image = TmkImage::built().base(HOST_MEMORY_BASE);
    let mut vm = tmk(image, "params").start();
    let reason = vm.expect_refusal();
    assert!(reason.contains("memory of the host"), "{reason}");
}

#[test]
fn cpuid_shows_hyper_v_and_hides_svm_and_xsave() {
    passes(tmk(TmkImage::built(), "cpuid"));
}

#[test]
fn msrs_that_are_not_vtl2s_are_protected() {
    passes(tmk(TmkImage::built(), "msrs"));
}

#[test]
fn instructions_with_prefixes_and_of_user_mode_are_handled() {
    passes(tmk(TmkImage::built(), "instructions"));
}

#[test]
fn the_ports_of_the_host_are_out_of_reach() {
    let vm = passes(tmk(TmkImage::built(), "ports"));
    let host = vm.console(Source::Host);
    assert!(!host.contains(FORGERY) && !host.contains("FF"), "{host}");
}

#[test]
fn malformed_hypercalls_get_the_status_that_they_deserve() {
    passes(tmk(TmkImage::built(), "hypercalls").vps(3));
}

#[test]
fn all_vps_start_and_know_who_they_are() {
    for vps in [1, 2, 8] {
        passes(tmk(TmkImage::built(), "smp").vps(vps));
    }
}

#[test]
fn random_hypercalls_and_msr_accesses_do_not_harm_the_host() {
    for seed in [1, 2] {
        let arguments = format!("fuzz tmk.count=40000 tmk.seed={seed}");
        passes(tmk(TmkImage::built(), &arguments).vps(2));
    }
}

#[test]
fn memory_of_the_host_is_out_of_reach() {
    let last = HOST_MEMORY_BASE + HOST_MEMORY_SIZE - 8;
    for (access, verb, gpa) in [
        ("read", "reads from", HOST_MEMORY_BASE),
        ("write", "writes to", HOST_MEMORY_BASE + 4 * MIB),
        ("execute", "executes at", HOST_MEMORY_BASE + 8 * MIB),
        ("read", "reads from", last),
        // The HPET, and what QEMU would take for an interrupt message of a device.
        ("write", "writes to", 0xfed0_0000),
        ("write", "writes to", 0xfee0_1000),
    ] {
        let arguments = format!("touch tmk.gpa={gpa:#x} tmk.access={access}");
        let (cause, vm) = crashes(tmk(TmkImage::built(), &arguments));
        let expected = format!("{verb} GPA {gpa:#x}");
        assert!(cause.contains(&expected), "{cause}, expected {expected}");
        drop(vm);
    }
}

#[test]
fn a_crash_report_of_vtl2_is_shown_with_its_text() {
    let (cause, vm) = crashes(tmk(TmkImage::built(), "crash_message"));
    let host = vm.console(Source::Host);
    assert!(host.contains(CRASH_TEXT), "{cause}\n{host}");
    assert!(host.contains("1111222233334444"), "{host}");
}

#[test]
fn a_triple_fault_on_any_vp_is_shown_with_registers() {
    let (_, vm) = crashes(tmk(TmkImage::built(), "triple_fault"));
    let host = vm.console(Source::Host);
    assert!(host.contains("rip") && host.contains("cr3"), "{host}");
    let (cause, vm) = crashes(tmk(TmkImage::built(), "ap_triple_fault").vps(3));
    let host = vm.console(Source::Host);
    assert!(host.contains("VP 2"), "{cause}\n{host}");
}

#[test]
fn a_reset_is_told_apart_from_power_off() {
    let mut vm = tmk(TmkImage::built(), "reset").start();
    vm.expect(Source::Vtl2, ": ends the machine");
    vm.expect_exit(ExitReason::Reset);
}

#[test]
fn with_the_first_vcpu_parked_exits_survive_floating_point_restores() {
    let arguments = format!("stress tmk.count={PARKED_EXITS}");
    passes(tmk(TmkImage::built(), &arguments).vps(2));
}

/// Why the first vCPU is parked: QEMU's multi-threaded emulation corrupts its state.
/// Should this test fail because the machine survives, QEMU has been repaired, and
/// parking may be given up for that version.
#[test]
fn without_a_parked_vcpu_the_machine_dies() {
    let arguments = format!("stress tmk.count={UNPARKED_EXITS}");
    let mut vm = tmk(TmkImage::built(), &arguments)
        .vps(3)
        .with(|machine| machine.unparked())
        .start();
    vm.expect(Source::Vtl2, "tmk: stress: 0 exits");
    let exit = vm.vm().wait_exit(UNPARKED_DEADLINE);
    let host = vm.console(Source::Host);
    assert!(
        !matches!(exit, Ok(Exit::Host(ExitReason::PowerOff))),
        "it survived {UNPARKED_EXITS} exits\n{host}"
    );
    // It may also hang or reset; where the host sees it, it says whose fault it is.
    if matches!(exit, Ok(Exit::Host(ExitReason::HostError))) {
        assert!(host.contains("which must be parked"), "{host}");
    }
}

#[test]
fn no_code_of_vtl2_runs_outside_of_a_vtl() {
    // The parked CPU, one whose VP has not been started, the sender itself, and all.
    for apic_id in [0, 2, 1, 255] {
        let arguments = format!("sipi tmk.apic={apic_id}");
        passes(tmk(TmkImage::built(), &arguments).vps(2));
    }
}
