//! Services, methods, statuses, deadlines: what a well-behaved client sees.

mod common;

use common::Server;
use common::read_all;
use common::text_node;
use diag_proto::diag;
use diag_proto::diag::Empty;
use diag_proto::diag::OPENHCL_DIAG;
use diag_proto::diag::UNDERHILL_DIAG;
use diag_proto::inspect;
use diag_proto::inspect::INSPECT_SERVICE;
use diag_proto::openhcl;
use diag_proto::ttrpc::Code;
use diag_server::Exposure;
use diag_server::Options;
use prost::Message as _;

#[test]
fn ping_is_answered() {
    let server = Server::new();
    let mut client = server.connect();
    client.ping();
    client.ping();
    assert_eq!(server.stats.succeeded.get(), 2);
}

#[test]
fn unknown_service_and_method_are_unimplemented() {
    let server = Server::new();
    let mut client = server.connect();
    for (service, method) in [
        ("no.Service", "Ping"),
        ("", ""),
        (OPENHCL_DIAG, "Nonsense"),
        (OPENHCL_DIAG, "MemoryProfileTrace"),
        (UNDERHILL_DIAG, "Ping"),
        (UNDERHILL_DIAG, "PacketCapture"),
        (INSPECT_SERVICE, "Nonsense"),
        (openhcl::OPENHCL_CONTROL, "Nonsense"),
    ] {
        let (code, _) = client
            .call_raw(service, method, vec![])
            .expect_err("unknown");
        assert_eq!(code, Code::Unimplemented, "{service}/{method}");
    }
    client.ping();
}

#[test]
fn methods_of_the_paravisor_reach_its_handler() {
    let server = Server::new();
    let mut client = server.connect();
    let start = diag::StartRequest {
        env: vec![diag::EnvPair {
            name: "A".into(),
            value: None,
        }],
        args: vec!["-x".into()],
    };
    client.diag::<Empty>("Start", &start).expect("it starts");
    client
        .diag::<Empty>("Crash", &diag::CrashRequest { pid: 7 })
        .expect("it crashes");
    let state: diag::DumpSavedStateResponse = client
        .diag("DumpSavedState", &Empty {})
        .expect("it has state");
    assert_eq!(state.data, [1, 2, 3]);
    let update = inspect::UpdateRequest {
        path: "a/b".into(),
        value: "5".into(),
    };
    client
        .call::<inspect::UpdateResponse>(INSPECT_SERVICE, "Update", &update)
        .expect("it can be changed");
    assert_eq!(
        server.handler.calls(),
        [
            r#"start ["-x"] [EnvPair { name: "A", value: None }]"#,
            "crash 7",
            "update a/b=5"
        ]
    );
}

#[test]
fn status_of_the_handler_reaches_the_client() {
    let server = Server::new();
    let mut client = server.connect();
    let error = client.diag::<Empty>("Pause", &Empty {});
    let message = "there is no VM".to_string();
    assert_eq!(error, Err((Code::FailedPrecondition, message)));
    // It has no method for this one.
    let (code, _) = client.diag::<Empty>("Resume", &Empty {}).expect_err("none");
    assert_eq!(code, Code::Unimplemented);
}

#[test]
fn inspection_returns_the_tree() {
    let server = Server::new();
    let mut client = server.connect();
    assert_eq!(client.inspect("vm/vp"), Ok(text_node("vm/vp Everything")));
}

#[test]
fn answer_over_the_limit_is_an_error() {
    let server = Server::new();
    let mut client = server.connect();
    let (code, message) = client.inspect("too large").expect_err("5 MiB");
    assert_eq!(code, Code::ResourceExhausted);
    assert!(message.contains("expected at most 4194304"), "{message}");
    client.ping();
}

#[test]
fn requests_of_a_connection_run_at_once() {
    let server = Server::new();
    let mut client = server.connect();
    let waits = client.send(UNDERHILL_DIAG, "Restart", &Empty {});
    // Answered although the one before is not.
    let id = client.send(OPENHCL_DIAG, "Ping", &Empty {});
    assert_eq!(client.response(), Some((id, Ok(vec![]))));
    server.handler.release.notify_one();
    assert_eq!(client.response(), Some((waits, Ok(vec![]))));
}

#[test]
fn deadline_ends_a_request() {
    let server = Server::new();
    let mut client = server.connect();
    for timeout in [1_000_000, -1] {
        client.send_with(UNDERHILL_DIAG, "Restart", vec![], timeout);
        let (_, outcome) = client.response().expect("an answer");
        let (code, _) = outcome.expect_err("nobody releases it");
        assert_eq!(code, Code::DeadlineExceeded);
    }
    let calls = server.handler.calls();
    assert_eq!(calls.first().map(String::as_str), Some("restart begins"));
    assert_eq!(calls.last().map(String::as_str), Some("restart ends"));
    client.ping();
}

