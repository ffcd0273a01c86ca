//! Callers and callees that do not keep to the rules.

use super::hostile::header;
use super::hostile::packet;
use super::hostile::raw_pair;
use super::hostile::write;
use super::run;
use super::travel;
use crate::Bytes;
use crate::CALLS_MAX;
use crate::RecvError;
use crate::Rpc;
use crate::RpcError;
use crate::Sender;
use crate::channel;
use crate::connection::CONNECTIONS_MAX;
use crate::socket;
use crate::wire::Kind;
use crate::wire::MESSAGE_MAX;
use crate::wire::WireError;
use serde::Serialize;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

/// A call as a caller writes it.
#[derive(Serialize)]
enum Address {
    Connection {
        connection: u64,
        link: Option<u32>,
        id: u64,
    },
}

fn call_packet(connection: u64, link: bool, id: u64) -> Vec<u8> {
    let link = link.then_some(0);
    let always = 0_u8;
    let call = (
        Address::Connection {
            connection,
            link,
            id,
        },
        always,
        7_u32,
    );
    let body = postcard::to_stdvec(&call).expect("an encoding");
    let descriptors = usize::from(link.is_some());
    packet(header(Kind::Message, descriptors, body.len()), &body)
}

fn way_back() -> (OwnedFd, OwnedFd) {
    socket::pair().expect("sockets")
}

/// Id and status of the next answer.
fn answer(socket: &OwnedFd) -> Option<(u64, u8)> {
    socket::receive(socket.as_fd(), MESSAGE_MAX, |reply| {
        assert_eq!(reply.kind, Kind::Reply);
        let (id, rest) = reply.body.split_first_chunk().expect("an id");
        (u64::from_le_bytes(*id), rest[0])
    })
    .ok()
}

