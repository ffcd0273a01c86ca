//! The calls against the real server.

mod server;

use diag_client::Client;
use diag_client::Code;
use diag_client::Error;
use diag_client::Exec;
use diag_client::KmsgRecord;
use server::Server;
use std::io::Read;
use std::io::Write;
use std::time::Duration;

fn client(server: &Server) -> Client {
    let timeout = Duration::from_secs(60);
    Client::connect_within(server.address(), timeout).unwrap()
}

fn text(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn it_answers() {
    let server = Server::start();
    let client = client(&server);
    for _ in 0..100 {
        client.ping().unwrap();
    }
}

#[test]
fn the_tree_is_read_and_changed() {
    let server = Server::start();
    let mut client = client(&server);
    let memory = client.inspect("memory", 9).unwrap();
    assert_eq!(memory.to_string(), "{total: 4096 bytes}");
    let error = client.inspect("nothing", 9).unwrap_err();
    assert_eq!(error.to_string(), "nothing: not found");
    assert_eq!(client.update("setting", "7").unwrap().to_string(), "7");
    let setting = client.inspect("/setting/", 0).unwrap();
    assert_eq!(setting.as_u64(), Some(7));
    let error = client.update("setting", "x").unwrap_err();
    assert_eq!(error.status(), Some(Code::FailedPrecondition));

    // What is late does not keep the rest.
    client.set_timeout(Duration::from_millis(200));
    let root = client.inspect("", 0).unwrap();
    assert_eq!(root.get("vm").unwrap().to_string(), "_");
    let root = client.inspect("", 1).unwrap();
    assert_eq!(
        root.get("vm").unwrap().to_string(),
        "<error: no answer in time>"
    );
    assert!(root.get("memory/total").is_some());
    assert!(client.inspect("vm/x", 1).unwrap_err().is_timeout());
}

#[test]
fn the_log_and_files_are_streams() {
    let server = Server::start();
    let client = client(&server);
    let records: Vec<String> = client
        .kmsg(false)
        .unwrap()
        .records()
        .map(Result::unwrap)
        .collect();
    let texts: Vec<_> = records
        .iter()
        .map(|record| KmsgRecord::parse(record).unwrap().text)
        .collect();
    assert_eq!(texts, ["openvmm_hcl: \\x1b ready", "oops\u{1b}[2J"]);

    let path = server.directory.path().join("file");
    std::fs::write(&path, "x".repeat(100_000)).unwrap();
    let path = path.to_str().unwrap();
    let content = text(client.read_file(path, false).unwrap());
    assert_eq!(content.len(), 100_000);
    let error = client.read_file("/nonexistent", false).unwrap_err();
    assert_eq!(error.status(), Some(Code::NotFound));
}

#[test]
fn a_file_that_grows_is_followed() {
    let server = Server::start();
    let path = server.directory.path().join("log");
    std::fs::write(&path, "one\n").unwrap();
    let stream = client(&server).read_file(path.to_str().unwrap(), true);
    let mut lines = stream.unwrap().lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "two");
}

fn shell(commands: &str) -> Exec {
    Exec {
        command: "/bin/sh".into(),
        args: vec!["-c".into(), commands.into()],
        stdout: true,
        stderr: true,
        ..Exec::default()
    }
}

#[test]
fn a_program_has_streams_environment_and_an_exit_code() {
    let server = Server::start();
    let client = client(&server);
    let exec = Exec {
        stdin: true,
        env: vec![("X".into(), Some("y".into())), ("HOME".into(), None)],
        ..shell("cat; echo $X ${HOME-none}; echo err >&2; exit 3")
    };
    let mut process = client.exec(&exec).unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"input\n").unwrap();
    stdin.finish().unwrap();
    assert_eq!(text(process.stdout.take().unwrap()), "input\ny none\n");
    assert_eq!(text(process.stderr.take().unwrap()), "err\n");
    assert_eq!(process.wait(None).unwrap(), 3);
    // Waiting blocks no other call.
    client.ping().unwrap();
}

#[test]
fn errors_can_go_where_the_output_goes() {
    let server = Server::start();
    let exec = Exec {
        combine_stderr: true,
        ..shell("echo out; echo err >&2")
    };
    let mut process = client(&server).exec(&exec).unwrap();
    assert!(process.stderr.is_none());
    assert_eq!(text(process.stdout.take().unwrap()), "out\nerr\n");
}

#[test]
fn a_signal_is_128_and_its_number() {
    let server = Server::start();
    let mut process = client(&server).exec(&shell("kill -9 $$")).unwrap();
    assert_eq!(process.wait(None).unwrap(), 137);
}

#[test]
fn a_program_on_a_terminal_has_one_stream() {
    let server = Server::start();
    let exec = Exec {
        tty: true,
        ..shell("test -t 0 && read x && echo \"<$x>\"")
    };
    let mut process = client(&server).exec(&exec).unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"typed\n").unwrap();
    let output = text(process.stdout.take().unwrap());
    assert!(output.contains("<typed>"), "{output:?}");
    assert_eq!(process.wait(None).unwrap(), 0);
}

#[test]
fn a_program_that_does_not_end_is_waited_for_in_vain() {
    let server = Server::start();
    let exec = Exec {
        stdin: true,
        ..shell("cat")
    };
    let mut process = client(&server).exec(&exec).unwrap();
    let error = process.wait(Some(Duration::from_millis(50))).unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let server = Server::start();
    let exec = Exec {
        command: "/nonexistent".into(),
        ..Exec::default()
    };
    let error = client(&server).exec(&exec).unwrap_err();
    assert_eq!(error.status(), Some(Code::NotFound));
}

#[test]
fn the_paravisors_calls_arrive() {
    let server = Server::start();
    let client = client(&server);
    client.restart().unwrap();
    client.crash(42).unwrap();
    assert_eq!(
        client.pause().unwrap_err().status(),
        Some(Code::Unimplemented)
    );
    assert_eq!(client.online_cpu(0).unwrap(), None);
    client.power_off().unwrap();
    assert_eq!(
        server.calls(),
        ["restart", "crash 42", "online 0", "power off"]
    );
    server.wait_for_end();
    let error = client.ping().unwrap_err();
    assert!(matches!(error, Error::NotListening { .. }), "{error}");
}
