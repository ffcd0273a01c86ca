//! What a guest may and may not do, from inside: the kernel `guest_tests` runs in VTL0,
//! ring 0.

use guest_tests::pattern::Checksum;
use guest_tests::pattern::LINE;
use guest_tests::pattern::Pattern;
use guest_tests::pattern::SEED_RECEIVED;
use guest_tests::pattern::SEED_SENT;
use qemu::Exit;
use qemu::Source;
use std::time::Duration;
use vmm_tests::GuestReport;
use vmm_tests::GuestResult;
use vmm_tests::GuestTests;
use vmm_tests::Scenario;
use vmm_tests::plain_guest_tests;

/// Only turns a hang into a failure.
const DEADLINE: Duration = Duration::from_secs(180);

/// Runs these tests; all must pass.
#[track_caller]
fn passes(vps: u32, arguments: &str, skipped: &[&str]) -> GuestReport {
    let mut guest = GuestTests::start(Scenario::guest_tests(vps, arguments));
    let report = guest.report();
    guest.check_forbidden();
    let vm = guest.expect_power_off();
    report.assert_passed(skipped);
    let host = vm.console(Source::Host);
    assert!(!host.contains("GUEST-FORGED-THIS"), "{host}");
    assert_stacks_suffice(&host);
    report
}

/// The host's stacks have no guard pages; none may be more than half full.
#[track_caller]
fn assert_stacks_suffice(host: &str) {
    let told = host.split_once("stacks: at most ").and_then(|(_, told)| {
        let (used, rest) = told.split_once(" of ")?;
        let (size, _) = rest.split_once(' ')?;
        Some((used.parse::<u32>().ok()?, size.parse::<u32>().ok()?))
    });
    let (used, size) = told.unwrap_or_else(|| panic!("no use of the stacks in: {host}"));
    assert!(used > 0 && used <= size / 2, "{used} of {size} bytes used");
}

#[test]
fn the_tests_ask_for_what_a_pc_does() {
    // On QEMU itself, without anything of ours: the tests that do not need our host pass.
    let (scenario, log) = plain_guest_tests(2, "count=200");
    let mut vm = scenario.start();
    assert_eq!(vm.vm().wait_exit(DEADLINE).unwrap(), Exit::Normal);
    let report = GuestReport::read(&std::fs::read_to_string(log).unwrap());
    let passed = report.results.values().filter(|r| **r == GuestResult::Ok);
    assert!(passed.count() > 40, "{report:#?}");
}

#[test]
fn a_guest_sees_a_pc_with_hyper_v() {
    passes(
        1,
        "tests=environment,instructions,msrs,ports,mmio count=1000",
        &[],
    );
}

#[test]
fn a_guests_interrupts_have_their_order() {
    passes(1, "tests=apic", &[]);
}

#[test]
fn a_guests_timers_and_devices_work() {
    passes(1, "tests=timer,devices,synic", &[]);
}

#[test]
fn the_serial_port_loses_nothing_in_either_direction() {
    /// Bytes in each direction.
    const COUNT: usize = 4 << 10;
    let arguments = format!("tests=serial.sends,serial.receives,serial.echoes count={COUNT}");
    let mut guest = GuestTests::start(Scenario::guest_tests(1, &arguments));
    guest.expect_line(&format!("note serial sends {COUNT}"));
    let sent: Vec<u8> = Pattern::new(SEED_SENT).take(COUNT).collect();
    for line in sent.chunks(LINE) {
        assert_eq!(guest.line().as_bytes(), line);
    }
    let sum = guest.expect_line("note serial sent ");
    let expected = Checksum::of_pattern(SEED_SENT, COUNT);
    assert!(sum.ends_with(&format!("{:#x}", expected.0)), "{sum}");

    let typed: Vec<u8> = Pattern::new(SEED_RECEIVED).take(COUNT).collect();
    guest.expect_line(&format!("note serial receives {COUNT}"));
    guest.console().send(&typed).unwrap();
    guest.expect_line("test serial.receives ok");

    guest.expect_line(&format!("note serial echoes {COUNT}"));
    guest.console().send(&typed).unwrap();
    assert_eq!(guest.line().as_bytes(), typed);
    guest.expect_line("test serial.echoes ok");
    guest.expect_power_off();
}

#[test]
fn guests_processors_start_and_talk_to_each_other() {
    passes(4, "tests=environment,smp", &[]);
}

#[test]
fn a_guest_reaches_nothing_of_vtl2_or_the_host() {
    passes(2, "tests=hypercalls,isolation,breakpoints count=2000", &[]);
}
