use super::super::Request;
use super::*;
use proptest::prelude::*;

const LIMIT: usize = 1000;

fn request_frame(stream_id: u32, payload: usize) -> Vec<u8> {
    let request = Request {
        service: "service".into(),
        method: "Method".into(),
        payload: vec![7; payload],
        ..Default::default()
    };
    encode_request(stream_id, &request).expect("short")
}

/// All steps of `stream`, given to the decoder in pieces.
fn decode(stream: &[u8], piece: usize, limit: usize) -> (Vec<Step>, bool) {
    let mut decoder = Decoder::new(limit);
    let mut steps = Vec::new();
    for mut input in stream.chunks(piece) {
        while let Some(step) = decoder.advance(&mut input) {
            steps.push(step);
        }
        assert!(input.is_empty(), "nothing is left over");
    }
    (steps, decoder.is_between_frames())
}

#[test]
fn header_has_the_layout_of_ttrpc() {
    let header = Header {
        length: 0x0102_0304,
        stream_id: 0x0506_0708,
        kind: Kind::REQUEST,
        flags: FLAG_REMOTE_OPEN,
    };
    assert_eq!(header.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]);
    assert_eq!(Header::from_bytes(header.to_bytes()), header);
}

#[test]
fn success_without_payload_still_names_the_field() {
    let bytes = encode_success(3, &[], LIMIT).expect("short");
    assert_eq!(bytes, [0, 0, 0, 2, 0, 0, 0, 3, 2, 0, 0x12, 0]);
}

#[test]
fn success_and_failure_are_responses() {
    let bytes = encode_success(5, &[9; 300], LIMIT).expect("short");
    let response = Response::decode(&bytes[HEADER_SIZE..]).expect("a response");
    assert_eq!((response.status, response.payload), (None, vec![9; 300]));

    let status = Status {
        code: 12,
        message: "no".into(),
    };
    let bytes = encode_failure(5, status.clone()).expect("short");
    let response = Response::decode(&bytes[HEADER_SIZE..]).expect("a response");
    assert_eq!((response.status, response.payload), (Some(status), vec![]));
}

#[test]
fn response_over_the_limit_is_refused() {
    let error = encode_success(1, &[0; LIMIT], LIMIT).expect_err("too long");
    assert_eq!(error.limit, LIMIT);
    assert_eq!(error.length, LIMIT + 3);
}

#[test]
fn frame_over_the_limit_is_passed_over_and_the_next_one_is_read() {
    let long = request_frame(1, 2 * LIMIT);
    let next = request_frame(3, 10);
    let stream = [long.as_slice(), next.as_slice()].concat();
    let (steps, between) = decode(&stream, 7, LIMIT);
    assert!(matches!(steps[0], Step::TooLong(header) if header.stream_id == 1));
    assert!(matches!(steps[1], Step::Begin(header) if header.stream_id == 3));
    assert!(matches!(&steps[2], Step::Frame(frame) if frame.header.stream_id == 3));
    assert_eq!((steps.len(), between), (3, true));
}

#[test]
fn truncated_frame_is_not_between_frames() {
    let stream = request_frame(1, 10);
    for end in 1..stream.len() {
        let (steps, between) = decode(&stream[..end], 4, LIMIT);
        assert!(steps.len() <= 1 && !between, "{end} bytes");
    }
}

#[test]
fn memory_follows_what_has_arrived() {
    let mut decoder = Decoder::new(MAX_MESSAGE);
    let header = Header {
        length: MAX_MESSAGE as u32,
        stream_id: 1,
        kind: Kind::REQUEST,
        flags: 0,
    };
    decoder.advance(&mut header.to_bytes().as_slice());
    decoder.advance(&mut [0; 100].as_slice());
    let State::Message { message, .. } = &decoder.state else {
        panic!("a message is expected");
    };
    assert!(message.capacity() <= FIRST_ALLOCATION);
}

#[test]
fn blocking_reader_reads_frames_to_the_end() {
    let stream = [request_frame(1, 5), request_frame(3, 6)].concat();
    let mut source = stream.as_slice();
    let ids: Vec<u32> = std::iter::from_fn(|| read_frame(&mut source, LIMIT).expect("well-formed"))
        .map(|frame| frame.header.stream_id)
        .collect();
    assert_eq!(ids, [1, 3]);
}

#[test]
fn blocking_reader_tells_truncated_from_too_long() {
    let stream = request_frame(1, 20);
    for end in 1..stream.len() {
        let error = read_frame(&mut &stream[..end], LIMIT).expect_err("truncated");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
    let error = read_frame(&mut stream.as_slice(), 10).expect_err("too long");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same_steps(
        stream in proptest::collection::vec(any::<u8>(), 0..300),
        piece in 1_usize..50,
    ) {
        let whole = decode(&stream, stream.len().max(1), LIMIT);
        prop_assert_eq!(decode(&stream, piece, LIMIT), whole);
    }

    #[test]
    fn frames_come_out_as_they_went_in(
        payloads in proptest::collection::vec(0_usize..700, 0..10),
        piece in 1_usize..2000,
    ) {
        let frames: Vec<Vec<u8>> = payloads.iter().enumerate()
            .map(|(index, payload)| request_frame(2 * index as u32 + 1, *payload))
            .collect();
        let (steps, between) = decode(&frames.concat(), piece, LIMIT);
        prop_assert!(between);
        let out: Vec<Vec<u8>> = steps.iter()
            .filter_map(|step| match step {
                Step::Frame(frame) => {
                    Some([frame.header.to_bytes().as_slice(), &frame.message].concat())
                }
                _ => None,
            })
            .collect();
        prop_assert_eq!(out, frames);
    }
}
