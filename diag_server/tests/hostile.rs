//! Peers that do not keep to the protocol, or ask for too much.

mod common;

use common::Client;
use common::Server;
use common::eventually;
use common::read_all;
use common::shell;
use diag_proto::diag::Empty;
use diag_proto::diag::FileRequest;
use diag_proto::diag::OPENHCL_DIAG;
use diag_proto::diag::UNDERHILL_DIAG;
use diag_proto::inspect::INSPECT_SERVICE;
use diag_proto::inspect::InspectRequest;
use diag_proto::ttrpc::Code;
use diag_proto::ttrpc::Request;
use diag_proto::ttrpc::frame::FLAG_NO_DATA;
use diag_proto::ttrpc::frame::FLAG_REMOTE_CLOSED;
use diag_proto::ttrpc::frame::FLAG_REMOTE_OPEN;
use diag_proto::ttrpc::frame::Header;
use diag_proto::ttrpc::frame::Kind;
use diag_proto::ttrpc::frame::encode_request;
use prost::Message as _;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn ping() -> Vec<u8> {
    Request {
        service: OPENHCL_DIAG.into(),
        method: "Ping".into(),
        ..Default::default()
    }
    .encode_to_vec()
}

/// The error that the next answer is, and its stream id.
fn error(client: &mut Client) -> (u32, Code) {
    let (id, outcome) = client.response().expect("an answer");
    (id, outcome.expect_err("an error").0)
}

#[test]
fn truncated_header_or_message_ends_that_connection_only() {
    let server = Server::new();
    let mut other = server.connect();
    let frame = encode_request(
        1,
        &Request {
            service: OPENHCL_DIAG.into(),
            ..Default::default()
        },
    )
    .expect("short");
    let cuts = [1, 9, 10, 11, frame.len() - 1];
    for end in cuts {
        let mut client = server.connect();
        client.stream.write_all(&frame[..end]).expect("a socket");
        client.stream.shutdown(Shutdown::Write).expect("a socket");
        assert_eq!(client.response(), None, "{end} bytes");
        other.ping();
    }
    assert_eq!(server.stats.truncated_messages.get(), cuts.len() as u64);
}

#[test]
fn four_mebibytes_are_accepted_and_more_is_answered_with_an_error() {
    let server = Server::new();
    let mut client = server.connect();
    let with = |length: usize| {
        let mut request = Request {
            service: OPENHCL_DIAG.into(),
            method: "Ping".into(),
            payload: vec![0; length],
            ..Default::default()
        };
        let over = request.encoded_len() - length;
        request.payload.truncate(length - over);
        assert_eq!(request.encoded_len(), length);
        request.encode_to_vec()
    };
    client.send_frame(1, Kind::REQUEST, 0, &with(4 * MIB));
    assert_eq!(client.response(), Some((1, Ok(vec![]))));
    for (id, length) in [(3, 4 * MIB + 1), (5, 16 * MIB - 1), (7, 20 * MIB)] {
        client.send_frame(id, Kind::REQUEST, 0, &with(length));
        assert_eq!(error(&mut client), (id, Code::ResourceExhausted));
    }
    client.send_frame(9, Kind::REQUEST, 0, &ping());
    assert_eq!(client.response(), Some((9, Ok(vec![]))));
    assert_eq!(server.stats.oversized_messages.get(), 3);
    assert!(server.stats.request_bytes.most() <= 4 * MIB as u64 + 2048);
}

#[test]
fn oversized_message_is_answered_before_it_has_arrived() {
    let server = Server::new();
    let mut client = server.connect();
    let header = Header {
        length: u32::MAX,
        stream_id: 1,
        kind: Kind::REQUEST,
        flags: 0,
    };
    client
        .stream
        .write_all(&header.to_bytes())
        .expect("a socket");
    assert_eq!(error(&mut client), (1, Code::ResourceExhausted));
}

#[test]
fn unknown_kinds_are_ignored_and_data_is_refused() {
    let server = Server::new();
    let mut client = server.connect();
    for kind in [0, 2, 4, 0x7f, 0xff] {
        client.send_frame(1, Kind(kind), 0xff, b"whatever");
    }
    client.send_frame(1, Kind::DATA, FLAG_REMOTE_CLOSED, b"data");
    assert_eq!(error(&mut client), (1, Code::InvalidArgument));
    client.send_frame(1, Kind::REQUEST, 0, &ping());
    assert_eq!(client.response(), Some((1, Ok(vec![]))));
    assert_eq!(server.stats.ignored_frames.get(), 5);
}

