use super::*;
use std::cell::Cell;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::task::LocalSet;

/// A port with a listener that somebody serves.
struct Rig {
    port: Port,
    uart: Box<dyn SerialBackend>,
    path: std::path::PathBuf,
    _directory: tempfile::TempDir,
    _task: JoinHandle<io::Result<()>>,
    /// Signalled at each poll of the UART.
    polled: std::rc::Rc<Notify>,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("com1");
        let port = Port::default();
        let listener = Listener::unix(&path).unwrap();
        let polled = std::rc::Rc::new(Notify::new());
        let poll = {
            let polled = polled.clone();
            move || polled.notify_one()
        };
        let task = tokio::task::spawn_local(serve(port.clone(), listener, poll));
        Self {
            uart: port.backend(),
            port,
            path,
            _directory: directory,
            _task: task,
            polled,
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// Connects, and waits until the port knows it.
    async fn attach(&self) -> UnixStream {
        let before = self.port.0.lock().counters.clients;
        let client = self.connect().await;
        while self.port.0.lock().counters.clients == before {
            tokio::task::yield_now().await;
        }
        client
    }

    /// Writes as a UART does: what is not taken is tried again at the next poll.
    async fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.uart.write(bytes) {
                0 => self.polled.notified().await,
                taken => bytes = &bytes[taken..],
            }
        }
    }

    /// Reads as a UART with a FIFO of 16 bytes does.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            let mut buffer = [0; 16];
            match self.uart.read(&mut buffer) {
                0 => self.polled.notified().await,
                count => all.extend(&buffer[..count]),
            }
        }
        all
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

async fn read(client: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// Runs a test whose tasks share one thread.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_client_gets_what_was_put_out_before_it_came() {
    run(async {
        let mut rig = Rig::new();
        rig.write(b"early ").await;
        let mut client = rig.attach().await;
        rig.write(b"late").await;
        assert_eq!(read(&mut client, 10).await, b"early late");
    });
}

#[test]
fn without_a_client_the_oldest_output_is_dropped() {
    run(async {
        let mut rig = Rig::new();
        let all = pattern(RING + 1000);
        rig.write(&all).await;
        let mut client = rig.attach().await;
        assert_eq!(read(&mut client, RING).await, all[1000..]);
        assert_eq!(rig.port.0.lock().counters.dropped, 1000);
    });
}

#[test]
fn a_client_that_does_not_read_holds_the_uart_and_loses_nothing() {
    run(async {
        let mut rig = Rig::new();
        let mut client = rig.attach().await;
        let all = pattern(4 << 20);
        let mut rest = &all[..];
        // Until the socket and the port's buffer are full.
        loop {
            match rig.uart.write(rest) {
                0 if rig.port.0.lock().output.len() == ATTACHED_MAX => break,
                0 => rig.polled.notified().await,
                taken => rest = &rest[taken..],
            }
            tokio::task::yield_now().await;
        }
        let read = tokio::task::spawn_local(async move {
            let bytes = read(&mut client, 4 << 20).await;
            (client, bytes)
        });
        let rest = rest.to_vec();
        rig.write(&rest).await;
        assert!(read.await.unwrap().1 == all);
    });
}

#[test]
fn input_waits_for_the_uart_and_loses_nothing() {
    run(async {
        let mut rig = Rig::new();
        let (mut from_port, mut to_port) = rig.attach().await.into_split();
        let all = pattern(1 << 20);
        let writer = tokio::task::spawn_local({
            let all = all.clone();
            async move {
                to_port.write_all(&all).await.unwrap();
                to_port
            }
        });
        assert!(rig.read(1 << 20).await == all);
        // Its end would be that of the connection.
        let _to_port = writer.await.unwrap();
        rig.write(b"!").await;
        assert_eq!(from_port.read_u8().await.unwrap(), b'!');
    });
}

#[test]
fn a_new_client_replaces_the_old() {
    run(async {
        let mut rig = Rig::new();
        let mut first = rig.attach().await;
        rig.write(b"one").await;
        assert_eq!(read(&mut first, 3).await, b"one");
        let mut second = rig.attach().await;
        assert_eq!(first.read(&mut [0; 1]).await.unwrap(), 0);
        rig.write(b"two").await;
        assert_eq!(read(&mut second, 3).await, b"two");
        assert_eq!(rig.port.0.lock().counters.clients, 2);
    });
}

#[test]
fn the_uart_goes_on_when_the_client_that_held_it_has_gone() {
    run(async {
        let mut rig = Rig::new();
        let client = rig.attach().await;
        let all = pattern(RING);
        loop {
            match rig.uart.write(&all) {
                0 if rig.port.0.lock().held => break,
                _ => tokio::task::yield_now().await,
            }
        }
        drop(client);
        rig.write(b"the last words").await;
        assert!(!rig.port.0.lock().attached);
    });
}

