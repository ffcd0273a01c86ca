//! Senders that do not keep to the rules: each ends its own channel with an error that
//! says what was wrong, and nothing else.

use super::run;
use crate::Bytes;
use crate::Fd;
use crate::OneshotSender;
use crate::Receiver;
use crate::RecvError;
use crate::Rpc;
use crate::Sender;
use crate::channel;
use crate::socket;
use crate::wire::DESCRIPTORS_MAX;
use crate::wire::HEADER_LEN;
use crate::wire::Header;
use crate::wire::INLINE_MAX;
use crate::wire::Kind;
use crate::wire::MESSAGE_MAX;
use crate::wire::PACKET_MAX;
use crate::wire::WireError;
use proptest::prelude::*;
use rustix::fs::MemfdFlags;
use rustix::fs::SealFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

/// A message with a bit of everything.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Text(String),
    Bytes(Bytes),
    Fd(Fd),
    Fds(Vec<Fd>),
    Sender(Sender<u32>),
    Receiver(Receiver<Rpc<u32, u32>>),
    Oneshot(OneshotSender<Option<BTreeMap<u8, String>>>),
    Call(Rpc<u32, u32>),
    Tree(Tree),
}

#[derive(Debug, Serialize, Deserialize)]
struct Tree(Option<Box<Tree>>);

pub(super) fn raw_pair<T: crate::Message>() -> (OwnedFd, Receiver<T>) {
    let (sending, receiving) = socket::pair().expect("sockets");
    let receiver = Receiver::from_socket(receiving).expect("a socket");
    (sending, receiver)
}

pub(super) fn header(kind: Kind, descriptors: usize, length: usize) -> Header {
    Header {
        kind,
        large: false,
        descriptors,
        length,
    }
}

/// Writes a packet as it is.
pub(super) fn write(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) {
    let borrowed: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

pub(super) fn packet(header: Header, body: &[u8]) -> Vec<u8> {
    let mut packet = header.to_bytes().to_vec();
    packet.extend_from_slice(body);
    packet
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| std::fs::File::open("/dev/null").expect("a file").into())
        .collect()
}