#[test]
fn streams_of_messages_are_refused_and_other_flags_do_not_matter() {
    let server = Server::new();
    let mut client = server.connect();
    client.send_frame(1, Kind::REQUEST, FLAG_REMOTE_OPEN, &ping());
    assert_eq!(error(&mut client), (1, Code::Unimplemented));
    for (id, flags) in [(3, FLAG_REMOTE_CLOSED), (5, FLAG_NO_DATA), (7, 0xf8)] {
        client.send_frame(id, Kind::REQUEST, flags, &ping());
        assert_eq!(client.response(), Some((id, Ok(vec![]))));
    }
}

#[test]
fn stream_ids_must_be_odd_and_grow() {
    let server = Server::new();
    let mut client = server.connect();
    for id in [0, 2, u32::MAX - 1] {
        client.send_frame(id, Kind::REQUEST, 0, &ping());
        assert_eq!(error(&mut client), (id, Code::InvalidArgument));
    }
    client.send_frame(5, Kind::REQUEST, 0, &ping());
    assert_eq!(client.response(), Some((5, Ok(vec![]))));
    for id in [5, 3] {
        client.send_frame(id, Kind::REQUEST, 0, &ping());
        assert_eq!(error(&mut client), (id, Code::InvalidArgument));
    }
    client.send_frame(u32::MAX, Kind::REQUEST, 0, &ping());
    assert_eq!(client.response(), Some((u32::MAX, Ok(vec![]))));
}

#[test]
fn garbage_for_a_request_is_an_error() {
    let server = Server::new();
    let mut client = server.connect();
    let garbage: [&[u8]; 4] = [&[0xff; 40], b"GET / HTTP/1.1\r\n\r\n", &[0x0a, 0x7f], &[0]];
    for (id, message) in (1..).step_by(2).zip(garbage) {
        client.send_frame(id, Kind::REQUEST, 0, message);
        assert_eq!(error(&mut client), (id, Code::InvalidArgument));
    }
    let empty = 101;
    client.send_frame(empty, Kind::REQUEST, 0, &[]);
    assert_eq!(error(&mut client), (empty, Code::Unimplemented));
}

#[test]
fn payload_of_many_small_fields_is_refused() {
    let server = Server::new();
    let mut client = server.connect();
    // Each pair of bytes would become an argument, or a variable, of two dozen.
    for key in [0x12, 0x42] {
        let payload = [key, 0].repeat(2 * MIB - 100);
        let answer = client.call_raw(UNDERHILL_DIAG, "Exec", payload);
        assert_eq!(answer.expect_err("too many").0, Code::ResourceExhausted);
    }
    // Metadata are passed over.
    let message = [ping(), [0x2a, 0].repeat(2 * MIB - 100)].concat();
    client.send_frame(1001, Kind::REQUEST, 0, &message);
    assert_eq!(client.response(), Some((1001, Ok(vec![]))));
}

#[test]
fn long_path_is_refused() {
    let server = Server::new();
    let mut client = server.connect();
    let (code, _) = client.inspect(&"a/".repeat(10_000)).expect_err("too long");
    assert_eq!(code, Code::ResourceExhausted);
}

#[test]
fn ten_thousand_requests_in_a_row_are_all_answered() {
    const COUNT: usize = 10_000;
    let server = Server::new();
    let mut client = server.connect();
    let frames: Vec<u8> = (0..COUNT)
        .flat_map(|index| {
            let message = ping();
            let header = Header {
                length: message.len() as u32,
                stream_id: 2 * index as u32 + 1,
                kind: Kind::REQUEST,
                flags: 0,
            };
            [header.to_bytes().as_slice(), &message].concat()
        })
        .collect();
    let mut writer = client.stream.try_clone().expect("a socket");
    let writer = std::thread::spawn(move || {
        writer.write_all(&frames).expect("the server reads");
        writer.shutdown(Shutdown::Write).expect("a socket");
    });
    let mut ids: Vec<u32> = std::iter::from_fn(|| client.response())
        .map(|(id, outcome)| {
            assert_eq!(outcome, Ok(vec![]));
            id
        })
        .collect();
    writer.join().expect("all is written");
    ids.sort_unstable();
    assert!(
        ids.into_iter()
            .eq((0..COUNT as u32).map(|index| 2 * index + 1))
    );
    assert!(server.stats.requests.most() <= 32);
}

