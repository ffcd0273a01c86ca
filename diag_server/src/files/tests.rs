use super::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

/// Gives out what it is told, then `EAGAIN`; has more after each wait, as often as it is
/// told.
struct Script {
    now: Mutex<VecDeque<nix::Result<Vec<u8>>>>,
    later: Mutex<VecDeque<nix::Result<Vec<u8>>>>,
}

impl Script {
    fn new(now: Vec<nix::Result<&str>>, later: Vec<nix::Result<&str>>) -> Self {
        let queue = |records: Vec<nix::Result<&str>>| {
            let records = records.into_iter();
            Mutex::new(records.map(|record| record.map(Into::into)).collect())
        };
        Self {
            now: queue(now),
            later: queue(later),
        }
    }
}

impl Records for Script {
    fn read(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        let next = self.now.lock().expect("one thread").pop_front();
        let record = next.unwrap_or(Err(Errno::EAGAIN))?;
        buffer[..record.len()].copy_from_slice(&record);
        Ok(record.len())
    }

    async fn wait(&self) -> io::Result<Option<()>> {
        let next = self.later.lock().expect("one thread").pop_front();
        Ok(next.map(|record| self.now.lock().expect("one thread").push_back(record)))
    }
}

/// What a client gets of `script`, and how many records it is told to have missed.
fn sent(script: &Script, follow: bool) -> (Vec<u8>, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    let stats = ServerStats::default();
    let result = RefCell::new(Vec::new());
    runtime.block_on(async {
        let connection = Stream::unblocked(ours).expect("a socket");
        send_records(script, follow, &connection, &stats)
            .await
            .expect("no error");
    });
    theirs
        .read_to_end(&mut result.borrow_mut())
        .expect("an end");
    (result.into_inner(), stats.lost_log_records.get())
}

#[test]
fn records_are_sent_with_a_nul_each() {
    let script = Script::new(vec![Ok("one\n"), Ok("two\n")], vec![Ok("never\n")]);
    assert_eq!(sent(&script, false), (b"one\n\0two\n\0".to_vec(), 0));
}

#[test]
fn follower_gets_later_records() {
    let script = Script::new(vec![Ok("one\n")], vec![Ok("two\n"), Ok("three\n")]);
    assert_eq!(
        sent(&script, true),
        (b"one\n\0two\n\0three\n\0".to_vec(), 0)
    );
}

#[test]
fn overrun_is_counted_and_the_log_goes_on() {
    let script = Script::new(
        vec![
            Ok("one\n"),
            Err(Errno::EPIPE),
            Err(Errno::EINTR),
            Ok("five\n"),
        ],
        vec![Err(Errno::EPIPE), Ok("nine\n")],
    );
    assert_eq!(
        sent(&script, true),
        (b"one\n\0five\n\0nine\n\0".to_vec(), 2)
    );
}

#[test]
fn long_record_is_split() {
    let long = "x".repeat(MAX_LINE + 10);
    let script = Script::new(vec![Ok(&long)], vec![]);
    let (bytes, _) = sent(&script, false);
    let lines: Vec<usize> = bytes.split(|byte| *byte == 0).map(<[u8]>::len).collect();
    assert_eq!(lines, [MAX_LINE - 1, 11, 0]);
}
