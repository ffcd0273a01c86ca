//! The program against the real server.

#[path = "../../diag_client/tests/server/mod.rs"]
mod server;

use server::Server;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

/// The program, with a list of VMs of its own.
fn ohcldiag(runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ohcldiag"));
    command.env("XDG_RUNTIME_DIR", runtime);
    command.stdin(Stdio::null());
    command
}

fn command(server: &Server, args: &[&str]) -> Command {
    let mut command = ohcldiag(server.directory.path());
    command.arg("--vm").arg(&server.path).args(args);
    command
}

fn run(server: &Server, args: &[&str]) -> Output {
    command(server, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What it prints if it succeeds.
#[track_caller]
fn success(server: &Server, args: &[&str]) -> String {
    let output = run(server, args);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    text(&output.stdout)
}

/// The one line that it prints if it fails with `code`.
#[track_caller]
fn failure(output: Output, code: i32) -> String {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("ohcldiag: "), "{error}");
    error
}

#[test]
fn a_cpu_that_is_brought_online_says_why_it_has_left_the_sidecar() {
    let server = Server::start();
    assert_eq!(
        success(&server, &["cpu", "online", "0"]),
        "CPU 0 runs Linux already\n"
    );
    assert_eq!(
        success(&server, &["cpu", "online", "1"]),
        "CPU 1 has left the sidecar, reason: exit for port 0x3f8\n"
    );
    assert_eq!(
        success(&server, &["cpu", "online", "1", "--json"]),
        "{\"cpu\":1,\"reason\":\"exit for port 0x3f8\"}\n"
    );
    let error = failure(run(&server, &["cpu", "online", "2"]), 1);
    assert!(
        error.contains("VP 2 does not exist: there are 2"),
        "{error}"
    );
}

#[test]
fn ping_shows_the_times_of_its_answers() {
    let server = Server::start();
    let line = success(&server, &["ping", "--count", "3"]);
    assert!(line.starts_with("3 answers: min "), "{line}");
    let json = success(&server, &["ping", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["count"], 10);
    assert!(json["median_ns"].as_u64() <= json["max_ns"].as_u64());
}

#[test]
fn inspect_shows_a_tree() {
    let server = Server::start();
    let tree = success(&server, &["--timeout", "300ms", "inspect"]);
    assert_eq!(
        tree,
        "build_info:\n  revision: \"abc\\u{1b}[31m\"\n  base: 0x1000\nmemory:\n  \
         total: 4096 bytes (4.0 KiB)\nboot:\n  zero: \"begin\"\n  milestones:\n    0:\n      name: \"shim_entry\"\n      \
         process: \"openhcl_boot\"\n      ticks: 1000\n      ns: 1000000 ns (1.0 ms)\n    1:\n      \
         name: \"ready\"\n      process: \"openvmm_hcl\"\n      ticks: 4000\n      \
         ns: 4000000 ns (4.0 ms)\nproc:\n  42:\n    name: \"underhill_vm\"\nsetting: 0\nasked: 0\n\
         vm: <error: no answer in time>\n"
    );
    let names = success(&server, &["inspect", "boot", "--depth", "0"]);
    assert_eq!(names, "zero: \"begin\"\nmilestones: _\n");
    let json = success(&server, &["inspect", "memory", "--json"]);
    assert_eq!(json, "{\n  \"total\": 4096\n}\n");
}

#[test]
fn inspect_changes_a_value() {
    let server = Server::start();
    assert_eq!(success(&server, &["inspect", "setting", "-u", "7"]), "7\n");
    assert_eq!(success(&server, &["inspect", "setting"]), "7\n");
    let error = failure(run(&server, &["inspect", "setting", "-u", "x"]), 1);
    assert!(error.contains("invalid digit"), "{error}");
    let error = failure(run(&server, &["inspect", "memory/total", "-u", "1"]), 1);
    assert!(error.contains("cannot be changed"), "{error}");
}

#[test]
fn inspect_repeats_itself_with_rates() {
    let server = Server::start();
    let args = ["inspect", "asked", "--periodic", "10ms", "--count", "3"];
    let text = success(&server, &args);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!((lines[0], lines[1]), ("0", "---"));
    // One more each time, so a rate that is not zero.
    assert!(lines[2].parse::<f64>().unwrap() > 0.0, "{text}");
}

#[test]
fn what_is_not_there_fails_and_what_is_late_times_out() {
    let server = Server::start();
    let error = failure(run(&server, &["inspect", "no\u{1b}thing"]), 1);
    assert!(error.contains("not found"), "{error}");
    failure(run(&server, &["--timeout", "100ms", "inspect", "vm"]), 4);
}

#[test]
fn kmsg_shows_the_log_with_nothing_harmful() {
    let server = Server::start();
    assert_eq!(
        success(&server, &["kmsg"]),
        "[    1.500000] openvmm_hcl: \\x1b ready\n[    2.000001] oops\\u{1b}[2J\n"
    );
}

#[test]
fn exec_passes_streams_and_the_exit_code() {
    let server = Server::start();
    let mut child = command(&server, &["exec", "-e", "X=y", "--", "/bin/sh", "-c"])
        .arg("cat; echo $X; echo err >&2; exit 42")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Not text: passed on byte for byte.
    let input = b"in\x1b\xff\n";
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"in\x1b\xff\ny\n");
    assert_eq!(text(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn exec_without_a_program_there_says_so() {
    let server = Server::start();
    let error = failure(run(&server, &["exec", "/nonexistent"]), 1);
    assert!(error.contains("/nonexistent cannot be started"), "{error}");
    let args = ["shell", "--shell", "/nonexistent", "-c", "true"];
    let error = failure(run(&server, &args), 1);
    assert!(error.contains("only development images"), "{error}");
}

#[test]
fn shell_runs_commands_without_a_terminal() {
    let server = Server::start();
    assert_eq!(
        success(&server, &["shell", "-c", "echo $((6 * 7))"]),
        "42\n"
    );
    let mut child = command(&server, &["shell"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"echo a\nexit 5\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "a\n");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn file_is_shown_or_fetched() {
    let server = Server::start();
    let path = server.directory.path().join("file");
    let content = b"content \xff\x1b".repeat(10_000);
    std::fs::write(&path, &content).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(run(&server, &["file", path]).stdout, content);
    let copy = server.directory.path().join("copy");
    success(&server, &["file", path, "-o", copy.to_str().unwrap()]);
    assert_eq!(std::fs::read(copy).unwrap(), content);
    let error = failure(run(&server, &["file", "/nonexistent"]), 1);
    assert!(error.contains("/nonexistent"), "{error}");
    let error = failure(run(&server, &["file", path, "-o", "/nonexistent/x"]), 1);
    assert!(error.contains("/nonexistent/x"), "{error}");
}

#[test]
fn file_is_followed() {
    let server = Server::start();
    let path = server.directory.path().join("log");
    std::fs::write(&path, "one\n").unwrap();
    let mut child = command(&server, &["file", "-f", path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let server = Server::start();
    let mut child = command(&server, &["exec", "/bin/sh", "-c"])
        .arg("while echo x; do :; done")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_paravisor_is_told() {
    let server = Server::start();
    success(&server, &["restart"]);
    success(&server, &["crash", "7"]);
    success(&server, &["crash", "underhill_vm"]);
    let error = failure(run(&server, &["crash", "nobody"]), 1);
    assert!(error.contains("there are: underhill_vm"), "{error}");
    success(&server, &["power-off"]);
    assert_eq!(
        server.calls(),
        ["restart", "crash 7", "crash 42", "power off"]
    );
    server.wait_for_end();
}

#[test]
fn the_boot_is_a_table_or_a_list() {
    let server = Server::start();
    let table = success(&server, &["boot-timeline"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("openhcl_boot"), "{table}");
    let json = success(&server, &["boot-timeline", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["milestones"][1]["name"], "ready");
    assert_eq!(json["milestones"][1]["ns"], 4_000_000);
}

#[test]
fn the_vm_that_runs_is_found() {
    let server = Server::start();
    // The list of the machine itself is not touched: nothing else sets this variable.
    let vms = server.directory.path().join("openhcl-qemu/vms");
    let find = |args: &[&str]| {
        ohcldiag(server.directory.path())
            .args(args)
            .output()
            .unwrap()
    };
    let error = failure(find(&["ping"]), 3);
    assert!(error.contains("no VM runs here"), "{error}");
    let output = find(&["list"]);
    assert_eq!(text(&output.stdout), "");
    assert_eq!(text(&output.stderr), "no VM runs here\n");

    let record = |name: &str| {
        let vsock = serde_json::json!({"hybrid_vsock": server.path});
        let vm = serde_json::json!({
            "pid": std::process::id(), "vsock": vsock, "consoles": null,
            "started": 0, "name": name, "image": null,
        });
        let record = serde_json::json!({"version": 1, "pid_started": null, "vm": vm});
        let file = vms.join(format!("{name}.json"));
        std::fs::write(file, record.to_string()).unwrap();
    };
    std::fs::create_dir_all(&vms).unwrap();
    record("first");
    assert_eq!(find(&["ping"]).status.code(), Some(0));
    record("second");
    let error = failure(find(&["ping"]), 3);
    assert!(error.contains("--vm: first, second"), "{error}");
    assert_eq!(find(&["--vm", "second", "ping"]).status.code(), Some(0));
    let error = failure(find(&["--vm", "third", "ping"]), 3);
    assert!(error.contains("there are: first, second"), "{error}");
    let table = text(&find(&["list"]).stdout);
    assert_eq!(table.lines().count(), 3, "{table}");
    let json = text(&find(&["list", "--json"]).stdout);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["name"], "first");
}

#[test]
fn a_vm_that_is_not_there_is_one_line() {
    let server = Server::start();
    let ping = |vm: &str| {
        let mut command = ohcldiag(server.directory.path());
        command.args(["--vm", vm, "ping"]).output().unwrap()
    };
    let error = failure(ping("/nonexistent/vm.sock"), 3);
    assert!(
        error.contains("/nonexistent/vm.sock: no VM listens there"),
        "{error}"
    );
    success(&server, &["power-off"]);
    server.wait_for_end();
    let error = failure(ping(server.path.to_str().unwrap()), 3);
    assert!(error.contains("does not take connections"), "{error}");
}

#[test]
fn a_wrong_command_line_is_code_2() {
    let server = Server::start();
    for args in [
        &["nothing"][..],
        &["ping", "--count", "0"],
        &["inspect", "--periodic", "0"],
        &["inspect", "-u", "1", "--depth", "1"],
        &["exec"],
        &["--timeout", "soon", "ping"],
    ] {
        assert_eq!(run(&server, args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn every_command_has_help_with_examples() {
    let server = Server::start();
    let help = success(&server, &["--help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert_eq!(commands.len(), 14, "{help}");
    for name in commands {
        let help = success(&server, &[name, "--help"]);
        let simple = ["pause", "resume", "restart", "power-off"].contains(&name);
        assert!(simple || help.contains("Examples:"), "{help}");
    }
}