#[test]
fn two_hundred_connections_at_once_are_served() {
    let server = Server::new();
    let mut clients: Vec<Client> = (0..200).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ping();
    }
    assert_eq!(server.stats.control_connections.get(), 200);
    assert_eq!(server.stats.control_connections_refused.get(), 0);
    for client in clients.iter_mut().rev() {
        client.ping();
    }
    drop(clients);
    eventually("all are forgotten", || {
        server.stats.control_connections.get() == 0
    });
}

#[test]
fn connections_over_the_limit_are_closed_and_there_is_room_again() {
    let server = Server::with_limits(|limits| limits.control_connections = 3);
    let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ping();
    }
    let mut refused = server.connect();
    assert_eq!(refused.response(), None);
    for client in &mut clients {
        client.ping();
    }
    clients.pop();
    eventually("one has left", || {
        server.stats.control_connections.get() == 2
    });
    server.connect().ping();
}

/// Writes requests until the server takes no more, and returns how many it was.
fn flood(client: &mut Client, method: &str, payload: &[u8]) -> u32 {
    client.stream.set_nonblocking(true).expect("a socket");
    let mut count = 0;
    loop {
        let request = Request {
            service: if method == "Inspect" {
                INSPECT_SERVICE
            } else {
                UNDERHILL_DIAG
            }
            .into(),
            method: method.into(),
            payload: payload.to_vec(),
            ..Default::default()
        };
        let frame = encode_request(2 * count + 1, &request).expect("short");
        // Part of a frame may be left over: this client says nothing more.
        match client.stream.write(&frame) {
            Ok(written) if written == frame.len() => count += 1,
            _ => return count,
        }
    }
}

#[test]
fn peer_that_never_reads_holds_one_large_answer_and_nobody_else_up() {
    let server = Server::new();
    let request = InspectRequest {
        path: "large".into(),
        depth: 1,
    };
    let payload = request.encode_to_vec();
    let mut flooders = [server.connect(), server.connect(), server.connect()];
    for flooder in &mut flooders {
        // More than may run at once: the rest is in the socket.
        assert!(flood(flooder, "Inspect", &payload) > 32);
    }
    let mut client = server.connect();
    client.ping();
    client.inspect("small").expect("it has a permit");
    let inspections = server.handler.calls().len();
    assert!(inspections <= 3 + 1, "{inspections} were carried out");
    assert!(server.stats.requests.most() <= 3 * 32 + 1);
    assert!(server.stats.request_bytes.most() <= (3 * 33 + 2) * 1024);
}

#[test]
fn peer_that_never_reads_is_closed_in_the_end() {
    let server = Server::with_limits(|limits| limits.transfer = Duration::from_millis(1));
    let mut client = server.connect();
    let request = InspectRequest {
        path: "large".into(),
        depth: 1,
    };
    flood(&mut client, "Inspect", &request.encode_to_vec());
    eventually("it is closed", || {
        server.stats.stalled_connections.get() == 1 && server.stats.control_connections.get() == 0
    });
}

#[test]
fn request_that_never_arrives_is_not_waited_for() {
    let server = Server::with_limits(|limits| limits.transfer = Duration::from_millis(1));
    let mut client = server.connect();
    let header = Header {
        length: 4 * MIB as u32,
        stream_id: 1,
        kind: Kind::REQUEST,
        flags: 0,
    };
    client
        .stream
        .write_all(&header.to_bytes())
        .expect("a socket");
    assert_eq!(client.response(), None);
    assert_eq!(server.stats.stalled_connections.get(), 1);
    assert_eq!(server.stats.request_bytes.get(), 0);
}

#[test]
fn large_requests_share_a_bounded_memory() {
    let server = Server::with_limits(|limits| limits.request_bytes = 9 * MIB);
    let header = Header {
        length: 4 * MIB as u32,
        stream_id: 1,
        kind: Kind::REQUEST,
        flags: 0,
    };
    // Two have room, the others must wait for it.
    let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        client
            .stream
            .write_all(&header.to_bytes())
            .expect("a socket");
    }
    eventually("two have room", || {
        server.stats.request_bytes.get() == 8 * MIB as u64
    });
    // Who wants little does not wait for them.
    server.connect().ping();
    // All get it in time.
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || {
                client
                    .stream
                    .write_all(&vec![0xff; 4 * MIB])
                    .expect("a socket");
                assert_eq!(error(client), (1, Code::InvalidArgument));
            });
        }
    });
    assert!(server.stats.request_bytes.most() <= 8 * MIB as u64 + 1024);
}

