//! Trees that come from elsewhere: from another process of VTL2 (postcard) and from a VM
//! (protobuf). What is decoded can be printed harmlessly, survives both encodings, and is
//! cut to the limits of a query when a part of the tree is deferred.
//!
//! The first byte of the input chooses the encoding.

#![no_main]

use diag_proto::inspect as wire;
use inspect::Limits;
use inspect::Node;
use inspect::Query;
use inspect::adhoc;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use std::future::Future as _;
use std::future::ready;
use std::pin::pin;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

const LIMITS: Limits = Limits {
    nodes: 10,
    bytes: 100,
};

fn count(node: &Node) -> usize {
    node.entries()
        .iter()
        .map(|entry| 1 + count(&entry.node))
        .sum()
}

fn over_the_wire(node: Node) -> Node {
    let encoded = wire::Node::from(node).encode_to_vec();
    let decoded = wire::Node::decode(encoded.as_slice()).expect("not too deep");
    decoded.into()
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let node = if choice & 1 == 0 {
        postcard::from_bytes(bytes).ok()
    } else {
        wire::Node::decode(bytes).ok().map(Node::from)
    };
    let Some(node) = node else { return };

    let text = node.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");

    // Compared as text: a number that is not one equals nothing.
    let encoded = postcard::to_stdvec(&node).expect("a tree is encoded");
    let decoded: Node = postcard::from_bytes(&encoded).expect("and decoded");
    assert_eq!(decoded.to_string(), text);
    // The first time may lose the sign of a zero, which protobuf does not encode.
    let once = over_the_wire(decoded);
    assert_eq!(over_the_wire(once.clone()).to_string(), once.to_string());

    let root = adhoc(|request| {
        let node = node.clone();
        request.defer(|_| ready(node));
    });
    let answer = pin!(Query::new("").limits(LIMITS).answer(&root));
    let Poll::Ready(cut) = answer.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the answer is there");
    };
    // Each directory may have one entry more, which says that it was cut.
    assert!(count(&cut) <= 2 * LIMITS.nodes as usize + 32, "{cut}");
});
