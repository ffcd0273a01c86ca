//! A VM that a test plays: a Unix socket with the handshake of a hybrid vsock, and a
//! function behind it.

use diag_client::VmAddress;
use diag_proto::ttrpc;
use diag_proto::ttrpc::frame;
use prost::Message;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::thread;
use tempfile::TempDir;

/// The played VM. Its threads end with the test's process.
pub(crate) struct FakeVm {
    pub(crate) address: VmAddress,
    _directory: TempDir,
}

impl FakeVm {
    /// Every connection is given to `serve`, which gets it as it comes.
    pub(crate) fn raw(serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                serve(socket.unwrap());
            }
        });
        Self {
            address: VmAddress::HybridVsock(path),
            _directory: directory,
        }
    }

    /// Every connection is given to `serve` after the handshake, with its port.
    pub(crate) fn start(serve: impl Fn(u32, UnixStream) + Send + Sync + 'static) -> Self {
        Self::raw(move |mut socket| {
            let line = first_line(&socket);
            let port = line.strip_prefix("CONNECT ").unwrap().trim().parse();
            socket.write_all(b"OK 1073741824\n").unwrap();
            serve(port.unwrap(), socket);
        })
    }

    /// Each request on a control connection is answered with the bytes that `answer` makes
    /// of its stream id and itself.
    pub(crate) fn answering(
        answer: impl Fn(u32, ttrpc::Request) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |_, mut socket| {
            while let Ok(Some(frame)) = frame::read_frame(&mut socket, frame::MAX_MESSAGE) {
                let request = ttrpc::Request::decode(frame.message.as_slice()).unwrap();
                let bytes = answer(frame.header.stream_id, request);
                if socket.write_all(&bytes).is_err() || bytes.is_empty() {
                    return;
                }
            }
        })
    }

    /// Each request is answered with this payload.
    pub(crate) fn with_payload(payload: Vec<u8>) -> Self {
        Self::answering(move |stream, _| success(stream, &payload))
    }
}

/// What a client says first. Nothing is read beyond it: the client waits for the answer.
pub(crate) fn first_line(socket: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    line
}

/// A frame with a response.
pub(crate) fn success(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame::encode_success(stream, payload, frame::MAX_MESSAGE).unwrap()
}
