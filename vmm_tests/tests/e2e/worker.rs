//! The VM worker may die in any way: the control process reports it, does what its policy
//! says, and answers all the while.

use boot_events::Event;
use diag_client::Client;
use qemu::Source;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vmm_tests::diag_address;
use vsm_host_defs::ExitReason;

/// Far more than any answer takes, also on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Requests exist that make the worker fail.
const TEST_HOOKS: &str = "OPENHCL_TEST_HOOKS=1";

fn client(vm: &mut TestVm) -> Client {
    let mut client = vm.diag();
    client.set_timeout(TIMEOUT);
    client
}

/// A machine whose worker fails on request, configured by this JSON.
fn hooked(config: &str) -> TestVm {
    Scenario::dev()
        .bootargs(TEST_HOOKS)
        .config(config)
        .vsock()
        .start()
}

fn text(client: &Client, path: &str) -> String {
    let node = client.inspect(path, 0).unwrap();
    match node.as_str() {
        Some(text) => text.to_owned(),
        None => node.to_string(),
    }
}

fn number(client: &Client, path: &str) -> u64 {
    let node = client.inspect(path, 0).unwrap();
    node.as_u64()
        .unwrap_or_else(|| panic!("{path} is {node}, expected a number"))
}

/// Waits for the death of a worker; how it was reported.
fn expect_death(vm: &mut TestVm) -> String {
    vm.expect_event(Source::Vtl2, "death of the worker", |event| match event {
        Event::WorkerDied(cause) => Some(cause.to_owned()),
        _ => None,
    })
}

/// Waits for a worker that is not `before`.
fn expect_next_worker(vm: &mut TestVm, before: u64) -> u64 {
    vm.expect_event(Source::Vtl2, "next worker", |event| match event {
        Event::WorkerReady(pid) => pid.parse().ok().filter(|pid| *pid != before),
        _ => None,
    })
}

/// Does `work` while another client pings again and again; every ping must be answered.
fn while_answering<T>(vm: &mut TestVm, work: impl FnOnce(&mut TestVm) -> T) -> T {
    /// Also if `work` panics, or nobody would end the other thread.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let pinger = Client::connect_within(diag_address(&vm.vsock()), TIMEOUT).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                pinger.ping().unwrap();
            }
        });
        let end = End(&done);
        let result = work(vm);
        drop(end);
        pings.join().unwrap();
        result
    })
}

/// The worker fails in this way; the report must have these words.
#[track_caller]
fn recovers_from(failure: &str, words: &[&str]) {
    let mut vm =
        hooked(r#"{"version":1,"worker":{"watchdog":{"interval_ms":100,"deadline_ms":2000}}}"#);
    let client = client(&mut vm);
    let before = number(&client, "control/worker/pid");
    let (report, after) = while_answering(&mut vm, |vm| {
        assert_eq!(
            client.update("vm/fail", failure).unwrap().as_str(),
            Some(failure)
        );
        (expect_death(vm), expect_next_worker(vm, before))
    });

    assert!(
        report.starts_with(&format!("process {before}: ")),
        "{report}"
    );
    for word in words {
        assert!(report.contains(word), "{word:?} is not in {report:?}");
    }
    assert_eq!(number(&client, "control/crashes"), 1);
    assert_eq!(number(&client, "control/automatic_restarts"), 1);
    assert_eq!(number(&client, "control/ends/0/pid"), before);
    let cause = text(&client, "control/ends/0/cause");
    assert!(report.contains(&cause), "{cause:?} is not in {report:?}");
    assert_eq!(number(&client, "vm/pid"), after);
    client.power_off().unwrap();
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_worker_that_hangs_is_found_by_the_watchdog_and_replaced() {
    recovers_from(
        "hang",
        &[
            "signal 9 (SIGKILL)",
            "watchdog: no answer to a ping within 2000 ms",
        ],
    );
}

#[test]
fn a_worker_that_aborts_is_replaced() {
    recovers_from("abort", &["signal 6 (SIGABRT"]);
}

#[test]
fn a_worker_that_has_a_segmentation_fault_is_replaced() {
    recovers_from("segfault", &["signal 11 (SIGSEGV"]);
}

#[test]
fn a_worker_that_panics_is_replaced_and_its_last_words_are_kept() {
    let mut vm = hooked(r#"{"version":1}"#);
    let client = client(&mut vm);
    client.update("vm/fail", "panic").unwrap();
    expect_death(&mut vm);
    vm.expect(
        Source::Vtl2,
        "last words of the VM worker: a test hook asks for it",
    );
    let lines = client.inspect("control/ends/0/last_lines", 1).unwrap();
    assert!(
        lines.to_string().contains("a test hook asks for it"),
        "{lines}"
    );
}

#[test]
fn a_worker_that_is_killed_from_outside_is_replaced() {
    let mut vm = Scenario::dev().bootargs("OPENHCL_SHELL=1").vsock().start();
    let client = client(&mut vm);
    let before = number(&client, "control/worker/pid");
    let (report, after) = while_answering(&mut vm, |vm| {
        vm.type_line(&format!("kill -9 {before}"));
        (expect_death(vm), expect_next_worker(vm, before))
    });
    assert_eq!(report, format!("process {before}: signal 9 (SIGKILL)"));
    assert_eq!(number(&client, "vm/pid"), after);
}

#[test]
fn a_client_makes_the_worker_crash() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    let before = number(&client, "control/worker/pid");
    let report = while_answering(&mut vm, |vm| {
        client.crash(i32::try_from(before).unwrap()).unwrap();
        let report = expect_death(vm);
        expect_next_worker(vm, before);
        report
    });
    assert!(
        report.contains("SIGABRT") && report.contains("a client asked for a crash"),
        "{report}"
    );
}

#[test]
fn a_process_that_is_not_the_paravisors_is_not_crashed() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    for pid in [0, 1, -1, 4242] {
        let error = client.crash(pid).unwrap_err().to_string();
        assert!(error.contains("none of the paravisor's"), "{error}");
    }
    client.ping().unwrap();
}

#[test]
fn a_crash_of_the_paravisor_is_a_crash_of_the_machine() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    let own = number(&client, "control/pid");
    client.crash(i32::try_from(own).unwrap()).unwrap();
    // 128 + SIGABRT, in the kernel's form.
    let cause = vm.expect_crash();
    assert!(cause.contains("exitcode=0x00008600"), "{cause}");
}

