//! The diagnostics service through the vsock of a real machine: peers that keep to no
//! protocol, and a client that is not ours.
//!
//! The server's own tests have each case by itself; here is what the way through kernel and
//! helper can change, and that the paravisor survives it.

use diag_client::Client;
use diag_client::Exec;
use diag_proto::PORT_CONTROL;
use diag_proto::diag;
use diag_proto::inspect;
use diag_proto::ttrpc::Code;
use diag_proto::ttrpc::Request;
use diag_proto::ttrpc::Response;
use diag_proto::ttrpc::frame::Header;
use diag_proto::ttrpc::frame::Kind;
use diag_proto::ttrpc::frame::MAX_MESSAGE;
use diag_proto::ttrpc::frame::encode_request;
use diag_proto::ttrpc::frame::read_frame;
use prost::Message as _;
use qemu::VsockAddress;
use std::fs::File;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::IntoRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vmm_tests::diag_address;
use vsm_host_defs::ExitReason;

/// When a read becomes a failure.
const PATIENCE: Duration = Duration::from_secs(120);

const MIB: usize = 1 << 20;

fn start(scenario: Scenario) -> TestVm {
    let mut vm = scenario.vsock().start();
    vm.expect_ready();
    // The service comes up behind that event.
    client(&vm).ping().expect("the service answers");
    vm
}

fn client(vm: &TestVm) -> Client {
    let deadline = std::time::Instant::now() + PATIENCE;
    Client::connect_until(diag_address(&vm.vsock()), deadline).expect("the service is up")
}

