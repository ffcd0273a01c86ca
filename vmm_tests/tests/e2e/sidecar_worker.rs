//! What the worker does with VPs in the sidecar, and what becomes of them when it ends.

use vmm_tests::GuestTests;
use vmm_tests::Scenario;
use vsm_host_defs::ExitReason;

/// A guest whose VPs, but the first, are in the sidecar until they are asked to leave.
fn guest(vps: u32, tests: &str) -> GuestTests {
    let scenario = Scenario::guest_tests(vps, &format!("tests={tests}"));
    GuestTests::start(scenario.bootargs("OPENHCL_SIDECAR_LEAVE_ON_EXIT=0"))
}

fn text(guest: &GuestTests, path: &str) -> String {
    let node = guest.client().inspect(path, 0).unwrap();
    match node.as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{path} is {node}, expected a text"),
    }
}

#[track_caller]
fn assert_runs_in(guest: &GuestTests, vp: u32, place: &str) {
    assert_eq!(
        text(guest, &format!("vm/vp/{vp}/runs_in")),
        place,
        "VP {vp}"
    );
}

/// The tests in which VPs are moved begin: all are at work.
#[track_caller]
fn moves_begin(guest: &mut GuestTests) {
    guest.expect_line("note moves begin");
}

/// The tests end, with success, and the machine with them.
#[track_caller]
fn moves_end(mut guest: GuestTests) {
    guest.console().send(b"x").unwrap();
    guest.expect_line("test moves.nothing_is_lost ok");
    guest.report();
    guest.expect_power_off();
}

#[test]
fn a_processor_says_why_it_has_left_the_sidecar() {
    let mut guest = guest(2, "moves.nothing_is_lost");
    moves_begin(&mut guest);
    for _ in 0..2 {
        let reason = guest.client().online_cpu(1).unwrap();
        assert_eq!(reason.as_deref(), Some("request"));
    }
    assert_eq!(text(&guest, "vm/vp/1/left_sidecar/reason"), "request");
    assert_eq!(guest.client().online_cpu(0).unwrap(), None);
    let error = guest.client().online_cpu(2).unwrap_err().to_string();
    assert!(
        error.contains("VP 2 does not exist: there are 2"),
        "{error}"
    );
    moves_end(guest);
}

#[test]
fn processors_in_the_sidecar_are_paused_and_go_to_another_worker() {
    let mut guest = guest(4, "moves.nothing_is_lost");
    moves_begin(&mut guest);
    guest.client().online_cpu(2).unwrap();
    for _ in 0..10 {
        guest.client().pause().unwrap();
        guest.client().resume().unwrap();
    }
    guest.client().restart().unwrap();
    guest.reconnect();
    for (vp, place) in [(1, "sidecar"), (2, "linux"), (3, "sidecar")] {
        assert_runs_in(&guest, vp, place);
    }
    assert_eq!(text(&guest, "vm/vp/2/left_sidecar/reason"), "request");
    guest.client().online_cpu(1).unwrap();
    moves_end(guest);
}

#[test]
fn processors_that_a_dead_worker_has_left_running_are_stopped_by_the_next() {
    let mut guest = guest(3, "moves.nothing_is_lost");
    for _ in 0..2 {
        moves_begin(&mut guest);
        guest.crash_worker();
    }
    moves_begin(&mut guest);
    assert_runs_in(&guest, 2, "sidecar");
    guest.client().power_off().unwrap();
    guest.vm().expect_exit(ExitReason::PowerOff);
}

#[test]
fn exits_are_served_in_the_sidecar_if_processors_are_to_stay() {
    let mut guest = guest(4, "environment,smp");
    let report = guest.report();
    guest.expect_power_off();
    report.assert_passed(&[]);
}