#[test]
fn restarts_end_when_the_budget_is_spent_and_a_client_may_renew_it() {
    let mut vm = hooked(r#"{"version":1,"worker":{"max_restarts":1}}"#);
    let client = client(&mut vm);
    let first = number(&client, "control/worker/pid");
    client.update("vm/fail", "exit:7").unwrap();
    let report = expect_death(&mut vm);
    assert!(report.contains("exit code 7"), "{report}");
    expect_next_worker(&mut vm, first);
    client.update("vm/fail", "exit:8").unwrap();
    vm.expect(
        Source::Vtl2,
        "VM worker failed: exit code 8; not started again: 1 restarts within 60000 ms",
    );

    assert_eq!(text(&client, "control_state"), "failed");
    assert!(text(&client, "control/failure").contains("exit code 8"));
    assert!(client.inspect("vm", 1).is_err());
    client.restart().unwrap();
    assert_eq!(text(&client, "control_state"), "started");
    client.ping().unwrap();
}

#[test]
fn a_restart_hands_the_state_over() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    let before = number(&client, "vm/pid");
    assert_eq!(number(&client, "vm/handed_over/handovers"), 0);
    client.restart().unwrap();
    assert_ne!(number(&client, "vm/pid"), before);
    assert_eq!(number(&client, "vm/handed_over/handovers"), 1);
    client.restart().unwrap();
    assert_eq!(number(&client, "vm/handed_over/handovers"), 2);
    assert_eq!(number(&client, "control/crashes"), 0);
    assert!(!client.dump_saved_state().unwrap().is_empty());
}

