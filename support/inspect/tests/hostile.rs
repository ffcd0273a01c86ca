//! Decoding what a hostile peer sends.

use inspect::Entry;
use inspect::Error;
use inspect::Format;
use inspect::MAX_LEVELS;
use inspect::Node;
use inspect::Query;
use inspect::Radix;
use inspect::Sensitivity;
use inspect::Unit;
use inspect::Value;
use inspect::ValueKind;
use proptest::prelude::*;

fn any_value() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        any::<i64>().prop_map(ValueKind::Signed),
        any::<u64>().prop_map(ValueKind::Unsigned),
        (-1e6f32..1e6).prop_map(ValueKind::Float),
        (-1e6..1e6).prop_map(ValueKind::Double),
        any::<bool>().prop_map(ValueKind::Bool),
        any::<String>().prop_map(ValueKind::String),
        any::<Vec<u8>>().prop_map(ValueKind::Bytes),
    ];
    let radix = prop_oneof![Just(Radix::Decimal), Just(Radix::Hex), Just(Radix::Binary)];
    let unit = proptest::sample::select(&Unit::ALL[..]);
    (kind, radix, any::<bool>(), unit).prop_map(|(kind, radix, counter, unit)| Value {
        kind,
        format: Format {
            radix,
            counter,
            unit,
        },
    })
}

fn any_error() -> impl Strategy<Value = Error> {
    prop_oneof![
        Just(Error::Unresolved),
        any::<String>().prop_map(Error::Unreachable),
        Just(Error::Immutable),
        any::<String>().prop_map(Error::Refused),
        Just(Error::NotADirectory),
        Just(Error::NotFound),
        Just(Error::Internal),
        Just(Error::Truncated),
    ]
}

fn any_node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        Just(Node::Unevaluated),
        any_error().prop_map(Node::Failed),
        any_value().prop_map(Node::Value),
    ];
    let sensitivity = prop_oneof![
        Just(Sensitivity::Safe),
        Just(Sensitivity::Unspecified),
        Just(Sensitivity::Sensitive)
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        let entry =
            (any::<String>(), inner, sensitivity.clone()).prop_map(|(name, node, sensitivity)| {
                Entry {
                    name,
                    node,
                    sensitivity,
                }
            });
        proptest::collection::vec(entry, 0..8).prop_map(Node::Dir)
    })
}

/// A directory in a directory, so many times, around a value.
fn nested(levels: u32) -> Node {
    (0..levels).fold(Node::Value(Value::from(1u32)), |node, _| {
        Node::Dir(vec![Entry {
            name: "x".into(),
            node,
            sensitivity: Sensitivity::Safe,
        }])
    })
}

proptest! {
    #[test]
    fn nodes_survive_serde(node in any_node()) {
        let bytes = postcard::to_stdvec(&node).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Node>(&bytes).unwrap(), node);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        _ = postcard::from_bytes::<Node>(&bytes);
        _ = postcard::from_bytes::<Query>(&bytes);
    }

    #[test]
    fn damaged_nodes_never_panic(node in any_node(), at: usize, byte: u8) {
        let mut bytes = postcard::to_stdvec(&node).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        _ = postcard::from_bytes::<Node>(&bytes);
        _ = postcard::from_bytes::<Node>(&bytes[..at]);
    }
}

#[test]
fn the_deepest_tree_is_decoded_and_a_deeper_one_refused() {
    let deepest = nested(MAX_LEVELS + 1);
    let bytes = postcard::to_stdvec(&deepest).unwrap();
    assert_eq!(postcard::from_bytes::<Node>(&bytes).unwrap(), deepest);
    let bytes = postcard::to_stdvec(&nested(MAX_LEVELS + 2)).unwrap();
    assert!(postcard::from_bytes::<Node>(&bytes).is_err());
}

#[test]
fn a_tree_deeper_than_any_stack_is_refused() {
    let item = ("", Sensitivity::Safe, Item::Dir(1));
    let bytes = postcard::to_stdvec(&vec![item; 1_000_000]).unwrap();
    assert!(postcard::from_bytes::<Node>(&bytes).is_err());
}

/// The shape of a directory in the encoded list.
#[derive(Clone, serde::Serialize)]
#[expect(dead_code, reason = "positions count")]
enum Item {
    Unevaluated,
    Failed,
    Value,
    Dir(u32),
}

#[test]
fn a_tree_of_more_nodes_than_anybody_asks_for_is_refused() {
    let flat = |entries: u32| {
        let root = ("", Sensitivity::Safe, Item::Dir(entries));
        let entries = (0..entries).map(|_| ("", Sensitivity::Safe, Item::Unevaluated));
        let list: Vec<_> = std::iter::once(root).chain(entries).collect();
        postcard::from_bytes::<Node>(&postcard::to_stdvec(&list).unwrap())
    };
    assert_eq!(flat(65_535).unwrap().entries().len(), 65_535);
    assert!(flat(65_536).is_err());
}

#[test]
fn a_claimed_number_of_entries_reserves_nothing() {
    let item = vec![("", Sensitivity::Safe, Item::Dir(u32::MAX))];
    let bytes = postcard::to_stdvec(&item).unwrap();
    assert!(postcard::from_bytes::<Node>(&bytes).is_err());
}

#[cfg(feature = "proto")]
mod proto {
    use super::*;
    use diag_proto::inspect as wire;
    use prost::Message;

    proptest! {
        #[test]
        fn nodes_survive_the_wire(node in any_node()) {
            let bytes = wire::Node::from(node.clone()).encode_to_vec();
            let decoded = wire::Node::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(Node::from(decoded), node);
        }

        #[test]
        fn arbitrary_messages_never_panic(bytes: Vec<u8>) {
            if let Ok(node) = wire::Node::decode(bytes.as_slice()) {
                _ = Node::from(node).to_string();
            }
        }
    }

    #[test]
    fn the_deepest_tree_is_below_the_decoders_limit() {
        let response = |levels| wire::InspectResponse {
            result: Some(nested(levels).into()),
        };
        let bytes = response(MAX_LEVELS + 1).encode_to_vec();
        let decoded = wire::InspectResponse::decode(bytes.as_slice()).unwrap();
        let node = Node::from(decoded.result.unwrap());
        assert_eq!(node, nested(MAX_LEVELS + 1));
        let bytes = response(40).encode_to_vec();
        assert!(wire::InspectResponse::decode(bytes.as_slice()).is_err());
    }

    #[test]
    fn a_deeper_message_is_cut() {
        let node = Node::from(wire::Node::from(nested(200)));
        assert!(node.to_string().contains("truncated"));
    }

    #[test]
    fn empty_messages_are_errors() {
        assert_eq!(
            Node::from(wire::Node::default()),
            Node::Failed(Error::Internal)
        );
        let value = wire::Value::default();
        assert_eq!(Value::try_from(value), Err(Error::Internal));
    }

    #[test]
    fn unknown_flags_mean_nothing() {
        let value = wire::Value {
            kind: Some(wire::ValueKindMessage {
                kind: Some(wire::ValueKind::Unsigned(1)),
            }),
            flags: Some(wire::ValueFlags { bits: u64::MAX }),
        };
        let value = Value::try_from(value).unwrap();
        assert_eq!(value.to_string(), "0x1");
    }
}