#[test]
fn the_last_output_reaches_the_client_before_the_end() {
    run(async {
        let mut rig = Rig::new();
        let mut client = rig.attach().await;
        let all = pattern(ATTACHED_MAX);
        rig.write(&all).await;
        let port = rig.port.clone();
        let finished = tokio::task::spawn_local(async move {
            port.finish(Duration::from_secs(60)).await;
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == all);
        drop(client);
        finished.await.unwrap();
    });
}

#[test]
fn the_end_does_not_wait_for_a_client_that_is_not_there_or_does_not_read() {
    run(async {
        let mut rig = Rig::new();
        rig.write(b"nobody").await;
        rig.port.finish(Duration::from_secs(3600)).await;

        let mut rig = Rig::new();
        let _client = rig.attach().await;
        let all = pattern(RING);
        while rig.uart.write(&all) > 0 || !rig.port.0.lock().held {
            tokio::task::yield_now().await;
        }
        // Not a measurement: whatever the patience is, it is over at some time.
        rig.port.finish(Duration::from_millis(1)).await;
    });
}

#[test]
fn memory_of_a_full_ring_is_given_back() {
    run(async {
        let mut rig = Rig::new();
        rig.write(&pattern(RING)).await;
        let mut client = rig.attach().await;
        read(&mut client, RING).await;
        let waits = Cell::new(0);
        while !rig.port.0.lock().output.is_empty() {
            waits.set(waits.get() + 1);
            tokio::task::yield_now().await;
        }
        assert!(rig.port.0.lock().output.capacity() <= ATTACHED_MAX);
    });
}

#[test]
fn what_waits_is_handed_over_and_nothing_comes_twice() {
    run(async {
        let mut first = Rig::new();
        let mut client = first.attach().await;
        client.write_all(b"typed").await.unwrap();
        while first.port.0.lock().input.len() < 5 {
            tokio::task::yield_now().await;
        }
        // More than the socket takes, so that something waits.
        let mut all = pattern(251 * 4096);
        let mut written = 0;
        loop {
            match first.uart.write(&all[written..]) {
                0 if first.port.0.lock().output.len() == ATTACHED_MAX => break,
                taken => written += taken,
            }
            tokio::task::yield_now().await;
        }
        all.truncate(written);
        let saved = first.port.save();
        first.port.close();
        assert!(!saved.output.is_empty());
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();

        let mut second = Rig::new();
        second.port.restore(&saved);
        let mut client = second.attach().await;
        got.extend(read(&mut client, saved.output.len()).await);
        assert!(got == all);
        assert_eq!(second.read(5).await, b"typed");
    });
}

#[test]
fn a_port_takes_no_more_from_another_than_it_has_room_for() {
    run(async {
        let mut rig = Rig::new();
        rig.port.restore(&SavedPort {
            output: pattern(RING + 3),
            input: pattern(INPUT_MAX + FETCHED_MAX + 3),
        });
        let mut client = rig.attach().await;
        assert!(read(&mut client, RING).await == pattern(RING + 3)[3..]);
        assert!(rig.uart.read(&mut [0; 16]) == 16);
        assert_eq!(rig.port.0.lock().input.len(), INPUT_MAX + FETCHED_MAX - 16);
        assert_eq!(rig.port.0.input_room(), 0);
    });
}

#[test]
fn what_has_arrived_at_the_socket_is_handed_over_in_order() {
    run(async {
        let mut first = Rig::new();
        let client = first.attach().await;
        let all = pattern(64 << 10);
        let mut sent = 0;
        // More than the port has room for, until the socket has none either.
        while sent < all.len() {
            match client.try_write(&all[sent..]) {
                Ok(count) => sent += count,
                Err(_) if first.port.0.input_room() == 0 => break,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        first.port.fetch().await;
        let saved = first.port.save();
        first.port.close();
        assert_eq!(saved.input.len(), sent);
        assert_eq!(first.uart.read(&mut [0; 16]), 0);

        let mut second = Rig::new();
        second.port.restore(&saved);
        let mut client = second.attach().await;
        client.write_all(b"later").await.unwrap();
        let mut got = second.read(sent + 5).await;
        assert_eq!(got.split_off(sent), b"later");
        assert!(got == all[..sent]);
    });
}

#[test]
fn nothing_is_fetched_from_nobody() {
    run(async {
        let rig = Rig::new();
        rig.port.fetch().await;
        drop(rig.attach().await);
        // Gone, whether or not that is known yet.
        rig.port.fetch().await;
    });
}