#[test]
fn inspection_at_its_deadline_gives_what_there_is() {
    let server = Server::new();
    let mut client = server.connect();
    let request = inspect::InspectRequest {
        path: "partial".into(),
        depth: 3,
    };
    client.send_with(
        INSPECT_SERVICE,
        "Inspect",
        request.encode_to_vec(),
        1_000_000,
    );
    let (_, outcome) = client.response().expect("an answer");
    let response = inspect::InspectResponse::decode(outcome.expect("a tree").as_slice());
    assert_eq!(
        response.expect("a response").result,
        Some(text_node("partial"))
    );
}

#[test]
fn inspection_that_ignores_its_deadline_is_ended() {
    let server = Server::with_limits(|limits| limits.inspect_grace = std::time::Duration::ZERO);
    let mut client = server.connect();
    let request = inspect::InspectRequest {
        path: "hang".into(),
        depth: 3,
    };
    client.send_with(
        INSPECT_SERVICE,
        "Inspect",
        request.encode_to_vec(),
        1_000_000,
    );
    let (_, outcome) = client.response().expect("an answer");
    let (code, _) = outcome.expect_err("it hangs");
    assert_eq!(code, Code::DeadlineExceeded);
}

#[test]
fn request_ends_with_its_connection() {
    let server = Server::with_limits(|limits| limits.half_closed = std::time::Duration::ZERO);
    let mut client = server.connect();
    client.send(UNDERHILL_DIAG, "Restart", &Empty {});
    common::eventually("the request begins", || !server.handler.calls().is_empty());
    drop(client);
    common::eventually("the request is dropped", || {
        server.handler.calls() == ["restart begins", "restart ends"]
    });
}

#[test]
fn power_off_is_answered_before_the_server_ends() {
    let server = Server::new();
    let mut client = server.connect();
    let waiting = client.send(UNDERHILL_DIAG, "Restart", &Empty {});
    let id = client.send(openhcl::OPENHCL_CONTROL, openhcl::POWER_OFF, &Empty {});
    assert_eq!(client.response(), Some((id, Ok(vec![]))));
    // The other one is given up.
    assert_ne!(waiting, id);
    assert_eq!(client.response(), None);
    drop(client);
    server.wait_for_end();
}

#[test]
fn a_cpu_comes_online_and_the_answer_says_why() {
    let server = Server::new();
    let mut client = server.connect();
    for (cpu, reason) in [(0, None), (3, Some("request".to_owned()))] {
        let request = openhcl::OnlineCpuRequest { cpu };
        let id = client.send(openhcl::OPENHCL_CONTROL, openhcl::ONLINE_CPU, &request);
        let answer = openhcl::OnlineCpuResponse { reason };
        assert_eq!(client.response(), Some((id, Ok(answer.encode_to_vec()))));
    }
    assert_eq!(server.handler.calls(), ["online 0", "online 3"]);
}

#[test]
fn a_client_that_sends_no_more_does_not_hold_up_the_end() {
    let server = Server::with_limits(|limits| {
        limits.half_closed = std::time::Duration::from_secs(3600);
    });
    let mut client = server.connect();
    client.send(UNDERHILL_DIAG, "Restart", &Empty {});
    common::eventually("the request begins", || !server.handler.calls().is_empty());
    client
        .stream
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    let mut other = server.connect();
    let id = other.send(openhcl::OPENHCL_CONTROL, openhcl::POWER_OFF, &Empty {});
    assert_eq!(other.response(), Some((id, Ok(vec![]))));
    drop(other);
    server.wait_for_end();
}

#[test]
fn isolated_vm_shows_safe_values_and_nothing_else() {
    let server = Server::with(Options {
        exposure: Exposure::SafeInspect,
        ..Options::default()
    });
    let mut client = server.connect();
    for (service, method) in [
        (OPENHCL_DIAG, "Ping"),
        (UNDERHILL_DIAG, "Exec"),
        (openhcl::OPENHCL_CONTROL, openhcl::POWER_OFF),
    ] {
        let (code, _) = client
            .call_raw(service, method, vec![])
            .expect_err("absent");
        assert_eq!(code, Code::Unimplemented, "{service}/{method}");
    }
    assert_eq!(client.inspect("a"), Ok(text_node("a Safe")));
    let tree = client.inspect("levels").expect("a directory");
    let Some(inspect::NodeKind::Dir(directory)) = tree.kind else {
        panic!("expected a directory");
    };
    let names: Vec<_> = directory.entries.iter().map(|entry| &entry.name).collect();
    assert_eq!(names, ["safe"]);

    let update = inspect::UpdateRequest::default();
    let (code, _) = client
        .call::<inspect::UpdateResponse>(INSPECT_SERVICE, "Update", &update)
        .expect_err("forbidden");
    assert_eq!(code, Code::PermissionDenied);
    assert!(
        server
            .handler
            .calls()
            .iter()
            .all(|call| call.starts_with("inspect"))
    );
}

#[test]
fn isolated_vm_takes_no_data_connections() {
    let server = Server::with(Options {
        exposure: Exposure::SafeInspect,
        ..Options::default()
    });
    // The socket is there until the server runs, so a connection may be made, and ends.
    server.connect().inspect("a").expect("the server runs");
    let path = server.directory.path().join("data");
    if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(path) {
        assert_eq!(read_all(&mut stream), []);
    }
}
