//! Memory of a server whose peers do not read. Alone in its process, because it is the
//! process that is measured.

mod common;

use common::Server;
use diag_proto::diag::Empty;
use diag_proto::diag::FileRequest;

const MIB: usize = 1 << 20;

#[test]
fn peer_that_never_reads_a_stream_holds_one_buffer() {
    let server = Server::new();
    let mut client = server.connect();
    let before = resident_bytes();
    let streams: Vec<_> = (0..100)
        .map(|_| {
            let (conn, stream) = server.data();
            let request = FileRequest {
                follow: true,
                conn,
                file_path: "/dev/zero".into(),
            };
            client
                .diag::<Empty>("ReadFile", &request)
                .expect("it serves");
            stream
        })
        .collect();
    client.ping();
    let grown = resident_bytes().saturating_sub(before);
    // 16 KiB for each reader, and what the allocator takes.
    assert!(grown < 16 * MIB, "{grown} bytes");
    assert_eq!(server.stats.data_connections.get(), 100);
    drop(streams);
}

/// Memory of this process: test and server.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm.split(' ').nth(1).expect("its second field");
    4096 * pages.parse::<usize>().expect("a number")
}
