//! `Exec` and `Wait`.

mod common;

use common::Server;
use common::eventually;
use common::read_all;
use common::read_text;
use common::shell;
use diag_proto::diag::EnvPair;
use diag_proto::diag::ExecRequest;
use diag_proto::diag::ExecResponse;
use diag_proto::diag::UNDERHILL_DIAG;
use diag_proto::diag::WaitRequest;
use diag_proto::ttrpc::Code;
use prost::Message as _;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::process::Command;

#[test]
fn exit_code_is_that_of_the_process() {
    let server = Server::new();
    let mut client = server.connect();
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 128 + 9)] {
        let pid = client.exec(&shell(script)).expect("it starts");
        assert_eq!(client.wait(pid), Ok(code), "{script}");
        // Whoever asks again gets it again.
        assert_eq!(client.wait(pid), Ok(code), "{script}");
    }
    assert_eq!(server.stats.processes.get(), 0);
}

#[test]
fn process_that_was_not_started_here_cannot_be_waited_for() {
    let server = Server::new();
    let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let mut client = server.connect();
    for pid in [0, -1, 1, i32::MAX, child.id() as i32] {
        let (code, _) = client.wait(pid).expect_err("unknown");
        assert_eq!(code, Code::NotFound, "{pid}");
    }
    child.kill().expect("it runs");
    child.wait().expect("it is still there to be waited for");
}

#[test]
fn children_of_others_are_left_alone() {
    let server = Server::new();
    let mut client = server.connect();
    let mut other = Command::new("true").spawn().expect("true");
    let pid = client.exec(&shell("exit 1")).expect("it starts");
    assert_eq!(client.wait(pid), Ok(1));
    assert!(other.wait().expect("nobody has waited for it").success());
}

#[test]
fn missing_program_is_not_found_and_uses_its_connections_up() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdout, mut stream) = server.data();
    let request = ExecRequest {
        command: "/no/such/program".into(),
        stdout,
        ..Default::default()
    };
    let (code, message) = client.exec(&request).expect_err("missing");
    assert_eq!(code, Code::NotFound);
    assert!(message.contains("/no/such/program"), "{message}");
    assert_eq!(read_all(&mut stream), []);
    assert_eq!(server.stats.processes.get(), 0);
}

#[test]
fn requests_that_make_no_sense_are_invalid() {
    let server = Server::new();
    let mut client = server.connect();
    let with = |change: fn(&mut ExecRequest)| {
        let mut request = shell("true");
        change(&mut request);
        request
    };
    for (request, code) in [
        (with(|request| request.command.clear()), Code::NotFound),
        (
            with(|request| request.command = "a\0b".into()),
            Code::InvalidArgument,
        ),
        (
            with(|request| request.args.push("\0".into())),
            Code::InvalidArgument,
        ),
        (
            with(|request| request.command = "/".into()),
            Code::PermissionDenied,
        ),
        (
            with(|request| request.env.push(EnvPair::default())),
            Code::InvalidArgument,
        ),
        (
            with(|request| {
                request.env.push(EnvPair {
                    name: "A=B".into(),
                    value: Some("C".into()),
                });
            }),
            Code::InvalidArgument,
        ),
        (
            with(|request| request.args = vec!["x".repeat(1 << 20)]),
            Code::InvalidArgument,
        ),
        (with(|request| request.stdin = 99), Code::NotFound),
    ] {
        let (found, message) = client.exec(&request).expect_err("invalid");
        assert_eq!(found, code, "{message}");
    }
    client.ping();
}

#[test]
fn pipes_carry_input_output_and_errors_apart() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, mut input) = server.data();
    let (stdout, mut output) = server.data();
    let (stderr, mut errors) = server.data();
    let request = ExecRequest {
        stdin,
        stdout,
        stderr,
        ..shell("cat; echo wrong >&2; exit 3")
    };
    let pid = client.exec(&request).expect("it starts");
    input.write_all(b"hello\n").expect("it reads");
    input.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(read_text(&mut output), "hello\n");
    assert_eq!(read_text(&mut errors), "wrong\n");
    assert_eq!(client.wait(pid), Ok(3));
}

