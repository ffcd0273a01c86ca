//! Packets of mesh from another process, with descriptors: any bytes give messages or an
//! error that ends the channel.
//!
//! The first byte says who reads: the receiver of a channel, a caller that waits for an
//! answer, or a callee that hears news from its caller. The second says which descriptors
//! come along. The rest is the packet, or the body of one: a fuzzer does not guess
//! lengths.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::Bytes;
use mesh::Fd;
use mesh::OneshotReceiver;
use mesh::Receiver;
use mesh::Rpc;
use mesh::Sender;
use mesh::wire::Header;
use mesh::wire::INLINE_MAX;
use mesh::wire::Kind;
use rustix::fs::MemfdFlags;
use rustix::fs::SealFlags;
use rustix::net::AddressFamily;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

#[derive(Serialize, Deserialize)]
enum Request {
    Text(Option<String>),
    Map(BTreeMap<u16, (i64, f32, char)>),
    Bytes(Vec<Bytes>),
    Fds(Vec<Fd>),
    Tree(Box<Tree>),
    Sender(Sender<Box<Request>>),
    Receiver(Receiver<Box<Request>>),
    Oneshot(OneshotReceiver<u32>),
    Call(Rpc<Box<Request>, u32>),
    Calls(Vec<Rpc<u8, u32>>),
}

#[derive(Serialize, Deserialize)]
struct Tree(Vec<Tree>);

fuzz_target!(|data: &[u8]| {
    let [reader, descriptors, framed, body @ ..] = data else {
        return;
    };
    let descriptors = make_descriptors(*descriptors);
    let kind = match reader % 3 {
        0 => Kind::Message,
        1 => Kind::Reply,
        _ => Kind::Cancel,
    };
    let packet = if framed % 4 == 0 {
        body.to_vec()
    } else {
        frame(kind, descriptors.len(), framed % 4 == 1, body)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match kind {
            Kind::Message => to_receiver(&packet, &descriptors),
            Kind::Reply => to_caller(&packet, &descriptors).await,
            Kind::Cancel => to_callee(&packet, &descriptors).await,
        }
    });
});

fn to_receiver(packet: &[u8], descriptors: &[OwnedFd]) {
    let (own, theirs) = pair();
    let mut receiver = Receiver::<Request>::from_socket(theirs).expect("a socket");
    write(&own, packet, descriptors);
    drop(own);
    while let Ok(Some(request)) = receiver.try_recv() {
        match request {
            Request::Call(rpc) => rpc.complete(1),
            Request::Receiver(mut receiver) => while let Ok(Some(_)) = receiver.try_recv() {},
            _ => {}
        }
    }
}

async fn to_caller(packet: &[u8], descriptors: &[OwnedFd]) {
    let (own, theirs) = pair();
    let sender = Sender::<Rpc<u8, Request>>::from_socket(theirs).expect("a socket");
    let call = tokio::spawn(async move { sender.call(|rpc| rpc, 1).await });
    tokio::task::yield_now().await;
    let back = read_descriptor(&own);
    write(&back, packet, descriptors);
    drop((own, back));
    // Any end, but an end.
    let _ = call.await.expect("no panic");
}

async fn to_callee(packet: &[u8], descriptors: &[OwnedFd]) {
    let (own, theirs) = pair();
    let mut receiver = Receiver::<Rpc<u8, u8>>::from_socket(theirs).expect("a socket");
    let (news, back) = pair();
    // Connection 1 through descriptor 0, call 1, no deadline, input 0.
    let call = frame(Kind::Message, 1, false, &[0, 1, 1, 0, 1, 0, 0]);
    write(&own, &call, &[back]);
    let rpc = receiver.recv().await.expect("a call");
    write(&news, packet, descriptors);
    drop(news);
    rpc.context().cancelled().await;
}

/// A packet whose header fits its body.
fn frame(kind: Kind, descriptors: usize, large: bool, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let mut length = body.len();
    if large {
        body.resize(INLINE_MAX, 0);
        length = INLINE_MAX + MEMORY;
    }
    let header = Header {
        kind,
        large,
        descriptors,
        length,
    };
    let mut packet = header.to_bytes().to_vec();
    packet.extend(body);
    packet
}

const MEMORY: usize = 64;

/// Two bits each: none, a file, a socket, sealed memory.
fn make_descriptors(mut choice: u8) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    while choice != 0 {
        match choice % 4 {
            0 => {}
            1 => descriptors.push(std::fs::File::open("/dev/null").expect("a file").into()),
            2 => descriptors.push(pair().0),
            _ => descriptors.push(sealed_memory()),
        }
        choice /= 4;
    }
    descriptors
}

fn sealed_memory() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("fuzz", flags).expect("memory");
    rustix::fs::ftruncate(&memory, MEMORY as u64).expect("a size");
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).expect("seals");
    memory
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("sockets")
}

fn write(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) {
    let borrowed: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    // Too large for the socket is no news for the reader.
    let flags = SendFlags::NOSIGNAL;
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags);
}

/// The descriptor that comes with a call.
fn read_descriptor(socket: &OwnedFd) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("a call");
    let descriptor = control.drain().find_map(|item| match item {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    descriptor.expect("a way back")
}
