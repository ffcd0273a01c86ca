//! Connections.

use super::*;
use hv_defs::hypercall::HvStatus;
use hv_defs::synic::{PostMessage, SignalEvent};

fn table() -> [Connection; 3] {
    [
        Connection::redirect_messages(1, 4),
        Connection::redirect_events(0x100, 0x1ff, 64),
        Connection {
            sender_vtl: 2,
            first: 1,
            last: 1,
            port: Port {
                id: 77,
                vtl: 0,
                vp: TargetVp::Any,
                sint: 2,
                kind: PortKind::Event {
                    base: 2040,
                    count: 16,
                },
            },
        },
    ]
}

fn message(connection_id: u32) -> PostMessage {
    let mut input = PostMessage {
        connection_id,
        rsvd: 0,
        message_type: 1,
        payload_size: 3,
        payload: [0; 240],
    };
    input.payload[..4].copy_from_slice(b"abcd");
    input
}

fn event(connection_id: u32, flag_number: u16) -> SignalEvent {
    SignalEvent {
        connection_id,
        flag_number,
        rsvd: 0,
    }
}

#[test]
fn vtl0_is_redirected_to_vtl2() {
    let table = table();
    let connections = Connections(&table);
    let input = message(3);
    let route = connections.message(0, &input).unwrap();
    assert_eq!(
        route,
        MessageRoute {
            vtl: 2,
            vp: TargetVp::Sender,
            sint: REDIRECT_SINT,
            header: (1, 3),
            payload: b"abc",
        }
    );
    let route = connections.event(0, &event(0x105, 0)).unwrap();
    assert_eq!((route.vtl, route.sint, route.flag), (2, 7, 64 + 5));
}

#[test]
fn connections_belong_to_a_vtl_and_a_kind() {
    let table = table();
    let connections = Connections(&table);
    for (vtl, id, status) in [
        (0, 0, HvStatus::INVALID_CONNECTION_ID),
        (0, 5, HvStatus::INVALID_CONNECTION_ID),
        (1, 1, HvStatus::INVALID_CONNECTION_ID),
        (0, 0x0100_0001, HvStatus::INVALID_CONNECTION_ID),
        (0, u32::MAX, HvStatus::INVALID_CONNECTION_ID),
        (0, 0x100, HvStatus::INVALID_PORT_ID),
        (2, 1, HvStatus::INVALID_PORT_ID),
    ] {
        assert_eq!(connections.message(vtl, &message(id)), Err(status));
    }
    assert_eq!(
        connections.event(0, &event(1, 0)),
        Err(HvStatus::INVALID_PORT_ID)
    );
    assert_eq!(
        connections.event(0, &event(5, 0)),
        Err(HvStatus::INVALID_CONNECTION_ID)
    );
}

#[test]
fn messages_that_mean_nothing_are_refused() {
    let table = table();
    let connections = Connections(&table);
    let good = message(1);
    for input in [
        PostMessage { rsvd: 1, ..good },
        PostMessage {
            message_type: 0,
            ..good
        },
        PostMessage {
            message_type: 1 << 31,
            ..good
        },
        PostMessage {
            payload_size: 241,
            ..good
        },
        PostMessage {
            payload_size: u32::MAX,
            ..good
        },
    ] {
        let result = connections.message(0, &input);
        assert_eq!(result, Err(HvStatus::INVALID_PARAMETER));
    }
}

#[test]
fn flags_are_those_of_the_port() {
    let table = table();
    let connections = Connections(&table);
    assert_eq!(connections.event(2, &event(1, 7)).unwrap().flag, 2047);
    let reserved = SignalEvent {
        rsvd: 1,
        ..event(1, 0)
    };
    // Above the flags of a source, above those of the port, reserved.
    for input in [event(1, 8), event(1, 16), event(1, u16::MAX), reserved] {
        let result = connections.event(2, &input);
        assert_eq!(result, Err(HvStatus::INVALID_PARAMETER));
    }
    let result = connections.event(0, &event(0x100, 1));
    assert_eq!(result, Err(HvStatus::INVALID_PARAMETER));
}
