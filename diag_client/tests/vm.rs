//! Calls to VMs that answer, that do not, and that lie.

mod common;

use common::FakeVm;
use common::first_line;
use common::success;
use diag_client::Client;
use diag_client::Error;
use diag_client::VmAddress;
use diag_proto::PORT_DATA;
use diag_proto::inspect as wire;
use diag_proto::ttrpc;
use diag_proto::ttrpc::Code;
use diag_proto::ttrpc::frame;
use diag_proto::ttrpc::frame::Header;
use diag_proto::ttrpc::frame::Kind;
use proptest::prelude::*;
use prost::Message;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// Long enough that only a defect reaches it.
const FAR: Duration = Duration::from_secs(60);
/// For tests of the end of patience.
const SHORT: Duration = Duration::from_millis(50);

fn client(vm: &FakeVm) -> Client {
    let mut client = Client::connect(vm.address.clone()).unwrap();
    client.set_timeout(FAR);
    client
}

fn header(length: u32, stream_id: u32) -> Vec<u8> {
    let header = Header {
        length,
        stream_id,
        kind: Kind::RESPONSE,
        flags: 0,
    };
    header.to_bytes().to_vec()
}

#[test]
fn calls_share_a_connection() {
    let vm = FakeVm::answering(|stream, request| {
        assert_eq!(request.service, "diag.OpenhclDiag");
        assert_eq!(request.method, "Ping");
        assert_eq!(request.timeout_nano, 60_000_000_000);
        success(stream, &[])
    });
    let client = client(&vm);
    for _ in 0..3 {
        client.ping().unwrap();
    }
}

#[test]
fn a_wrong_path_is_no_vm() {
    let directory = tempfile::tempdir().unwrap();
    let connect = |path| Client::connect(VmAddress::HybridVsock(path)).unwrap_err();
    let error = connect(directory.path().join("nothing"));
    assert!(matches!(error, Error::NoVm { .. }), "{error}");
    let error = connect(directory.path().to_owned());
    assert!(error.is_unreachable(), "{error}");
    // The file that is left of a VM that has ended.
    let path = directory.path().join("dead");
    drop(UnixListener::bind(&path).unwrap());
    let error = connect(path);
    assert!(matches!(error, Error::NoVm { .. }), "{error}");
}

#[test]
fn a_guest_that_does_not_listen_is_told_from_no_vm() {
    let vm = FakeVm::raw(drop);
    let error = Client::connect(vm.address.clone()).unwrap_err();
    assert!(
        matches!(error, Error::NotListening { port: 1, .. }),
        "{error}"
    );
}