#[test]
fn much_output_arrives_whole() {
    const SIZE: usize = 5 << 20;
    let server = Server::new();
    let mut client = server.connect();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdout,
        ..shell(&format!("head -c {SIZE} /dev/zero"))
    };
    let pid = client.exec(&request).expect("it starts");
    assert_eq!(read_all(&mut output).len(), SIZE);
    assert_eq!(client.wait(pid), Ok(0));
}

#[test]
fn output_is_still_there_when_the_process_has_ended() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdout,
        ..shell("echo last words")
    };
    let pid = client.exec(&request).expect("it starts");
    assert_eq!(client.wait(pid), Ok(0));
    assert_eq!(read_text(&mut output), "last words\n");
}

#[test]
fn errors_can_be_combined_with_output() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdout, mut output) = server.data();
    // A client may open this one nevertheless; it just ends.
    let (stderr, mut errors) = server.data();
    let request = ExecRequest {
        stdout,
        stderr,
        combine_stderr: true,
        ..shell("echo one; echo two >&2; echo three")
    };
    client.exec(&request).expect("it starts");
    assert_eq!(read_text(&mut output), "one\ntwo\nthree\n");
    assert_eq!(read_text(&mut errors), "");
}

#[test]
fn without_connections_there_is_no_input_and_output_goes_nowhere() {
    let server = Server::new();
    let mut client = server.connect();
    let script = "test -z \"$(cat)\" && echo out && echo error >&2";
    let pid = client.exec(&shell(script)).expect("it starts");
    assert_eq!(client.wait(pid), Ok(0));
}

#[test]
fn environment_is_changed_or_cleared() {
    let server = Server::new();
    let mut client = server.connect();
    let mut variables = |clear_env, script: &str| {
        let (stdout, mut output) = server.data();
        let request = ExecRequest {
            stdout,
            clear_env,
            env: vec![
                EnvPair {
                    name: "NEW".into(),
                    value: Some("a b=c".into()),
                },
                EnvPair {
                    name: "HOME".into(),
                    value: None,
                },
            ],
            command: "/bin/sh".into(),
            ..shell(script)
        };
        client.exec(&request).expect("it starts");
        read_text(&mut output)
    };
    // What it was started with; a shell adds variables of its own.
    let script = "echo \"$NEW\"; tr '\\0' '\\n' < /proc/$$/environ | cut -d= -f1 \
                  | grep -x -e NEW -e HOME -e PATH | sort";
    assert_eq!(variables(false, script), "a b=c\nNEW\nPATH\n");
    assert_eq!(variables(true, script), "a b=c\nNEW\n");
}

#[test]
fn process_leads_its_own_session() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdout,
        // Session is the fourth field behind the name.
        ..shell("sed 's/.*) //' /proc/self/stat | cut -d' ' -f4; echo $$")
    };
    client.exec(&request).expect("it starts");
    let text = read_text(&mut output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn descriptors_of_the_server_do_not_reach_the_process() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, _input) = server.data();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdin,
        stdout,
        tty: true,
        ..shell("for fd in /proc/$$/fd/*; do readlink $fd; done")
    };
    client.exec(&request).expect("it starts");
    let descriptors = read_text(&mut output);
    assert!(descriptors.contains("/dev/pts/"), "{descriptors}");
    for foreign in ["socket:", "ptmx", "pidfd", "anon_inode"] {
        assert!(!descriptors.contains(foreign), "{descriptors}");
    }
}

#[test]
fn terminal_is_one_of_80_by_24() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, _input) = server.data();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdin,
        stdout,
        tty: true,
        ..shell("test -t 0 && test -t 1 && test -t 2 && stty size && echo yes > /dev/tty")
    };
    let pid = client.exec(&request).expect("it starts");
    assert_eq!(read_text(&mut output), "24 80\r\nyes\r\n");
    assert_eq!(client.wait(pid), Ok(0));
}