#[test]
fn waits_for_ever_stop_only_their_own_connection() {
    let server = Server::new();
    let mut client = server.connect();
    let pid = client.exec(&shell("sleep 1000")).expect("it starts");
    let mut flooder = server.connect();
    let wait = diag_proto::diag::WaitRequest { pid };
    assert!(flood(&mut flooder, "Wait", &wait.encode_to_vec()) > 32);
    client.ping();
    eventually("its requests wait", || server.stats.requests.get() == 32);
    drop(flooder);
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status();
    assert!(status.expect("kill runs").success());
    assert_eq!(client.wait(pid), Ok(137));
}

#[test]
fn half_closed_connection_gets_its_answers() {
    let server = Server::new();
    let mut client = server.connect();
    client.send_frame(1, Kind::REQUEST, 0, &ping());
    client.send_frame(3, Kind::REQUEST, 0, &ping());
    client.stream.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(client.response(), Some((1, Ok(vec![]))));
    assert_eq!(client.response(), Some((3, Ok(vec![]))));
    assert_eq!(client.response(), None);
}

#[test]
fn peer_that_only_writes_is_harmless() {
    let server = Server::new();
    let mut client = server.connect();
    client.stream.shutdown(Shutdown::Read).expect("a socket");
    for id in [1, 3, 5] {
        let header = Header {
            length: 0,
            stream_id: id,
            kind: Kind::REQUEST,
            flags: 0,
        };
        // It is closed some time.
        let _ = client.stream.write_all(&header.to_bytes());
    }
    server.connect().ping();
}

#[test]
fn data_connections_have_ids_from_one_on() {
    let server = Server::new();
    let connections = [server.data(), server.data(), server.data()];
    assert_eq!(connections.map(|(id, _)| id), [1, 2, 3]);
}

#[test]
fn data_connection_serves_once() {
    let server = Server::new();
    let mut client = server.connect();
    let (conn, mut stream) = server.data();
    let request = FileRequest {
        follow: false,
        conn,
        file_path: "/proc/self/comm".into(),
    };
    client
        .diag::<Empty>("ReadFile", &request)
        .expect("it serves");
    let (code, _) = client
        .diag::<Empty>("ReadFile", &request)
        .expect_err("used");
    assert_eq!(code, Code::NotFound);
    assert!(!read_all(&mut stream).is_empty());
    for conn in [0, 77, u64::MAX] {
        let request = FileRequest {
            conn,
            ..request.clone()
        };
        let (code, _) = client
            .diag::<Empty>("ReadFile", &request)
            .expect_err("none");
        assert_eq!(code, Code::NotFound, "{conn}");
    }
    // Not for two streams of one process, either.
    let (id, mut stream) = server.data();
    let request = diag_proto::diag::ExecRequest {
        stdin: id,
        stdout: id,
        ..shell("true")
    };
    assert_eq!(client.exec(&request).expect_err("twice").0, Code::NotFound);
    assert_eq!(read_all(&mut stream), []);
}

#[test]
fn hang_up_drops_the_id() {
    let server = Server::new();
    let mut client = server.connect();
    let (conn, stream) = server.data();
    drop(stream);
    eventually("it is dropped", || server.stats.data_connections.get() == 0);
    let request = FileRequest {
        follow: false,
        conn,
        file_path: "/proc/self/comm".into(),
    };
    let (code, _) = client
        .diag::<Empty>("ReadFile", &request)
        .expect_err("gone");
    assert_eq!(code, Code::NotFound);
}

#[test]
fn data_connections_that_nobody_names_give_way() {
    let server = Server::with_limits(|limits| limits.data_connections = 3);
    let mut client = server.connect();
    let mut connections: Vec<_> = (0..10).map(|_| server.data()).collect();
    assert_eq!(server.stats.data_connections_evicted.get(), 7);
    assert_eq!(server.stats.data_connections.get(), 3);
    for (_, stream) in &mut connections[..7] {
        assert_eq!(read_all(stream), [], "the oldest ones are closed");
    }
    // Those in use stay, and then there is room for no other.
    let busy: Vec<_> = connections[7..]
        .iter_mut()
        .map(|(conn, stream)| {
            let request = FileRequest {
                follow: true,
                conn: *conn,
                file_path: "/proc/self/comm".into(),
            };
            client
                .diag::<Empty>("ReadFile", &request)
                .expect("it is there");
            let mut first = [0; 1];
            stream.read_exact(&mut first).expect("its content");
        })
        .collect();
    assert_eq!(busy.len(), 3);
    assert_eq!(read_all(&mut server.data_unread()), []);
    assert_eq!(server.stats.data_connections_refused.get(), 1);
    drop(connections);
    eventually("there is room", || server.stats.data_connections.get() == 0);
    server.data();
}
