use super::super::KeyValue;
use super::super::Request;
use super::*;
use proptest::prelude::*;
use prost::Message as _;

fn agrees_with_prost(message: &[u8]) {
    let Ok(ours) = RequestRef::parse(message) else {
        return;
    };
    // prost also looks into the metadata, which is passed over here.
    if let Ok(theirs) = Request::decode(message) {
        assert_eq!(
            (ours.service, ours.method, ours.payload, ours.timeout_nano),
            (
                theirs.service.as_str(),
                theirs.method.as_str(),
                theirs.payload.as_slice(),
                theirs.timeout_nano
            )
        );
    }
}

#[test]
fn request_is_read_in_place() {
    let request = Request {
        service: "diag.OpenhclDiag".into(),
        method: "Ping".into(),
        payload: vec![1, 2, 3],
        timeout_nano: -5,
        metadata: vec![KeyValue {
            key: "a".into(),
            value: "b".into(),
        }],
    };
    let bytes = request.encode_to_vec();
    let parsed = RequestRef::parse(&bytes).expect("a request");
    assert_eq!(parsed.service, "diag.OpenhclDiag");
    assert_eq!(parsed.method, "Ping");
    assert_eq!(parsed.payload, [1, 2, 3]);
    assert_eq!(parsed.timeout_nano, -5);
    assert_eq!(count_fields(&bytes), Ok(5));
}

#[test]
fn nothing_is_the_empty_request() {
    assert_eq!(RequestRef::parse(&[]), Ok(RequestRef::default()));
}

#[test]
fn malformed_messages_are_named() {
    for (bytes, error) in [
        (&[0x80][..], Malformed::Varint),
        (&[0xff; 11][..], Malformed::Varint),
        (&[0x00][..], Malformed::FieldNumber),
        (&[0x0b][..], Malformed::WireType { wire_type: 3 }),
        (
            &[0x0a, 5, b'x'][..],
            Malformed::Length { length: 5, left: 1 },
        ),
        (&[0x08, 1][..], Malformed::Encoding { field: 1 }),
        (&[0x18, 1][..], Malformed::Encoding { field: 3 }),
        (&[0x22, 0][..], Malformed::Encoding { field: 4 }),
        (&[0x0a, 1, 0xff][..], Malformed::Text { field: 1 }),
    ] {
        assert_eq!(RequestRef::parse(bytes), Err(error), "{bytes:x?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_as_prost_reads_them(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        agrees_with_prost(&bytes);
        let _ = count_fields(&bytes);
    }

    #[test]
    fn what_prost_accepts_is_accepted(
        service in ".*", method in ".*",
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        timeout_nano: i64,
    ) {
        let request = Request { service, method, payload, timeout_nano, metadata: vec![] };
        let bytes = request.encode_to_vec();
        prop_assert!(RequestRef::parse(&bytes).is_ok());
        agrees_with_prost(&bytes);
    }
}
