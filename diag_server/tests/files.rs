//! `ReadFile` and `Kmsg`.

mod common;

use common::Server;
use common::eventually;
use common::read_all;
use diag_proto::diag::Empty;
use diag_proto::diag::FileRequest;
use diag_proto::diag::KmsgRequest;
use diag_proto::ttrpc::Code;
use diag_server::Options;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn request(path: &Path, conn: u64, follow: bool) -> FileRequest {
    FileRequest {
        follow,
        conn,
        file_path: path.to_str().expect("text").into(),
    }
}

fn expect(stream: &mut impl Read, bytes: &[u8]) {
    let mut found = vec![0; bytes.len()];
    stream.read_exact(&mut found).expect("bytes in time");
    assert_eq!(found, bytes);
}

#[test]
fn file_arrives_whole_and_ends() {
    let server = Server::new();
    let mut client = server.connect();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let path = server.directory.path().join("file");
    std::fs::write(&path, &content).expect("a file");
    let (id, mut stream) = server.data();
    client
        .diag::<Empty>("ReadFile", &request(&path, id, false))
        .expect("it can be read");
    assert!(read_all(&mut stream) == content);
}

#[test]
fn half_closed_connection_still_gets_its_file() {
    let server = Server::new();
    let mut client = server.connect();
    let (id, mut stream) = server.data();
    client
        .diag::<Empty>(
            "ReadFile",
            &request(Path::new("/proc/self/comm"), id, false),
        )
        .expect("it can be read");
    stream.shutdown(Shutdown::Write).expect("a socket");
    assert!(!read_all(&mut stream).is_empty());
}

#[test]
fn file_of_the_kernel_has_no_size_and_is_read_to_its_end() {
    let server = Server::new();
    let mut client = server.connect();
    let (id, mut stream) = server.data();
    client
        .diag::<Empty>("ReadFile", &request(Path::new("/proc/meminfo"), id, false))
        .expect("it can be read");
    let text = String::from_utf8(read_all(&mut stream)).expect("text");
    assert!(text.starts_with("MemTotal:") && text.ends_with('\n'));
}

#[test]
fn follower_sees_a_file_grow_and_begin_anew() {
    let server = Server::new();
    let mut client = server.connect();
    let path = server.directory.path().join("file");
    let mut file = File::create(&path).expect("a file");
    file.write_all(b"first\n").expect("it is written");
    let (id, mut stream) = server.data();
    client
        .diag::<Empty>("ReadFile", &request(&path, id, true))
        .expect("it can be read");
    expect(&mut stream, b"first\n");
    file.write_all(b"second\n").expect("it is written");
    expect(&mut stream, b"second\n");
    std::fs::write(&path, b"new\n").expect("it is written");
    expect(&mut stream, b"new\n");
    drop(stream);
    eventually("the follower is forgotten", || {
        server.stats.data_connections.get() == 0
    });
}

#[test]
fn what_cannot_be_read_is_refused_with_its_path() {
    let server = Server::new();
    let mut client = server.connect();
    let directory = server.directory.path();
    let socket = directory.join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let fifo = directory.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
    for (path, code) in [
        (directory.join("missing"), Code::NotFound),
        (directory.to_owned(), Code::FailedPrecondition),
        (socket, Code::FailedPrecondition),
        (fifo, Code::FailedPrecondition),
        ("/x\0y".into(), Code::InvalidArgument),
        ("".into(), Code::NotFound),
        ("x".repeat(5000).into(), Code::InvalidArgument),
    ] {
        let (id, mut stream) = server.data();
        let outcome = client.diag::<Empty>("ReadFile", &request(&path, id, true));
        let (found, message) = outcome.expect_err("it cannot be read");
        assert_eq!(found, code, "{message}");
        // The connection is used up.
        assert_eq!(read_all(&mut stream), []);
    }
}

#[test]
fn device_without_end_stops_with_its_reader() {
    let server = Server::new();
    let mut client = server.connect();
    let (id, mut stream) = server.data();
    client
        .diag::<Empty>("ReadFile", &request(Path::new("/dev/zero"), id, true))
        .expect("it can be read");
    expect(&mut stream, &[0; 1 << 20]);
    // Others are served meanwhile.
    client.ping();
    drop(stream);
    eventually("the connection is dropped", || {
        server.stats.data_connections.get() == 0
    });
}

#[test]
fn log_is_sent_in_records_from_the_device_that_is_named() {
    // A terminal is a device that can be waited for; a line is a record.
    let pair = nix::pty::openpty(None, None).expect("a terminal");
    let path = std::fs::read_link(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&pair.slave)
    ))
    .expect("a path");
    let mut settings = nix::sys::termios::tcgetattr(&pair.slave).expect("a terminal");
    settings
        .local_flags
        .remove(nix::sys::termios::LocalFlags::ECHO);
    let now = nix::sys::termios::SetArg::TCSANOW;
    nix::sys::termios::tcsetattr(&pair.slave, now, &settings).expect("a terminal");
    let mut master = File::from(pair.master);

    let server = Server::with(Options {
        kernel_log: path,
        ..Options::default()
    });
    let mut client = server.connect();
    master.write_all(b"one\ntwo\n").expect("it is written");
    let (conn, mut stream) = server.data();
    let follow = KmsgRequest { follow: true, conn };
    client
        .diag::<Empty>("Kmsg", &follow)
        .expect("there is a log");
    expect(&mut stream, b"one\n\0two\n\0");
    master.write_all(b"three\n").expect("it is written");
    expect(&mut stream, b"three\n\0");
    drop(stream);
    eventually("the follower is forgotten", || {
        server.stats.data_connections.get() == 0
    });

    let (conn, mut stream) = server.data();
    master.write_all(b"four\n").expect("it is written");
    let once = KmsgRequest {
        follow: false,
        conn,
    };
    client.diag::<Empty>("Kmsg", &once).expect("there is a log");
    assert_eq!(read_all(&mut stream), b"four\n\0");
}

#[test]
fn log_that_is_missing_is_an_error() {
    let server = Server::with(Options {
        kernel_log: "/no/such/log".into(),
        ..Options::default()
    });
    let (conn, _stream) = server.data();
    let request = KmsgRequest { follow: true, conn };
    let (code, _) = server
        .connect()
        .diag::<Empty>("Kmsg", &request)
        .expect_err("there is none");
    assert_eq!(code, Code::NotFound);
}
