//! Each command of `ohcldiag` on the real stack: program, vsock, VTL2.

use boot_events::Event;
use nix::pty::Winsize;
use nix::pty::openpty;
use qemu::Source;
use qemu::VsockAddress;
use serde_json::Value;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vsm_host_defs::ExitReason;

/// Far more than any answer takes, also on a loaded machine.
const TIMEOUT: &str = "60s";

fn start(scenario: Scenario) -> TestVm {
    let mut vm = scenario.vsock().start();
    vm.expect_ready();
    vm
}

fn ohcldiag(vm: &TestVm, args: &[&str]) -> Command {
    let address = match vm.vsock() {
        VsockAddress::Hybrid(path) => path.display().to_string(),
        VsockAddress::Cid(cid) => cid.to_string(),
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm_tests_ohcldiag"));
    command
        .args(["--vm", &address, "--timeout", TIMEOUT])
        .args(args)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(vm: &TestVm, args: &[&str]) -> Output {
    ohcldiag(vm, args).output().unwrap()
}

/// What it prints if it succeeds.
#[track_caller]
fn success(vm: &TestVm, args: &[&str]) -> String {
    let output = run(vm, args);
    assert_eq!(text(&output.stderr), "", "{args:?}");
    assert_eq!(output.status.code(), Some(0), "{args:?}");
    text(&output.stdout)
}

/// The one line that it prints if it fails with `code`.
#[track_caller]
fn failure(vm: &TestVm, args: &[&str], code: i32) -> String {
    let output = run(vm, args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    error
}

#[track_caller]
fn json(vm: &TestVm, args: &[&str]) -> Value {
    let text = success(vm, args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

#[track_caller]
fn number(vm: &TestVm, path: &str) -> u64 {
    let value = json(vm, &["inspect", path, "--json"]);
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{path} is {value}, expected a number"))
}

#[test]
fn a_release_image_is_asked() {
    let mut vm = start(Scenario::release().vps(3));

    assert_eq!(json(&vm, &["ping", "--json"])["count"], 10);

    let root = json(&vm, &["inspect", "--json"]);
    for name in [
        "build_info",
        "config",
        "topology",
        "memory",
        "shim_log",
        "boot",
        "proc",
        "mesh",
        "diag",
        "vm",
    ] {
        assert!(root[name].is_object(), "{name} is {}: {root}", root[name]);
    }
    let names = success(&vm, &["inspect", "--depth", "0"]);
    assert!(names.contains("topology: _\n"), "{names}");

    let log = success(&vm, &["kmsg"]);
    assert!(log.contains(boot_events::PARAVISOR_STARTED), "{log}");
    assert!(log.starts_with("[    "), "{log}");

    let version = success(&vm, &["file", "/proc/version"]);
    assert!(version.starts_with("Linux version "), "{version}");
    let error = failure(&vm, &["file", "/nonexistent"], 1);
    assert!(error.contains("/nonexistent"), "{error}");

    let boot = json(&vm, &["boot-timeline", "--json"]);
    let milestones = boot["milestones"].as_array().unwrap();
    assert!(milestones.len() >= 4, "{boot}");
    let times: Vec<_> = milestones
        .iter()
        .map(|stamp| stamp["ns"].as_u64())
        .collect();
    assert!(times.is_sorted() && !times.contains(&None), "{boot}");
    assert!(milestones[0]["ticks"].is_u64(), "{boot}");

    let error = failure(&vm, &["shell"], 1);
    assert!(error.contains("only development images"), "{error}");
    let error = failure(&vm, &["inspect", "no/such/thing"], 1);
    assert!(error.contains("not found"), "{error}");

    success(&vm, &["power-off"]);
    vm.expect_exit(ExitReason::PowerOff);
    let error = failure(&vm, &["ping"], 3);
    assert!(error.starts_with("ohcldiag: "), "{error}");
}

#[test]
fn a_value_of_the_tree_is_changed() {
    let vm = start(Scenario::release());

    let before = success(&vm, &["inspect", "log/filter"]);
    let after = success(&vm, &["inspect", "log/filter", "--update", "debug"]);

    assert_ne!(before, after);
    assert_eq!(success(&vm, &["inspect", "log/filter"]), after);
    let error = failure(&vm, &["inspect", "memory", "-u", "1"], 1);
    assert!(error.contains("cannot be changed"), "{error}");
}

#[test]
fn a_program_runs_in_vtl2() {
    let vm = start(Scenario::dev());

    let mut child = ohcldiag(&vm, &["exec", "-e", "X=y", "--", "sh", "-c"])
        .arg("cat; echo $X; echo err >&2; exit 42")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a packet of vsock, and no text.
    let input: Vec<u8> = (0..200_000u32).map(|number| (number * 7) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();

    assert_eq!(output.stdout.len(), input.len() + 2);
    assert!(output.stdout.starts_with(&input));
    assert!(output.stdout.ends_with(b"y\n"));
    assert_eq!(text(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(success(&vm, &["shell", "-c", "echo $((6 * 7))"]), "42\n");
    let killed = run(&vm, &["exec", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137));
}

#[test]
fn a_shell_has_a_terminal_of_the_right_size() {
    let vm = start(Scenario::dev());
    let size = Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pair = openpty(&size, None).unwrap();
    let mut child = ohcldiag(&vm, &["shell"])
        .stdin(pair.slave.try_clone().unwrap())
        .stdout(pair.slave.try_clone().unwrap())
        .stderr(pair.slave)
        .spawn()
        .unwrap();

    let mut screen = File::from(pair.master);
    screen
        .write_all(b"busybox stty size; echo do''ne\nexit 7\n")
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains("done") {
        let count = screen.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{seen:?}");
        seen += &text(&buffer[..count]);
    }

    assert!(seen.contains("33 101"), "{seen:?}");
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn a_file_is_followed_as_it_grows() {
    let vm = start(Scenario::dev());
    success(&vm, &["shell", "-c", "echo one > /tmp/log"]);
    let mut child = ohcldiag(&vm, &["file", "-f", "/tmp/log"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();

    assert_eq!(lines.next().unwrap().unwrap(), "one");
    success(&vm, &["shell", "-c", "echo two >> /tmp/log"]);
    assert_eq!(lines.next().unwrap().unwrap(), "two");

    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_crash_of_the_worker_is_followed_in_the_log() {
    let mut vm = start(Scenario::release());
    let before = number(&vm, "vm/pid");
    let mut follower = ohcldiag(&vm, &["kmsg", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();

    success(&vm, &["crash", "underhill_vm"]);
    let died = |line: &String| matches!(Event::parse(line), Some(Event::WorkerDied(_)));
    let line = lines.by_ref().map(Result::unwrap).find(died);
    assert!(line.unwrap().contains(&before.to_string()));
    success(&vm, &["ping"]);
    let after = vm.expect_event(Source::Vtl2, "next worker", |event| match event {
        Event::WorkerReady(pid) => pid.parse().ok().filter(|pid: &u64| *pid != before),
        _ => None,
    });
    assert_eq!(number(&vm, "vm/pid"), after);

    success(&vm, &["restart"]);
    assert_ne!(number(&vm, "vm/pid"), after);

    // The end of the VM is the end of what is followed.
    success(&vm, &["power-off"]);
    vm.expect_exit(ExitReason::PowerOff);
    lines.map(Result::unwrap).for_each(drop);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}