#[test]
fn a_worker_that_cannot_hand_over_stays_and_the_client_is_told() {
    let mut vm = hooked(r#"{"version":1}"#);
    let client = client(&mut vm);
    let before = number(&client, "vm/pid");
    client.update("vm/fail", "unsaved").unwrap();
    let error = client.restart().unwrap_err().to_string();
    assert!(error.contains("test hook: unsaved"), "{error}");
    assert_eq!(number(&client, "vm/pid"), before);
    assert_eq!(text(&client, "control_state"), "started");
    assert_eq!(number(&client, "control/crashes"), 0);
    client.power_off().unwrap();
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_worker_that_is_held_back_is_started_by_a_client() {
    let mut vm = Scenario::release()
        .bootargs("OPENHCL_WAIT_FOR_START=1")
        .vsock()
        .start();
    let client = client(&mut vm);
    assert_eq!(text(&client, "control_state"), "waiting_for_start");
    assert!(client.restart().is_err());
    client.start(&[], &[]).unwrap();
    assert_eq!(text(&client, "control_state"), "started");
    assert!(client.start(&[], &[]).is_err());
}

#[test]
fn the_filter_of_the_log_can_be_changed_while_it_runs() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    assert_eq!(text(&client, "log/filter"), "info");
    client
        .update("log/filter", "warn,underhill_vm=debug")
        .unwrap();
    assert_eq!(text(&client, "log/filter"), "underhill_vm=debug,warn");
    assert_eq!(text(&client, "vm/log_filter"), "underhill_vm=debug,warn");
    assert!(client.update("log/filter", "loud").is_err());
    assert_eq!(text(&client, "log/filter"), "underhill_vm=debug,warn");
}

#[test]
fn a_worker_that_hangs_does_not_delay_the_end_beyond_its_deadline() {
    let mut vm = hooked(
        r#"{"version":1,"worker":{"watchdog":{"enabled":false}},"shutdown":{"deadline_ms":300}}"#,
    );
    let client = client(&mut vm);
    client.update("vm/fail", "hang").unwrap();
    client.power_off().unwrap();
    let report = expect_death(&mut vm);
    assert!(report.contains("did not stop within 300 ms"), "{report}");
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_request_of_pid_1_ends_the_worker_in_order() {
    let mut vm = Scenario::dev().bootargs("OPENHCL_SHELL=1").start();
    vm.expect_ready();
    vm.type_line("kill -TERM 1");
    vm.expect(Source::Vtl2, "openvmm_hcl: SIGTERM asks for the end");
    vm.expect(Source::Vtl2, "openvmm_hcl: VM worker ended: exit code 0");
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_release_image_has_no_way_to_fail_on_request() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    assert!(client.update("vm/fail", "hang").is_err());
    assert!(client.inspect("vm/fail", 0).is_err());
}

#[test]
fn the_tree_tells_what_the_machine_is() {
    let mut vm = Scenario::release().vps(2).vsock().start();
    let client = client(&mut vm);
    assert_eq!(text(&client, "control_state"), "started");
    assert_eq!(text(&client, "build_info/profile"), "release");
    assert_eq!(text(&client, "build_info/build_id").len(), 40);
    assert_eq!(text(&client, "topology/isolation"), "none");
    assert_eq!(
        client.inspect("topology/vps", 2).unwrap().entries().len(),
        2
    );
    assert_eq!(number(&client, "memory/vtl2_ram"), 64 << 20);
    assert!(number(&client, "memory/kernel/free") > 0);
    let ram = number(&client, "memory/by_type/vtl0");
    assert_eq!(ram, number(&client, "memory/vtl0_ram"));
    assert!(number(&client, "memory/by_type/bootshim_log_buffer") > 0);
    assert!(text(&client, "config/worker.on_crash/origin").contains("default"));
    assert!(text(&client, "shim_log/lines/000").contains(boot_events::SHIM_STARTED));
    let worker = number(&client, "vm/pid");
    assert_eq!(
        text(&client, &format!("proc/{worker}/name")),
        "underhill_vm"
    );
    assert!(number(&client, &format!("proc/{worker}/pss")) > 0);
    assert_eq!(text(&client, "proc/1/name"), "underhill_init");
    assert!(number(&client, "mesh/calls") > 0);
    assert!(number(&client, "vm/mesh/packets_received") > 0);
    let channels = client.inspect("mesh/channels", 2).unwrap();
    assert_eq!(channels.entries().len(), 2, "{channels}");
}

#[test]
fn milestones_of_all_processes_are_in_order_on_one_clock() {
    let mut vm = Scenario::release().vsock().start();
    let client = client(&mut vm);
    assert_eq!(text(&client, "boot/zero"), "begin of the partition");
    let milestones = client.inspect("boot/milestones", 2).unwrap();
    let names: Vec<String> = milestones
        .entries()
        .iter()
        .map(|entry| {
            let get = |name: &str| entry.node.get(name).unwrap().as_str().unwrap().to_owned();
            format!("{}: {}", get("process"), get("name"))
        })
        .collect();
    let position = |name: &str| {
        names
            .iter()
            .position(|known| known == name)
            .unwrap_or_else(|| panic!("{name} is not in {names:#?}"))
    };
    let expected = [
        "openhcl_boot: started",
        "openhcl_boot: starts_kernel",
        "linux: clock_starts",
        "linux: runs_init",
        "underhill_init: started",
        "openvmm_hcl: started",
        "openvmm_hcl: configured",
        "openvmm_hcl: listens",
        "openvmm_hcl: launches_worker",
        "underhill_vm: started",
        "underhill_vm: ready",
        "openvmm_hcl: ready",
    ];
    let positions: Vec<usize> = expected.iter().map(|name| position(name)).collect();
    assert!(positions.is_sorted(), "{names:#?}");
    let times: Vec<u64> = milestones
        .entries()
        .iter()
        .map(|entry| entry.node.get("ns").unwrap().as_u64().unwrap())
        .collect();
    assert!(times.is_sorted() && times[0] > 0, "{times:?}");
}
