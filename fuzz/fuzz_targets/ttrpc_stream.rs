//! What a peer sends on a control connection of the diagnostics service: any bytes, in any
//! pieces, give the same frames, none over the limit, and a request is read as protobuf's
//! reference decoder reads it.
//!
//! The first byte of the input is the size of the pieces.

#![no_main]

use diag_proto::ttrpc::Request;
use diag_proto::ttrpc::frame::Decoder;
use diag_proto::ttrpc::frame::Frame;
use diag_proto::ttrpc::frame::HEADER_SIZE;
use diag_proto::ttrpc::frame::Step;
use diag_proto::ttrpc::request::RequestRef;
use diag_proto::ttrpc::request::count_fields;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

const LIMIT: usize = 4096;

fn steps(stream: &[u8], piece: usize) -> (Vec<Step>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let mut steps = Vec::new();
    for mut input in stream.chunks(piece) {
        while let Some(step) = decoder.advance(&mut input) {
            steps.push(step);
        }
        assert!(input.is_empty(), "bytes are left over");
    }
    (steps, decoder.is_between_frames())
}

fn check_request(message: &[u8]) {
    let ours = RequestRef::parse(message);
    if ours.is_ok() {
        assert!(count_fields(message).is_ok());
    }
    // The reference also looks into the metadata, and knows groups: it refuses some and
    // accepts some that the server does not.
    if let (Ok(ours), Ok(theirs)) = (ours, Request::decode(message)) {
        assert_eq!(ours.service, theirs.service);
        assert_eq!(ours.method, theirs.method);
        assert_eq!(ours.payload, theirs.payload);
        assert_eq!(ours.timeout_nano, theirs.timeout_nano);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else {
        return;
    };
    let (whole, ends_well) = steps(stream, stream.len().max(1));
    assert_eq!(
        steps(stream, usize::from(*piece).max(1)),
        (whole.clone(), ends_well)
    );
    let mut bytes = 0;
    for step in &whole {
        match step {
            Step::Begin(header) => assert!(header.length as usize <= LIMIT),
            Step::TooLong(header) => assert!(header.length as usize > LIMIT),
            Step::Frame(Frame { header, message }) => {
                assert_eq!(header.length as usize, message.len());
                bytes += HEADER_SIZE + message.len();
                check_request(message);
            }
        }
    }
    assert!(bytes <= stream.len(), "frames are made of nothing");
    check_request(stream);
});