/// A connection to the control port that nobody has said anything on.
fn connect(vm: &TestVm) -> File {
    match vm.vsock() {
        VsockAddress::Hybrid(path) => {
            let mut stream = UnixStream::connect(path).expect("the helper listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
            // In one write: the helper gives up on half a line.
            let line = format!("CONNECT {PORT_CONTROL}\n");
            stream.write_all(line.as_bytes()).expect("the helper reads");
            let mut answer = [0; 1];
            let mut line = Vec::new();
            while answer != *b"\n" {
                stream.read_exact(&mut answer).expect("the helper answers");
                line.extend(answer);
            }
            assert!(line.starts_with(b"OK "), "{}", line.escape_ascii());
            OwnedFd::from(stream).into()
        }
        VsockAddress::Cid(cid) => {
            let stream = vsock::VsockStream::connect_with_cid_port(cid, PORT_CONTROL)
                .expect("the service listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
            OwnedFd::from(stream).into()
        }
    }
}

fn ping(stream_id: u32) -> Vec<u8> {
    let request = Request {
        service: diag::OPENHCL_DIAG.into(),
        method: "Ping".into(),
        ..Default::default()
    };
    encode_request(stream_id, &request).expect("short")
}

fn frame(stream_id: u32, kind: u8, message: &[u8]) -> Vec<u8> {
    let header = Header {
        length: message.len() as u32,
        stream_id,
        kind: Kind(kind),
        flags: 0,
    };
    [header.to_bytes().as_slice(), message].concat()
}

/// The next answer: its stream id and code.
fn answer(connection: &mut File) -> (u32, Code) {
    let frame = read_frame(connection, MAX_MESSAGE)
        .expect("a frame in time")
        .expect("the connection goes on");
    let response = Response::decode(frame.message.as_slice()).expect("a response");
    let code = response.status.map_or(0, |status| status.code);
    let code = Code::try_from(code).expect("a known code");
    (frame.header.stream_id, code)
}

/// Memory of the paravisor's process, which reads the file: itself.
fn resident_kib(vm: &TestVm) -> u64 {
    let mut status = String::new();
    client(vm)
        .read_file("/proc/self/status", false)
        .expect("it can be read")
        .read_to_string(&mut status)
        .expect("text");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let line = line.expect("procfs tells it");
    let number = line.split_ascii_whitespace().nth(1);
    number.and_then(|number| number.parse().ok()).expect("KiB")
}

#[test]
fn hostile_peers_get_errors_and_the_service_goes_on() {
    let vm = start(Scenario::release());
    let mut good = connect(&vm);

    for end in [1, 9, 10, ping(1).len() - 1] {
        let mut cut = connect(&vm);
        cut.write_all(&ping(1)[..end]).expect("it reads");
    }
    let mut hostile = connect(&vm);
    let too_long = vec![0; 5 * MIB];
    for (sent, expected) in [
        (frame(1, 1, &too_long), (1, Code::ResourceExhausted)),
        (frame(3, 1, &[0xff; 100]), (3, Code::InvalidArgument)),
        (frame(2, 1, &[]), (2, Code::InvalidArgument)),
        (frame(3, 1, &[]), (3, Code::InvalidArgument)),
        (frame(5, 3, &[]), (5, Code::InvalidArgument)),
        (frame(7, 1, &[]), (7, Code::Unimplemented)),
        (
            [frame(9, 0x77, b"ignored"), ping(9)].concat(),
            (9, Code::Ok),
        ),
    ] {
        hostile.write_all(&sent).expect("it reads");
        assert_eq!(answer(&mut hostile), expected);
    }
    good.write_all(&ping(1)).expect("it reads");
    assert_eq!(answer(&mut good), (1, Code::Ok));
}

#[test]
fn ten_thousand_requests_and_two_hundred_connections_are_served() {
    const REQUESTS: u32 = 10_000;
    const CONNECTIONS: usize = 200;
    let vm = start(Scenario::release());
    let before = resident_kib(&vm);

    let mut connection = connect(&vm);
    let mut writer = connection.try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        let requests = (0..REQUESTS).flat_map(|index| ping(2 * index + 1));
        let requests: Vec<u8> = requests.collect();
        writer.write_all(&requests).expect("it reads");
    });
    let mut ids: Vec<u32> = (0..REQUESTS)
        .map(|_| {
            let (id, code) = answer(&mut connection);
            assert_eq!(code, Code::Ok);
            id
        })
        .collect();
    writer.join().expect("all is written");
    ids.sort_unstable();
    assert!(ids.into_iter().eq((0..REQUESTS).map(|index| 2 * index + 1)));

    let mut connections: Vec<File> = (0..CONNECTIONS).map(|_| connect(&vm)).collect();
    for connection in &mut connections {
        connection.write_all(&ping(1)).expect("it reads");
    }
    for connection in &mut connections {
        assert_eq!(answer(connection), (1, Code::Ok));
    }
    let grown = resident_kib(&vm).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for 200 connections");
}

#[test]
fn client_that_never_reads_holds_up_nobody() {
    let vm = start(Scenario::release());
    let before = resident_kib(&vm);
    let request = Request {
        service: inspect::INSPECT_SERVICE.into(),
        method: "Inspect".into(),
        payload: inspect::InspectRequest {
            path: String::new(),
            depth: u32::MAX,
        }
        .encode_to_vec(),
        ..Default::default()
    };
    let flooders: Vec<File> = (0..3)
        .map(|_| {
            let mut flooder = connect(&vm);
            for index in 0..500 {
                let frame = encode_request(2 * index + 1, &request).expect("short");
                flooder.write_all(&frame).expect("the sockets take it");
            }
            flooder
        })
        .collect();
    let client = client(&vm);
    client.ping().expect("it answers");
    client.inspect("", u32::MAX).expect("it answers");
    let grown = resident_kib(&vm).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for three of them");
    drop(flooders);
    client.ping().expect("it answers");
}