#[test]
fn terminal_carries_what_is_typed() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, mut input) = server.data();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdin,
        stdout,
        tty: true,
        ..shell("stty -echo; echo ready; read line; echo \"got $line\"; read more")
    };
    let pid = client.exec(&request).expect("it starts");
    let mut ready = [0; 7];
    output.read_exact(&mut ready).expect("its output");
    assert_eq!(&ready, b"ready\r\n");
    input.write_all(b"this\n").expect("it reads");
    let mut got = [0; 10];
    output.read_exact(&mut got).expect("its output");
    assert_eq!(&got, b"got this\r\n");
    // Ctrl-C interrupts what runs in the foreground.
    input.write_all(&[3]).expect("it reads");
    assert_eq!(client.wait(pid), Ok(128 + 2));
}

#[test]
fn a_signal_that_the_server_ignores_is_not_ignored_by_its_processes() {
    const NAME: &str = "a_signal_that_the_server_ignores_is_not_ignored_by_its_processes";
    const INNER: &str = "TEST_WITH_IGNORED_SIGNALS";
    if std::env::var_os(INNER).is_none() {
        // Once more, as somebody starts it who ignores what ends a program.
        let status = Command::new("sh")
            .args(["-c", "trap '' HUP INT TERM; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().expect("its path"))
            .arg(NAME)
            .env(INNER, "1")
            .status();
        return assert!(status.expect("sh runs").success());
    }
    let server = Server::new();
    let mut client = server.connect();
    for (signal, number) in [("HUP", 1), ("INT", 2), ("TERM", 15)] {
        let script = format!("kill -{signal} $$; exit 0");
        let pid = client.exec(&shell(&script)).expect("it starts");
        assert_eq!(client.wait(pid), Ok(128 + number), "SIG{signal}");
    }
}

#[test]
fn end_of_input_ends_a_shell_on_a_terminal() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, mut input) = server.data();
    let (stdout, mut output) = server.data();
    let request = ExecRequest {
        stdin,
        stdout,
        tty: true,
        ..shell("stty -echo; cat; exit 5")
    };
    let pid = client.exec(&request).expect("it starts");
    input.write_all(b"line\n").expect("it reads");
    input.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(client.wait(pid), Ok(5));
    assert!(read_text(&mut output).ends_with("line\r\n"));
}

#[test]
fn terminal_can_use_one_connection_for_both_directions() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, mut both) = server.data();
    let request = ExecRequest {
        stdin,
        tty: true,
        ..shell("stty -echo; echo ready; read line; echo \"got $line\"")
    };
    client.exec(&request).expect("it starts");
    let mut ready = [0; 7];
    both.read_exact(&mut ready).expect("its output");
    both.write_all(b"this\n").expect("it reads");
    assert_eq!(read_text(&mut both), "got this\r\n");
}

#[test]
fn hang_up_closes_the_terminal_and_nothing_else() {
    let server = Server::new();
    let mut client = server.connect();
    let other = client.exec(&shell("sleep 1000")).expect("it starts");
    for one_connection in [false, true] {
        let (stdin, input) = server.data();
        let (stdout, output) = if one_connection {
            (0, None)
        } else {
            let (id, stream) = server.data();
            (id, Some(stream))
        };
        let request = ExecRequest {
            stdin,
            stdout,
            tty: true,
            command: "sleep".into(),
            args: vec!["1000".into()],
            ..Default::default()
        };
        let pid = client.exec(&request).expect("it starts");
        drop((input, output));
        assert_eq!(client.wait(pid), Ok(128 + 1), "SIGHUP");
    }
    assert_eq!(server.stats.processes.get(), 1);
    kill(other);
    assert_eq!(client.wait(other), Ok(128 + 9));
}