#[test]
fn a_call_without_way_back_is_refused() {
    let (socket, mut receiver) = raw_pair::<Rpc<u32, u32>>();
    write(&socket, &call_packet(5, false, 1), &[]);
    match receiver.try_recv() {
        Err(RecvError::Wire(error)) => {
            assert_eq!(error, WireError::UnknownConnection { connection: 5 });
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn too_many_connections_are_refused() {
    run(async {
        let (socket, mut receiver) = raw_pair::<Rpc<u32, u32>>();
        let mut kept = Vec::new();
        let max = CONNECTIONS_MAX;
        for connection in 0..=max as u64 {
            let (own, theirs) = way_back();
            kept.push(own);
            write(&socket, &call_packet(connection, true, 1), &[theirs]);
            match receiver.recv().await {
                Ok(_) if connection < max as u64 => {}
                Err(RecvError::Wire(error)) => {
                    assert_eq!(error, WireError::TooManyConnections { max });
                    assert_eq!(connection, max as u64);
                }
                other => panic!("{connection}: {other:?}"),
            }
        }
    });
}

#[test]
fn connections_of_the_dead_make_place_for_new_ones() {
    run(async {
        let (socket, mut receiver) = raw_pair::<Rpc<u32, u32>>();
        for connection in 0..3 * CONNECTIONS_MAX as u64 {
            let (own, theirs) = way_back();
            write(&socket, &call_packet(connection, true, 1), &[theirs]);
            let rpc = receiver.recv().await.expect("a call");
            drop(own);
            // The caller's death is the end of the call.
            rpc.context().cancelled().await;
        }
    });
}

#[test]
fn a_flood_of_calls_that_nobody_answers_is_bounded() {
    run(async {
        let (socket, mut receiver) = raw_pair::<Rpc<u32, u32>>();
        let (own, theirs) = way_back();
        let mut open = Vec::new();
        write(&socket, &call_packet(1, true, 0), &[theirs]);
        open.push(receiver.recv().await.expect("a call"));
        for id in 1..CALLS_MAX as u64 {
            write(&socket, &call_packet(1, false, id), &[]);
            open.push(receiver.recv().await.expect("a call"));
        }
        for id in 0..100 {
            write(&socket, &call_packet(1, false, 10_000 + id), &[]);
            assert!(receiver.try_recv().expect("an open channel").is_none());
            let busy = 2;
            assert_eq!(answer(&own), Some((10_000 + id, busy)));
        }
        // An answer makes place for a call.
        open.pop().expect("a call").complete(1);
        write(&socket, &call_packet(1, false, 20_000), &[]);
        assert!(receiver.try_recv().expect("an open channel").is_some());
    });
}

#[test]
fn a_caller_has_a_bounded_number_of_open_calls() {
    run(async {
        let (sender, receiver) = channel::<Rpc<u32, u32>>();
        let mut receiver = travel(receiver);
        let caller = |n| {
            let sender = sender.clone();
            tokio::spawn(async move { sender.call(|rpc| rpc, n).await })
        };
        let calls: Vec<_> = (0..CALLS_MAX as u32).map(caller).collect();
        let mut open = Vec::new();
        for _ in 0..CALLS_MAX {
            open.push(receiver.recv().await.expect("a call"));
        }
        let error = caller(0).await.expect("a task").expect_err("one too many");
        assert!(matches!(error, RpcError::Send(_)), "{error}");
        drop(open);
        for call in calls {
            let result = call.await.expect("a task");
            assert!(matches!(result, Err(RpcError::Dropped)));
        }
        let again = caller(1);
        receiver.recv().await.expect("a call").complete(2);
        assert_eq!(again.await.expect("a task").expect("an answer"), 2);
    });
}

#[test]
fn a_caller_that_reads_no_answers_is_cut_off() {
    run(async {
        const SIZE: usize = 30_000;
        let (socket, mut receiver) = raw_pair::<Rpc<u32, Bytes>>();
        let (own, theirs) = way_back();
        write(&socket, &call_packet(1, true, 0), &[theirs]);
        let mut answers = 0;
        while !is_cut_off(&own) {
            let rpc = receiver.recv().await.expect("a call");
            rpc.complete(Bytes(vec![0; SIZE]));
            answers += 1;
            assert!(answers * SIZE < 20 << 20, "{answers} answers were kept");
            write(&socket, &call_packet(1, false, answers as u64), &[]);
            tokio::task::yield_now().await;
        }
        assert!(answers * SIZE > 8 << 20, "cut after {answers} answers");
        // The channel itself lives on.
        while receiver.try_recv().expect("an open channel").is_some() {}
        let (_own, theirs) = way_back();
        write(&socket, &call_packet(2, true, 0), &[theirs]);
        receiver.recv().await.expect("a call");
    });
}

fn is_cut_off(socket: &OwnedFd) -> bool {
    let mut fds = [rustix::event::PollFd::new(
        socket,
        rustix::event::PollFlags::empty(),
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&now)).expect("a poll");
    fds[0].revents().contains(rustix::event::PollFlags::HUP)
}

/// A callee that answers the first call with `reply`.
fn result_of_reply(reply: &'static [u8]) -> RpcError {
    let (result, receive) = std::sync::mpsc::channel();
    run(async move {
        let (requests, theirs) = way_back();
        let sender = Sender::<Rpc<u32, u32>>::from_socket(theirs).expect("a socket");
        let call = tokio::spawn(async move { sender.call(|rpc| rpc, 1).await });
        tokio::task::yield_now().await;
        let mut descriptors =
            socket::receive(requests.as_fd(), MESSAGE_MAX, |call| call.descriptors)
                .map_err(|error| error.to_string())
                .expect("a call");
        let back = descriptors.remove(0);
        write(&back, reply, &[]);
        let error = call.await.expect("a task").expect_err("no answer");
        result.send(error).expect("a listener");
    });
    receive.recv().expect("a result")
}

#[test]
fn answers_that_break_the_rules_end_the_calls() {
    let not_a_packet = result_of_reply(b"x");
    assert!(matches!(
        not_a_packet,
        RpcError::Wire(WireError::Short { .. })
    ));
    let wrong_kind = result_of_reply(b"HM\x01\0\x01\0\0\0\0\0\0\0");
    assert!(matches!(wrong_kind, RpcError::Wire(WireError::Kind { .. })));
    let no_id = result_of_reply(b"HM\x01\0\x02\0\0\0\x01\0\0\0z");
    assert!(matches!(no_id, RpcError::Wire(WireError::Length { .. })));
    let no_value = result_of_reply(b"HM\x01\0\x02\0\0\0\x09\0\0\0\x01\0\0\0\0\0\0\0\0");
    assert!(matches!(no_value, RpcError::Wire(WireError::Body { .. })));
    let unknown_status = result_of_reply(b"HM\x01\0\x02\0\0\0\x09\0\0\0\x01\0\0\0\0\0\0\0\x63");
    assert!(matches!(unknown_status, RpcError::Dropped));
}

#[test]
fn answers_to_calls_that_never_were_are_ignored() {
    run(async {
        let (requests, theirs) = way_back();
        let sender = Sender::<Rpc<u32, u32>>::from_socket(theirs).expect("a socket");
        let call = tokio::spawn(async move { sender.call(|rpc| rpc, 1).await });
        tokio::task::yield_now().await;
        let mut descriptors =
            socket::receive(requests.as_fd(), MESSAGE_MAX, |call| call.descriptors)
                .map_err(|error| error.to_string())
                .expect("a call");
        let back = descriptors.remove(0);
        write(
            &back,
            b"HM\x01\0\x02\0\0\0\x0a\0\0\0\x77\0\0\0\0\0\0\0\0\x05",
            &[],
        );
        write(
            &back,
            b"HM\x01\0\x02\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0\0\0\x05",
            &[],
        );
        assert_eq!(call.await.expect("a task").expect("an answer"), 5);
    });
}

#[test]
fn news_that_break_the_rules_end_the_connection() {
    run(async {
        for news in [&b"x"[..], b"HM\x01\0\x03\0\0\0\x01\0\0\0z"] {
            let (socket, mut receiver) = raw_pair::<Rpc<u32, u32>>();
            let (own, theirs) = way_back();
            write(&socket, &call_packet(1, true, 0), &[theirs]);
            let rpc = receiver.recv().await.expect("a call");
            write(&own, news, &[]);
            rpc.context().cancelled().await;
            // The channel itself lives on.
            let (_own, theirs) = way_back();
            write(&socket, &call_packet(2, true, 0), &[theirs]);
            receiver.recv().await.expect("a call");
        }
    });
}