#[test]
fn a_large_file_arrives_whole_also_if_it_is_fetched_late() {
    const PROGRAM: &str = "/bin/openvmm_hcl";
    let vm = start(Scenario::release());
    let client = client(&vm);
    let mut whole = Vec::new();
    let mut stream = client.read_file(PROGRAM, false).expect("it can be read");
    stream.read_to_end(&mut whole).expect("it ends");
    assert!(whole.starts_with(b"\x7fELF") && whole.len() > MIB);

    // More than the sockets and the helper hold, so the server waits; its last bytes are
    // in the helper when it says that this is all.
    let mut late = client.read_file(PROGRAM, false).expect("it can be read");
    for _ in 0..20 {
        client.ping().expect("others are served");
    }
    let mut bytes = Vec::new();
    late.read_to_end(&mut bytes).expect("it ends");
    assert!(bytes == whole, "{} of {} bytes", bytes.len(), whole.len());
}

#[test]
fn programs_run_with_pipes_and_with_a_terminal() {
    let vm = start(Scenario::dev());
    let client = client(&vm);
    let exec = |script: &str, tty| Exec {
        command: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
        ..Exec::default()
    };
    let text = |stream: Option<diag_client::DataStream>| {
        let mut text = String::new();
        let mut stream = stream.expect("it was asked for");
        stream.read_to_string(&mut text).expect("text, and an end");
        text
    };

    let request = exec("cat; echo wrong >&2; exit 3", false);
    let mut process = client.exec(&request).expect("it starts");
    let mut input = process.stdin.take().expect("it was asked for");
    input.write_all(b"hello\n").expect("it reads");
    drop(input);
    assert_eq!(text(process.stdout.take()), "hello\n");
    assert_eq!(text(process.stderr.take()), "wrong\n");
    assert_eq!(process.wait(Some(PATIENCE)).expect("it ends"), 3);

    let request = exec("test -t 0 && echo terminal; kill -9 $$", true);
    let mut process = client.exec(&request).expect("it starts");
    assert_eq!(text(process.stdout.take()), "terminal\r\n");
    assert_eq!(process.wait(Some(PATIENCE)).expect("it ends"), 128 + 9);

    // Its client goes away, with output that it has not read: that is the end of the
    // terminal, and of what runs on it.
    let request = exec("echo $$; exec sleep 100000", true);
    let mut process = client.exec(&request).expect("it starts");
    let mut pid = [0; 1];
    let stdout = process.stdout.as_mut().expect("it was asked for");
    stdout.read_exact(&mut pid).expect("it runs");
    drop((process.stdin.take(), process.stdout.take()));
    assert_eq!(process.wait(Some(PATIENCE)).expect("it ends"), 128 + 1);
}

#[test]
fn the_client_of_the_ttrpc_crate_is_served() {
    let mut vm = start(Scenario::release());
    let client = ttrpc::Client::new(connect(&vm).into_raw_fd()).expect("a client");
    let call = |service: &str, method: &str, payload: Vec<u8>| {
        let mut request = ttrpc::Request::new();
        request.set_service(service.into());
        request.set_method(method.into());
        request.set_payload(payload);
        client.request(request)
    };
    let response = call(diag::OPENHCL_DIAG, "Ping", vec![]).expect("an answer");
    assert!(response.payload.is_empty());

    let question = inspect::InspectRequest {
        path: "build_info".into(),
        depth: 1,
    };
    let response = call(
        inspect::INSPECT_SERVICE,
        "Inspect",
        question.encode_to_vec(),
    );
    let payload = response.expect("an answer").payload;
    let tree = inspect::InspectResponse::decode(payload.as_slice()).expect("a tree");
    let kind = tree.result.and_then(|node| node.kind);
    assert!(matches!(kind, Some(inspect::NodeKind::Dir(_))), "{kind:?}");

    match call("no.Service", "Ping", vec![]) {
        Err(ttrpc::Error::RpcStatus(status)) => {
            assert_eq!(status.code(), ttrpc::Code::UNIMPLEMENTED);
        }
        other => panic!("expected a status, got {other:?}"),
    }
    call(
        diag_proto::openhcl::OPENHCL_CONTROL,
        diag_proto::openhcl::POWER_OFF,
        vec![],
    )
    .expect("the answer comes before the end");
    vm.expect_exit(ExitReason::PowerOff);
}