#[test]
fn hang_up_of_the_output_is_told_to_the_process() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdout, output) = server.data();
    let request = ExecRequest {
        stdout,
        command: "yes".into(),
        ..Default::default()
    };
    let pid = client.exec(&request).expect("it starts");
    drop(output);
    // SIGPIPE, or the error if the parent ignores the signal.
    let code = client.wait(pid).expect("it ends");
    assert!([1, 128 + 13].contains(&code), "{code}");
    eventually("the connection is dropped", || {
        server.stats.data_connections.get() == 0
    });
}

#[test]
fn raw_process_has_the_connections_themselves() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, mut input) = server.data();
    let (stdout, mut output) = server.data();
    let (stderr, mut errors) = server.data();
    let request = ExecRequest {
        stdin,
        stdout,
        stderr,
        raw_socket_io: true,
        ..shell(
            "for fd in 0 1 2; do readlink /proc/$$/fd/$fd | cut -c 1-7; done; \
             read line; echo $line; echo wrong >&2; exit 4",
        )
    };
    let pid = client.exec(&request).expect("it starts");
    input.write_all(b"hello\n").expect("it reads");
    assert_eq!(client.wait(pid), Ok(4));
    assert_eq!(read_text(&mut output), "socket:\nsocket:\nsocket:\nhello\n");
    assert_eq!(read_text(&mut errors), "wrong\n");
}

#[test]
fn waiting_does_not_keep_a_connection_from_other_requests() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, input) = server.data();
    let request = ExecRequest {
        stdin,
        ..shell("cat")
    };
    let pid = client.exec(&request).expect("it starts");
    let waiting = client.send(UNDERHILL_DIAG, "Wait", &WaitRequest { pid });
    let ping = client.send(
        diag_proto::diag::OPENHCL_DIAG,
        "Ping",
        &WaitRequest::default(),
    );
    assert_eq!(client.response(), Some((ping, Ok(vec![]))));
    drop(input);
    assert_eq!(client.response(), Some((waiting, Ok(vec![]))));
}

#[test]
fn processes_are_limited() {
    let server = Server::with_limits(|limits| limits.processes = 2);
    let mut client = server.connect();
    let pids = [0; 2].map(|_| client.exec(&shell("sleep 1000")).expect("it starts"));
    let (code, _) = client.exec(&shell("true")).expect_err("one too many");
    assert_eq!(code, Code::ResourceExhausted);
    for pid in pids {
        kill(pid);
        assert_eq!(client.wait(pid), Ok(128 + 9));
    }
    client.exec(&shell("true")).expect("there is room again");
}

#[test]
fn exit_codes_are_forgotten_in_their_order() {
    let server = Server::with_limits(|limits| limits.exit_codes = 2);
    let mut client = server.connect();
    let pids = [1, 2, 3].map(|code| {
        let pid = client
            .exec(&shell(&format!("exit {code}")))
            .expect("it starts");
        assert_eq!(client.wait(pid), Ok(code));
        pid
    });
    let (code, _) = client.wait(pids[0]).expect_err("forgotten");
    assert_eq!(code, Code::NotFound);
    assert_eq!(client.wait(pids[1]), Ok(2));
    assert_eq!(client.wait(pids[2]), Ok(3));
}

#[test]
fn process_survives_its_client() {
    let server = Server::new();
    let mut client = server.connect();
    let (stdin, mut input) = server.data();
    let request = ExecRequest {
        stdin,
        ..shell("read line; exit 9")
    };
    let pid = client.exec(&request).expect("it starts");
    drop(client);
    let mut client = server.connect();
    input.write_all(b"go\n").expect("it reads");
    assert_eq!(client.wait(pid), Ok(9));
}

#[test]
fn answers_have_the_numbers_of_the_protocol() {
    assert_eq!(ExecResponse { pid: 5 }.encode_to_vec(), [8, 5]);
}

fn kill(pid: i32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}
