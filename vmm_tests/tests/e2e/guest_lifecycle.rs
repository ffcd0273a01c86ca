//! A guest that resets, crashes or reaches for what is not its own: what becomes of it, and
//! that the paravisor stays what it was.

use boot_events::Event;
use qemu::Source;
use vmm_tests::GuestTests;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vsm_host_defs::ExitReason;

/// Resets in a row.
const RESETS: u32 = 50;

fn number(guest: &GuestTests, path: &str) -> u64 {
    let node = guest.client().inspect(path, 0).unwrap();
    node.as_u64()
        .unwrap_or_else(|| panic!("{path} is {node}, expected a number"))
}

/// What the paravisor is that must not change when the guest starts anew.
fn identity(guest: &GuestTests) -> [u64; 2] {
    [number(guest, "control/pid"), number(guest, "vm/pid")]
}

fn expect_crash(vm: &mut TestVm) -> String {
    vm.expect_event(Source::Vtl2, "crash of the guest", |event| match event {
        Event::GuestCrashed(cause) => Some(cause.to_owned()),
        _ => None,
    })
}

/// A guest that does this, on a machine with this policy.
fn guest(vps: u32, test: &str, config: Option<&str>) -> GuestTests {
    let scenario = Scenario::guest_tests(vps, &format!("tests={test}"));
    GuestTests::start(match config {
        Some(config) => scenario.config(config),
        None => scenario,
    })
}

/// The guest ends in this way, the paravisor tells it with these words, and lives on.
fn is_contained(vps: u32, test: &str, words: &[&str]) -> String {
    let mut guest = guest(vps, test, None);
    guest.expect_line(&format!("test {test} ends the machine"));
    let cause = guest
        .vm()
        .expect_event(Source::Vtl2, "end of the guest", |event| match event {
            Event::GuestCrashed(cause) | Event::GuestStopped(cause) => Some(cause.to_owned()),
            _ => None,
        });
    for word in words {
        assert!(cause.contains(word), "{word:?} is not in {cause:?}");
    }
    guest.client().ping().unwrap();
    guest.check_forbidden();
    guest.client().power_off().unwrap();
    guest.vm().expect_exit(ExitReason::PowerOff);
    guest.vm().console(Source::Vtl2)
}

#[test]
fn fifty_resets_leave_the_paravisor_alone() {
    let mut guest = guest(2, "smp.all_vps_start,end.reset_by_acpi", None);
    let before = identity(&guest);
    for reset in 0..RESETS {
        guest.expect_line("plan 2");
        guest.expect_line("test smp.all_vps_start ok");
        guest.expect_line("test end.reset_by_acpi ends the machine");
        if reset % 10 == 0 {
            assert_eq!(identity(&guest), before, "after {reset} resets");
        }
    }
    guest.expect_line("plan 2");
    assert_eq!(identity(&guest), before);
    guest.client().power_off().unwrap();
    guest.vm().expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_guest_resets_itself_through_the_hypervisor() {
    let mut guest = guest(1, "end.reset_by_msr", None);
    for _ in 0..3 {
        guest.expect_line("test end.reset_by_msr ends the machine");
    }
    guest.client().power_off().unwrap();
    guest.vm().expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_triple_fault_is_told_with_registers_and_halts_the_guest() {
    is_contained(1, "end.triple_fault", &["VP 0", "triple fault"]);
}

#[test]
fn a_triple_fault_of_another_vp_is_told() {
    is_contained(
        2,
        "end.triple_fault_of_another_vp",
        &["VP 1", "triple fault"],
    );
}

#[test]
fn a_crash_message_of_the_guest_is_told() {
    let console = is_contained(1, "end.crash_message", &["VP 0", "guest crash"]);
    assert!(
        console.contains("the guest crashes on purpose"),
        "{console}"
    );
}

#[test]
fn page_tables_in_forbidden_memory_end_the_guest_only() {
    is_contained(1, "end.page_tables_in_forbidden_memory", &["VP 0"]);
}

#[test]
fn a_crashed_guest_starts_anew_if_the_policy_says_so() {
    let config = r#"{"version":1,"guest":{"on_crash":"reset"}}"#;
    let mut guest = guest(1, "end.triple_fault", Some(config));
    let before = identity(&guest);
    for _ in 0..3 {
        guest.expect_line("test end.triple_fault ends the machine");
        expect_crash(guest.vm());
    }
    assert_eq!(identity(&guest), before);
    guest.client().power_off().unwrap();
    guest.vm().expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_crashed_guest_ends_the_machine_if_the_policy_says_so() {
    let config = r#"{"version":1,"guest":{"on_crash":"power_off"}}"#;
    let mut guest = guest(1, "end.triple_fault", Some(config));
    expect_crash(guest.vm());
    guest.vm().expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_guest_boots_again_when_its_worker_has_died() {
    let mut guest = guest(2, "smp.all_vps_start,end.reset_by_acpi", None);
    for _ in 0..2 {
        guest.expect_line("test smp.all_vps_start ok");
        guest.crash_worker();
    }
    guest.expect_line("test smp.all_vps_start ok");

    // The kernel keeps what it knows of the guest's memory, and is not told again.
    assert_eq!(number(&guest, "vm/partition/memory/registrations"), 0);
    let console = guest.vm().console(Source::Vtl2);
    assert!(!console.contains("WARNING: "), "{console}");
    guest.client().power_off().unwrap();
    guest.vm().expect_exit(ExitReason::PowerOff);
}