#[test]
fn something_else_at_the_path_is_named() {
    for answer in ["HTTP/1.1 400 Bad Request\r\n", "OKAY\n", "\n"] {
        let vm = FakeVm::raw(move |mut socket| {
            first_line(&socket);
            _ = socket.write_all(answer.as_bytes());
        });
        let error = Client::connect(vm.address.clone()).unwrap_err();
        assert!(matches!(error, Error::NotHybridVsock { .. }), "{error}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
}

#[test]
fn an_endless_first_line_is_cut() {
    let vm = FakeVm::raw(|mut socket| {
        first_line(&socket);
        while socket.write_all(b"OK OK OK").is_ok() {}
    });
    let error = Client::connect(vm.address.clone()).unwrap_err();
    assert!(matches!(error, Error::NotHybridVsock { .. }), "{error}");
}

#[test]
fn a_vm_that_comes_up_later_is_waited_for() {
    let attempts = AtomicU32::new(0);
    let vm = FakeVm::raw(move |mut socket| {
        first_line(&socket);
        if attempts.fetch_add(1, Ordering::Relaxed) >= 3 {
            socket.write_all(b"OK 1\n").unwrap();
        }
    });
    Client::connect_until(vm.address.clone(), Instant::now() + FAR).unwrap();
}

#[test]
fn waiting_for_a_vm_ends() {
    let vm = FakeVm::raw(drop);
    let error = Client::connect_until(vm.address.clone(), Instant::now() + SHORT).unwrap_err();
    assert!(matches!(error, Error::NotListening { .. }), "{error}");
}

#[test]
fn a_silent_vm_is_a_timeout_and_the_next_call_gets_a_new_connection() {
    let asked = AtomicU32::new(0);
    let (keep, kept) = std::sync::mpsc::channel();
    let keep = std::sync::Mutex::new(keep);
    let vm = FakeVm::start(move |_, mut socket| {
        if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            // Stays open and says nothing.
            keep.lock().unwrap().send(socket).unwrap();
            return;
        }
        let request = frame::read_frame(&mut socket, 1000).unwrap().unwrap();
        let answer = success(request.header.stream_id, &[]);
        socket.write_all(&answer).unwrap();
    });
    let mut client = Client::connect(vm.address.clone()).unwrap();
    client.set_timeout(SHORT);
    let error = client.ping().unwrap_err();
    assert!(error.is_timeout(), "{error}");
    client.set_timeout(FAR);
    client.ping().unwrap();
    drop(kept);
}

#[test]
fn late_answers_of_other_requests_are_passed_over() {
    let vm = FakeVm::answering(|stream, _| {
        let mut bytes = success(stream + 2, b"late");
        bytes.extend(success(stream, &[]));
        bytes
    });
    client(&vm).ping().unwrap();
}

#[test]
fn an_endless_stream_of_other_answers_ends_at_the_deadline() {
    let vm = FakeVm::start(|_, mut socket| {
        let noise = success(1000, &[0; 1000]);
        while socket.write_all(&noise).is_ok() {}
    });
    let mut client = Client::connect(vm.address.clone()).unwrap();
    client.set_timeout(SHORT);
    let error = client.ping().unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn a_closed_connection_is_named() {
    let vm = FakeVm::answering(|_, _| Vec::new());
    let error = client(&vm).ping().unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
    // Also within a message, whatever length it has claimed.
    let vm = FakeVm::start(|_, mut socket| {
        _ = frame::read_frame(&mut socket, 1000);
        socket
            .write_all(&header(frame::MAX_MESSAGE as u32, 1))
            .unwrap();
    });
    let error = client(&vm).ping().unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
}

#[test]
fn a_message_beyond_the_protocols_limit_is_refused() {
    let vm = FakeVm::answering(|stream, _| header(u32::MAX, stream));
    let error = client(&vm).ping().unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn a_failure_has_code_and_reason_and_leaves_the_connection_usable() {
    let vm = FakeVm::answering(|stream, request| {
        if request.method == "Ping" {
            return success(stream, &[]);
        }
        let status = ttrpc::Status {
            code: Code::FailedPrecondition as i32,
            message: "not \u{1b}[31mnow".into(),
        };
        frame::encode_failure(stream, status).unwrap()
    });
    let client = client(&vm);
    let error = client.restart().unwrap_err();
    assert_eq!(error.status(), Some(Code::FailedPrecondition));
    assert_eq!(
        error.to_string(),
        "Restart: not \\u{1b}[31mnow (FailedPrecondition)"
    );
    client.ping().unwrap();
}

fn dir(entries: Vec<wire::Entry>) -> wire::Node {
    wire::Node {
        kind: Some(wire::NodeKind::Dir(wire::Dir { entries })),
    }
}

fn inspected(node: wire::Node) -> Result<inspect::Node, Error> {
    let response = wire::InspectResponse { result: Some(node) };
    let vm = FakeVm::with_payload(response.encode_to_vec());
    client(&vm).inspect("a/b", 3)
}

#[test]
fn a_tree_is_returned() {
    let entry = wire::Entry {
        name: "x".into(),
        node: Some(inspect::Node::Value(5u32.into()).into()),
        sensitivity: None,
    };
    assert_eq!(inspected(dir(vec![entry])).unwrap().to_string(), "{x: 5}");
}

#[test]
fn a_path_that_is_not_there_is_an_error() {
    let failed = inspect::Node::Failed(inspect::Error::NotFound);
    let error = inspected(failed.into()).unwrap_err();
    assert_eq!(error.to_string(), "a/b: not found");
}

#[test]
fn a_tree_with_too_many_entries_is_refused() {
    let error = inspected(dir(vec![wire::Entry::default(); 600_000])).unwrap_err();
    assert!(error.to_string().contains("entries"), "{error}");
}

#[test]
fn a_tree_that_is_too_deep_is_refused() {
    let mut node = wire::Node::default();
    // What the messages themselves can still encode; the decoder stops at a third.
    for _ in 0..100 {
        let entry = wire::Entry {
            node: Some(node),
            ..Default::default()
        };
        node = dir(vec![entry]);
    }
    let error = inspected(node).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn an_answer_without_content_is_refused() {
    let vm = FakeVm::with_payload(Vec::new());
    let error = client(&vm).inspect("", 0).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    let error = client(&vm).update("", "1").unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

/// A VM whose data connections have an id and these bytes, and which agrees to everything.
fn with_stream(id: u64, bytes: Vec<u8>) -> FakeVm {
    FakeVm::start(move |port, mut socket| {
        if port == PORT_DATA {
            socket.write_all(&id.to_le_bytes()).unwrap();
            _ = socket.write_all(&bytes);
            return;
        }
        // The connection for data is accepted by the same thread.
        std::thread::spawn(move || {
            while let Ok(Some(frame)) = frame::read_frame(&mut socket, 10_000) {
                _ = socket.write_all(&success(frame.header.stream_id, &[]));
            }
        });
    })
}

#[test]
fn a_stream_without_an_id_is_refused() {
    let error = client(&with_stream(0, Vec::new())).kmsg(false).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn a_stream_is_read_to_its_end() {
    let vm = with_stream(1, b"content".to_vec());
    let mut content = String::new();
    let mut stream = client(&vm).read_file("/x", false).unwrap();
    stream.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
}

#[test]
fn long_lines_are_cut_and_bad_text_is_replaced() {
    let mut bytes = b"one\n\n".to_vec();
    bytes.extend([b'x'; 5000]);
    bytes.extend(b"\nbad \xff");
    let vm = with_stream(1, bytes);
    let lines: Vec<String> = client(&vm)
        .read_file("/x", false)
        .unwrap()
        .lines()
        .map(Result::unwrap)
        .collect();
    assert_eq!(lines[..2], ["one", ""]);
    assert_eq!(lines[2..lines.len() - 1].concat(), "x".repeat(5000));
    assert!(lines.iter().all(|line| line.len() <= 2049));
    assert_eq!(lines.last().unwrap(), "bad \u{fffd}");
}

#[test]
fn records_end_with_a_nul() {
    let vm = with_stream(1, b"6,1,2,-;one\n\x006,2,3,-;two\n\0".to_vec());
    let records: Vec<String> = client(&vm)
        .kmsg(false)
        .unwrap()
        .records()
        .map(Result::unwrap)
        .collect();
    assert_eq!(records, ["6,1,2,-;one\n", "6,2,3,-;two\n"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_answer_makes_a_client_panic(bytes in any::<Vec<u8>>(), framed: bool) {
        let vm = FakeVm::start(move |_, mut socket| {
            _ = frame::read_frame(&mut socket, 10_000);
            let bytes = if framed { success(1, &bytes) } else { bytes.clone() };
            _ = socket.write_all(&bytes);
        });
        _ = client(&vm).inspect("", 0);
    }
}