/// What the receiver says to one packet.
fn refusal(bytes: &[u8], descriptors: &[OwnedFd]) -> WireError {
    let (socket, mut receiver) = raw_pair::<Request>();
    // A good one before it, so that all else is in order.
    let good = postcard::to_stdvec(&Request::Text("good".into())).expect("an encoding");
    write(
        &socket,
        &packet(header(Kind::Message, 0, good.len()), &good),
        &[],
    );
    write(&socket, bytes, descriptors);
    assert!(matches!(receiver.try_recv(), Ok(Some(Request::Text(_)))));
    let error = match receiver.try_recv() {
        Err(RecvError::Wire(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(receiver.try_recv(), Err(RecvError::Closed)));
    error
}

fn refusal_of_header(change: impl FnOnce(&mut [u8])) -> WireError {
    let mut bytes = packet(header(Kind::Message, 0, 2), &[0, 0]);
    change(&mut bytes);
    refusal(&bytes, &[])
}

fn refusal_of_body(body: &[u8], descriptors: &[OwnedFd]) -> WireError {
    let header = header(Kind::Message, descriptors.len(), body.len());
    refusal(&packet(header, body), descriptors)
}

#[test]
fn truncated_packets_are_refused() {
    let whole = packet(header(Kind::Message, 0, 2), &[0, 0]);
    for length in 1..HEADER_LEN {
        assert_eq!(refusal(&whole[..length], &[]), WireError::Short { length });
    }
    for body in 0..2 {
        let error = refusal(&whole[..HEADER_LEN + body], &[]);
        assert_eq!(error, WireError::Length { length: 2, body });
    }
}

#[test]
fn wrong_headers_are_refused() {
    let magic = 0x4d49;
    assert_eq!(
        refusal_of_header(|bytes| bytes[0] += 1),
        WireError::Magic { magic }
    );
    assert_eq!(
        refusal_of_header(|bytes| bytes[2] = 9),
        WireError::Version { version: 9 }
    );
    assert_eq!(
        refusal_of_header(|bytes| bytes[4] = 77),
        WireError::Kind { kind: 77 }
    );
    for kind in [Kind::Reply, Kind::Cancel] {
        let kind = kind as u8;
        assert_eq!(
            refusal_of_header(|bytes| bytes[4] = kind),
            WireError::Kind { kind }
        );
    }
    assert_eq!(
        refusal_of_header(|bytes| bytes[5] = 2),
        WireError::Flags { flags: 2 }
    );
    assert_eq!(
        refusal_of_header(|bytes| bytes[8] = 3),
        WireError::Length { length: 3, body: 2 }
    );
    assert!(matches!(
        refusal_of_header(|bytes| bytes[8..].fill(0xff)),
        WireError::TooLarge { .. } | WireError::Length { .. }
    ));
}

#[test]
fn a_packet_larger_than_any_is_refused() {
    let bytes = packet(header(Kind::Message, 0, INLINE_MAX), &vec![0; PACKET_MAX]);
    assert_eq!(refusal(&bytes, &[]), WireError::LongPacket);
}

#[test]
fn wrong_numbers_of_descriptors_are_refused() {
    let text = postcard::to_stdvec(&Request::Text("x".into())).expect("an encoding");
    let claims_one = packet(header(Kind::Message, 1, text.len()), &text);
    assert_eq!(
        refusal(&claims_one, &[]),
        WireError::Descriptors {
            expected: 1,
            received: 0
        }
    );
    assert_eq!(
        refusal(&claims_one, &descriptors(2)),
        WireError::Descriptors {
            expected: 1,
            received: 2
        }
    );
    assert_eq!(
        refusal_of_body(&text, &descriptors(DESCRIPTORS_MAX)),
        WireError::ExtraDescriptors {
            count: DESCRIPTORS_MAX
        }
    );
    // Request::Fd(0), without one; Request::Fds([0, 0]) with one.
    assert_eq!(
        refusal_of_body(&[2, 0], &[]),
        WireError::MissingDescriptor { index: 0 }
    );
    assert_eq!(
        refusal_of_body(&[3, 2, 0, 0], &descriptors(1)),
        WireError::MissingDescriptor { index: 0 }
    );
}

#[test]
fn descriptors_that_are_no_channels_are_refused() {
    let stream = std::os::unix::net::UnixStream::pair().expect("sockets");
    for fd in [descriptors(1).remove(0), stream.0.into()] {
        assert_eq!(
            refusal_of_body(&[4, 0], &[fd]),
            WireError::NotASocket { index: 0 }
        );
    }
}

#[test]
fn wrong_bodies_are_refused() {
    for body in [
        &[99][..],
        &[],
        &[0, 5, b'x'],
        &[0, 1, 0xff],
        &[1, 255, 255, 255, 255, 15],
    ] {
        let error = refusal_of_body(body, &[]);
        assert!(matches!(error, WireError::Body { .. }), "{error}");
    }
    let mut text = postcard::to_stdvec(&Request::Text("x".into())).expect("an encoding");
    text.extend([1, 2, 3]);
    assert_eq!(
        refusal_of_body(&text, &[]),
        WireError::Trailing { count: 3 }
    );
}

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    let mut body = vec![8];
    body.resize(MESSAGE_MAX / 512, 1);
    assert_eq!(refusal_of_body(&body, &[]), WireError::TooDeep);
    // What is allowed fits on the stack of a test.
    let (socket, mut receiver) = raw_pair::<Request>();
    let mut body = vec![8];
    body.resize(60, 1);
    body.push(0);
    write(
        &socket,
        &packet(header(Kind::Message, 0, body.len()), &body),
        &[],
    );
    assert!(matches!(receiver.try_recv(), Ok(Some(Request::Tree(_)))));
}

fn memory(size: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("test", flags).expect("memory");
    rustix::fs::ftruncate(&memory, size).expect("a size");
    rustix::fs::fcntl_add_seals(&memory, seals).expect("seals");
    memory
}

fn refusal_of_large(length: usize, descriptors: &[OwnedFd]) -> WireError {
    let header = Header {
        large: true,
        ..header(Kind::Message, descriptors.len(), length)
    };
    refusal(&packet(header, &[0; INLINE_MAX]), descriptors)
}

#[test]
fn memory_that_can_change_is_refused() {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    for missing in all.iter() {
        let memory = memory(100, all - missing);
        let error = refusal_of_large(INLINE_MAX + 100, &[memory]);
        let reason = "a seal is missing";
        assert_eq!(error, WireError::NotSealed { reason }, "{missing:?}");
    }
    let reason = "not a memfd";
    let error = refusal_of_large(INLINE_MAX + 100, &descriptors(1));
    assert_eq!(error, WireError::NotSealed { reason });
}

#[test]
fn memory_of_a_wrong_size_is_refused() {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    for size in [0, 99, 101, 1 << 40] {
        assert_eq!(
            refusal_of_large(INLINE_MAX + 100, &[memory(size, all)]),
            WireError::MemorySize {
                size,
                expected: 100
            }
        );
    }
    let length = MESSAGE_MAX + 1;
    let error = refusal_of_large(length, &[memory(1 << 40, all)]);
    let max = MESSAGE_MAX;
    assert_eq!(error, WireError::TooLarge { length, max });
    // Large ones that are not, and ones without memory.
    let length = INLINE_MAX;
    let error = refusal_of_large(length, &[memory(0, all)]);
    assert!(matches!(error, WireError::Length { .. }), "{error}");
    let error = refusal_of_large(INLINE_MAX + 1, &[]);
    assert_eq!(
        error,
        WireError::Descriptors {
            expected: 1,
            received: 0
        }
    );
}

#[test]
fn an_empty_packet_only_closes_the_channel() {
    let (socket, mut receiver) = raw_pair::<Request>();
    write(&socket, &[], &[]);
    assert!(matches!(receiver.try_recv(), Err(RecvError::Closed)));
}

#[test]
fn other_channels_live_on() {
    run(async {
        let (other, mut other_receiver) = channel::<Request>();
        let other = super::travel(other);
        let (socket, mut receiver) = raw_pair::<Request>();
        write(&socket, b"garbage of some length", &[]);
        assert!(matches!(receiver.recv().await, Err(RecvError::Wire(_))));
        other.send(Request::Text("x".into())).await.expect("sent");
        let message = other_receiver.recv().await.expect("a message");
        assert!(matches!(message, Request::Text(_)));
    });
}

#[test]
fn a_receiver_dropped_by_a_broken_message_is_harmless() {
    // Request::Receiver with one caller, and something that does not belong there.
    let sockets: Vec<_> = (0..2).map(|_| socket::pair().expect("sockets")).collect();
    let (theirs, _own): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    let body = [5, 0, 1, 9, 1, 0, 0xff];
    let error = refusal_of_body(&body, &theirs);
    assert_eq!(error, WireError::Trailing { count: 1 });
}

#[test]
fn a_receiver_with_too_many_messages_is_refused() {
    let (theirs, _own) = socket::pair().expect("sockets");
    let mut body = vec![5, 0, 0];
    // A million messages, each without bytes and descriptors.
    body.extend([0xc0, 0x84, 0x3d]);
    body.resize(body.len() + 3_000_000, 0);
    let (sender, receiver) = socket::pair().expect("sockets");
    let mut receiver = Receiver::<Request>::from_socket(receiver).expect("a socket");
    let mut bytes = vec![0; HEADER_LEN];
    bytes.extend(body);
    let packet = socket::Packet::new(Kind::Message, bytes, vec![theirs]).expect("a packet");
    socket::send(sender.as_fd(), &packet).expect("sent");
    let max = crate::CAPACITY_MAX;
    match receiver.try_recv() {
        Err(RecvError::Wire(error)) => assert_eq!(error, WireError::LongList { max }),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_receiver_may_set_a_lower_limit() {
    for remote_sender in [false, true] {
        let (sender, mut receiver) = channel::<Request>();
        receiver.set_message_limit(1000);
        if remote_sender {
            let sender = super::travel(sender);
            sender
                .try_send(Request::Text("x".repeat(900)))
                .expect("sent");
            assert!(receiver.try_recv().is_ok());
            sender
                .try_send(Request::Text("x".repeat(1000)))
                .expect("sent");
            let max = 1000;
            match receiver.try_recv() {
                Err(RecvError::Wire(error)) => {
                    assert_eq!(error, WireError::TooLarge { length: 1003, max });
                }
                other => panic!("{other:?}"),
            }
        } else {
            // Nothing is encoded, so nothing has a size.
            sender
                .try_send(Request::Text("x".repeat(2000)))
                .expect("sent");
            assert!(receiver.try_recv().is_ok());
        }
    }
}

proptest! {
    #[test]
    fn headers_are_read_as_they_were_written(
        kind in prop_oneof![Just(Kind::Message), Just(Kind::Reply), Just(Kind::Cancel)],
        descriptors in 0..=DESCRIPTORS_MAX,
        length in 0..=INLINE_MAX,
    ) {
        let header = header(kind, descriptors, length);
        let bytes = packet(header, &vec![0; length]);
        let (parsed, body) = Header::parse(&bytes, descriptors).expect("a header");
        prop_assert_eq!(parsed, header);
        prop_assert_eq!(body.len(), length);
    }

    #[test]
    fn no_packet_takes_the_receiver_down(
        body in proptest::collection::vec(any::<u8>(), 1..200),
        files in 0_usize..4,
        sockets in 0_usize..4,
        with_header: bool,
    ) {
        run(async move {
            let (socket, mut receiver) = raw_pair::<Request>();
            let mut fds = descriptors(files);
            for _ in 0..sockets {
                fds.push(socket::pair().expect("sockets").0);
            }
            let bytes = if with_header {
                packet(header(Kind::Message, fds.len(), body.len()), &body)
            } else {
                body
            };
            write(&socket, &bytes, &fds);
            drop(socket);
            // Whatever it is, the end comes.
            while receiver.recv().await.is_ok() {}
        });
    }
}
