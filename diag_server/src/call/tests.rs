use super::*;
use diag_proto::ttrpc::Request;
use proptest::prelude::*;
use prost::Message as _;

fn parse(request: &Request) -> Result<(Call, Timeout), Status> {
    let limits = Limits::default();
    Call::parse(&request.encode_to_vec(), Exposure::Everything, &limits)
}

fn exec(args: usize) -> Request {
    let payload = diag::ExecRequest {
        command: "x".into(),
        args: vec![String::new(); args],
        ..Default::default()
    };
    Request {
        service: diag::UNDERHILL_DIAG.into(),
        method: "Exec".into(),
        payload: payload.encode_to_vec(),
        ..Default::default()
    }
}

#[test]
fn timeout_is_none_only_if_it_is_zero() {
    let mut request = exec(0);
    for (nanoseconds, timeout) in [
        (0, None),
        (5, Some(Duration::from_nanos(5))),
        (-5, Some(Duration::ZERO)),
        (i64::MAX, Some(Duration::from_nanos(i64::MAX as u64))),
    ] {
        request.timeout_nano = nanoseconds;
        assert_eq!(parse(&request).expect("well-formed").1, timeout);
    }
}

#[test]
fn payload_that_would_take_much_memory_is_refused_before_it_is_decoded() {
    let most = Limits::default().payload_fields;
    // One field is the command.
    assert!(parse(&exec(most - 1)).is_ok());
    let status = parse(&exec(most)).expect_err("too many");
    assert_eq!(status.code, crate::Code::ResourceExhausted);
}

#[test]
fn error_does_not_repeat_a_long_name() {
    let mut request = exec(0);
    request.service = "x".repeat(1 << 20);
    let status = parse(&request).expect_err("unknown");
    assert!(status.message.len() < 2 * SHOWN, "{}", status.message.len());
}

proptest! {
    #[test]
    fn any_payload_is_decoded_or_refused(
        method in prop::sample::select(vec![
            "Exec", "Wait", "Start", "Crash", "Kmsg", "ReadFile", "Ping", "Inspect", "Update",
        ]),
        service in prop::sample::select(vec![
            diag::UNDERHILL_DIAG, diag::OPENHCL_DIAG, inspect::INSPECT_SERVICE,
        ]),
        payload in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload,
            ..Default::default()
        };
        let _ = parse(&request);
    }
}
