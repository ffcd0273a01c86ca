//! The client of the `ttrpc` crate, which knows nothing of this project, as a peer.

mod common;

use common::Server;
use common::text_node;
use diag_proto::diag;
use diag_proto::diag::OPENHCL_DIAG;
use diag_proto::diag::UNDERHILL_DIAG;
use diag_proto::inspect;
use diag_proto::inspect::INSPECT_SERVICE;
use prost::Message;
use ttrpc::Client;
use ttrpc::Error;
use ttrpc::proto::Code;
use ttrpc::proto::Request;

fn connect(server: &Server) -> Client {
    let address = format!("unix://{}", server.control_path().display());
    Client::connect(&address).expect("the server listens")
}

fn request(service: &str, method: &str, payload: &impl Message) -> Request {
    let mut request = Request::new();
    request.set_service(service.into());
    request.set_method(method.into());
    request.set_payload(payload.encode_to_vec());
    request
}

/// The code of an error that the server has sent.
fn code(result: Result<ttrpc::Response, Error>) -> Code {
    match result {
        Err(Error::RpcStatus(status)) => status.code(),
        other => panic!("expected a status, got {other:?}"),
    }
}

#[test]
fn ping_and_inspection_are_answered() {
    let server = Server::new();
    let client = connect(&server);
    let response = client.request(request(OPENHCL_DIAG, "Ping", &diag::Empty {}));
    assert_eq!(response.expect("an answer").payload, []);

    let question = inspect::InspectRequest {
        path: "vm".into(),
        depth: 1,
    };
    let response = client.request(request(INSPECT_SERVICE, "Inspect", &question));
    let payload = response.expect("an answer").payload;
    let response = inspect::InspectResponse::decode(payload.as_slice()).expect("a tree");
    assert_eq!(response.result, Some(text_node("vm Everything")));
}

#[test]
fn errors_arrive_as_statuses() {
    let server = Server::new();
    let client = connect(&server);
    let empty = diag::Empty {};
    for (service, method) in [("no.Service", "Ping"), (OPENHCL_DIAG, "Nonsense")] {
        let result = client.request(request(service, method, &empty));
        assert_eq!(code(result), Code::UNIMPLEMENTED);
    }
    let result = client.request(request(UNDERHILL_DIAG, "Pause", &empty));
    assert_eq!(code(result), Code::FAILED_PRECONDITION);
    let mut hang = request(UNDERHILL_DIAG, "Wait", &diag::WaitRequest { pid: -1 });
    // The client gives up by itself, too; the server answers long before.
    hang.timeout_nano = 30_000_000_000;
    assert_eq!(code(client.request(hang)), Code::NOT_FOUND);
}

#[test]
fn message_of_the_greatest_length_that_this_client_sends_is_accepted() {
    let server = Server::new();
    let client = connect(&server);
    let mut large = request(OPENHCL_DIAG, "Ping", &diag::Empty {});
    large.set_payload(vec![0; (4 << 20) - 64]);
    client.request(large).expect("an answer");
}

#[test]
fn requests_of_many_threads_share_a_connection() {
    let server = Server::new();
    let client = connect(&server);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for index in 0..50 {
                    let path = format!("{thread}/{index}");
                    let question = inspect::InspectRequest {
                        path: path.clone(),
                        depth: 1,
                    };
                    let request = request(INSPECT_SERVICE, "Inspect", &question);
                    let payload = client.request(request).expect("an answer").payload;
                    let response = inspect::InspectResponse::decode(payload.as_slice());
                    let expected = text_node(format!("{path} Everything"));
                    assert_eq!(response.expect("a tree").result, Some(expected));
                }
            });
        }
    });
}

#[test]
fn program_is_started_and_waited_for() {
    let server = Server::new();
    let client = connect(&server);
    let exec = common::shell("exit 7");
    let payload = client
        .request(request(UNDERHILL_DIAG, "Exec", &exec))
        .expect("it starts")
        .payload;
    let pid = diag::ExecResponse::decode(payload.as_slice())
        .expect("an answer")
        .pid;
    let payload = client
        .request(request(UNDERHILL_DIAG, "Wait", &diag::WaitRequest { pid }))
        .expect("it ends")
        .payload;
    let response = diag::WaitResponse::decode(payload.as_slice()).expect("an answer");
    assert_eq!(response.exit_code, 7);
}
