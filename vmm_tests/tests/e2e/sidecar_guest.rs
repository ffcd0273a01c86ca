//! Guests whose processors are in the sidecar, and leave it.

use boot_events::SHIM_LOG_PREFIX;
use diag_client::Client;
use guest_tests::pattern::Pattern;
use qemu::ByteCount;
use qemu::Source;
use vmm_tests::GuestResult;
use vmm_tests::GuestTests;
use vmm_tests::Scenario;
use vsm_host_defs::ExitReason;

/// The guest's test.
const TEST: &str = "moves.nothing_is_lost";
/// VTL2 memory for Linux on all CPUs of the largest machine.
const VTL2_MEMORY: ByteCount = ByteCount::mib(256);

/// Where a VP is, as the VM worker says.
#[track_caller]
fn place(client: &Client, vp: u32) -> String {
    let path = format!("vm/vp/{vp}/runs_in");
    match client.inspect(&path, 1) {
        Ok(node) => node.as_str().unwrap_or_default().to_owned(),
        Err(error) => panic!("{path}: {error}"),
    }
}

#[track_caller]
fn in_sidecar(client: &Client, vps: u32) -> Vec<u32> {
    let vps = 0..vps;
    vps.filter(|vp| place(client, *vp) == "sidecar").collect()
}

/// A guest whose VPs arm timers, halt, answer each other, and watch their registers, on NUMA
/// nodes with so many VPs.
#[track_caller]
fn start(nodes: &str, vps: u32) -> GuestTests {
    let nodes = nodes.parse().expect("a list of VPs");
    let scenario = Scenario::guest_tests(vps, &format!("tests={TEST}"))
        .memory(ByteCount::gib(1))
        .with(|machine| machine.numa(nodes).vtl2_memory(VTL2_MEMORY))
        .bootargs("loglevel=8")
        // Its exits are no reason to leave.
        .bootargs("OPENHCL_SIDECAR_LEAVE_ON_EXIT=0");
    let mut guest = GuestTests::start(scenario);
    guest.expect_line("note moves begin");
    guest
}

/// Nothing was lost, and the machine goes.
#[track_caller]
fn end(mut guest: GuestTests) {
    if let Err(error) = guest.console().send(b"x") {
        panic!("{error}");
    }
    let report = guest.report();
    guest.expect_power_off();
    let expected = [(TEST.to_owned(), GuestResult::Ok)];
    assert_eq!(report.results, expected.into());
}

/// All VPs but `linux` are in the sidecar. `leave` of them leave it one by one in any order, and
/// the guest does not notice.
#[track_caller]
fn some_leave(nodes: &str, vps: u32, linux: &[u32], leave: usize) {
    let guest = start(nodes, vps);
    let client = guest.client();
    let mut left = in_sidecar(client, vps);
    let expected: Vec<_> = (0..vps).filter(|vp| !linux.contains(vp)).collect();
    assert_eq!(left, expected, "{}", said(&guest));
    let mut order = Pattern::new(u64::from(vps));
    for _ in 0..leave {
        let pick = usize::from(order.next().unwrap_or_default()) % left.len();
        let vp = left.swap_remove(pick);
        match client.online_cpu(vp) {
            Ok(reason) => assert_eq!(reason.as_deref(), Some("request"), "VP {vp}"),
            Err(error) => panic!("VP {vp}: {error}\n{}", said(&guest)),
        }
        assert_eq!(place(client, vp), "linux");
    }
    left.sort_unstable();
    assert_eq!(in_sidecar(client, vps), left);
    end(guest);
}

/// What the shim says of the sidecar.
fn said(guest: &GuestTests) -> String {
    let console = guest.vtl2_console();
    let lines = console
        .lines()
        .filter(|line| line.contains(SHIM_LOG_PREFIX));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn two_processors() {
    some_leave("2", 2, &[0], 1);
}

#[test]
fn four_processors_on_two_nodes() {
    some_leave("2,2", 4, &[0, 2], 2);
}

#[test]
fn sixteen_processors_on_four_nodes_of_which_one_is_empty() {
    some_leave("6,0,8,2", 16, &[0, 6, 14], 13);
}

#[test]
fn sixty_four_processors() {
    // Each that Linux has costs it a tick, and QEMU the time for it.
    some_leave("64", 64, &[0, 32], 6);
}

#[test]
fn who_is_stopped_at_any_moment_goes_on() {
    const STOPS: u32 = 50;
    let guest = start("4", 4);
    let client = guest.client();
    for stop in 0..STOPS {
        for result in [client.pause(), client.resume()] {
            if let Err(error) = result {
                panic!("stop {stop}: {error}\n{}", said(&guest));
            }
        }
    }
    assert_eq!(in_sidecar(client, 4), [1, 2, 3]);
    end(guest);
}

#[test]
fn a_processor_whose_kernel_fails_is_named_with_the_cause() {
    // STI, HLT, CLI, which is how it waits; instead of HLT an instruction that there is not.
    const WAIT: [u8; 3] = [0xfb, 0xf4, 0xfa];
    const FAIL: [u8; 3] = [0xfb, 0x0f, 0x0b];
    let mut sidecar = vmm_tests::sidecar_kernel();
    let places: Vec<_> = (0..sidecar.len() - 2)
        .filter(|at| sidecar[*at..*at + 3] == WAIT)
        .collect();
    let [place] = places[..] else {
        panic!("the sidecar kernel waits at {places:x?}, expected one place");
    };
    sidecar[place..place + 3].copy_from_slice(&FAIL);
    let scenario = Scenario::guest_tests_beside(&sidecar, 2, "tests=environment");
    let mut vm = scenario.start();
    let line = vm.expect(Source::Vtl2, "VP 1 in the sidecar: ").text;
    assert!(line.contains("exception 6"), "{line}");
}

#[test]
fn lines_of_processors_that_start_are_not_torn() {
    const VPS: u32 = 16;
    let mut vm = Scenario::release()
        .vps(VPS)
        .bootargs("OPENHCL_SIDECAR=log")
        .power_off_after_boot()
        .start();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    let mut lines: Vec<_> = console.lines().map(str::trim_end).collect();
    lines.retain(|line| line.starts_with("sidecar: VP"));
    lines.sort_unstable();
    let vps = 1..VPS;
    let mut expected: Vec<_> = vps
        .map(|vp| format!("sidecar: VP {vp} waits for commands"))
        .collect();
    expected.sort_unstable();
    assert_eq!(lines, expected, "{console}");
}
