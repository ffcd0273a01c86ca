//! Channels between real processes. The test program is its own child: under the name
//! of a persona it does that persona's work instead of running tests.

use mesh::Bytes;
use mesh::CancelContext;
use mesh::CancelReason;
use mesh::Fd;
use mesh::Receiver;
use mesh::RecvError;
use mesh::Rpc;
use mesh::RpcError;
use mesh::Sender;
use mesh::TrySendError;
use mesh::channel;
use mesh::process;
use mesh::process::Cause;
use mesh::process::ProcessConfig;
use serde::Deserialize;
use serde::Serialize;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::Duration;

/// What the child `worker` is asked for.
#[derive(Serialize, Deserialize)]
enum Request {
    Add(Rpc<(u32, u32), u32>),
    Echo(Rpc<Bytes, Bytes>),
    /// Never answered; reports through the sender why the caller went away.
    Hang(Rpc<Sender<String>, ()>),
    Forget(Rpc<(), ()>),
    Write(Rpc<Fd, ()>),
    /// Gives the numbers to the sender as they come, until there are no more.
    Forward(Receiver<u64>, Sender<u64>),
    /// Takes numbers, gives them to the sender, and passes all on to the next worker.
    Take {
        numbers: Receiver<u64>,
        count: u64,
        to: Sender<u64>,
        next: Vec<Sender<Request>>,
    },
    /// Sends numbers until somebody stops it; each comes with so many bytes.
    Flood(Sender<(u64, Bytes)>, usize),
    /// Nothing; the text is a load.
    Idle(String),
    Die(String),
    Exit(i32),
}

#[derive(Serialize, Deserialize)]
struct Parameters {
    requests: Receiver<Request>,
}

fn main() -> ExitCode {
    match std::env::args().next().as_deref() {
        Some("worker") => worker(),
        Some("uninvited") => match process::invitation::<Parameters>() {
            Err(process::InvitationError::NotInvited) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        _ => run_tests(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn worker() -> ExitCode {
    let Parameters { mut requests } = process::invitation().expect("parameters");
    runtime().block_on(async move {
        while let Ok(request) = requests.recv().await {
            match request {
                Request::Add(rpc) => rpc.handle(async |(a, b)| a + b).await,
                Request::Echo(rpc) => rpc.handle(async |bytes| bytes).await,
                Request::Hang(rpc) => {
                    tokio::spawn(async move {
                        let reason = rpc.context().cancelled().await;
                        let (report, _reply) = rpc.into_parts();
                        report.send(reason.to_string()).await.expect("a listener");
                    });
                }
                Request::Forget(rpc) => drop(rpc),
                Request::Write(rpc) => {
                    rpc.handle(async |Fd(fd)| {
                        std::fs::File::from(fd).write_all(b"hello").expect("a file");
                    })
                    .await;
                }
                Request::Forward(mut from, to) => {
                    tokio::spawn(async move {
                        while let Ok(number) = from.recv().await {
                            to.send(number).await.expect("a listener");
                        }
                    });
                }
                Request::Take {
                    numbers,
                    count,
                    to,
                    next,
                } => take(numbers, count, to, next).await,
                Request::Flood(to, size) => {
                    for number in 0.. {
                        let bytes = Bytes(vec![number as u8; size]);
                        to.send((number, bytes)).await.expect("a listener");
                    }
                }
                Request::Idle(_) => {}
                Request::Die(how) => die(&how),
                Request::Exit(code) => {
                    for line in 0..100 {
                        eprintln!("line {line}");
                    }
                    std::process::exit(code);
                }
            }
        }
    });
    ExitCode::SUCCESS
}

async fn take(
    mut numbers: Receiver<u64>,
    count: u64,
    to: Sender<u64>,
    mut next: Vec<Sender<Request>>,
) {
    for _ in 0..count {
        match numbers.recv().await {
            Ok(number) => to.send(number).await.expect("a listener"),
            Err(_) => return,
        }
    }
    if next.is_empty() {
        return;
    }
    let worker = next.remove(0);
    let request = Request::Take {
        numbers,
        count,
        to,
        next,
    };
    worker.send(request).await.expect("the next worker");
}

fn die(how: &str) {
    eprintln!("dying by {how}");
    match how {
        "abort" => std::process::abort(),
        _ => panic!("{how}"),
    }
}

struct Worker {
    child: process::Child,
    requests: Sender<Request>,
}

fn start() -> Worker {
    let (requests, receiver) = channel();
    let config = ProcessConfig::new("worker").stderr_sink(|_| {});
    let child = process::launch(config, Parameters { requests: receiver }).expect("a process");
    Worker { child, requests }
}

async fn calls_between_processes_are_answered() {
    let worker = start();
    let mut calls = Vec::new();
    for n in 0..100 {
        calls.push(worker.requests.call(Request::Add, (n, 1)));
    }
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.expect("a sum"), n as u32 + 1);
    }
}

async fn large_messages_travel_both_ways() {
    let worker = start();
    for size in [0, 1, 32_000, 32_768, 40_000, 1 << 20, (16 << 20) - 64] {
        let bytes = Bytes((0..size).map(|n| n as u8).collect());
        let answer = worker.requests.call(Request::Echo, bytes.clone()).await;
        assert!(answer.expect("an echo") == bytes, "{size} bytes");
    }
}

async fn a_deadline_travels_and_ends_the_call() {
    let worker = start();
    let (report, mut reasons) = channel();
    let context = CancelContext::new().with_timeout(Duration::from_millis(20));
    let result = worker
        .requests
        .call_within(&context, Request::Hang, report)
        .await;
    let expected = CancelReason::DeadlineExceeded;
    assert!(matches!(result, Err(RpcError::Cancelled(reason)) if reason == expected));
    // The callee's own clock and the caller's news race.
    let reason = reasons.recv().await.expect("a reason");
    assert!(["deadline exceeded", "cancelled"].contains(&reason.as_str()));
}

async fn cancellation_travels() {
    let worker = start();
    let (report, mut reasons) = channel();
    let context = CancelContext::new();
    let call = worker.requests.call_within(&context, Request::Hang, report);
    let cancel = async {
        // Answered behind the other one, so that was received.
        let sum = worker.requests.call(Request::Add, (1, 1)).await;
        assert_eq!(sum.expect("a sum"), 2);
        context.cancel();
    };
    let (result, ()) = tokio::join!(call, cancel);
    let expected = CancelReason::Cancelled;
    assert!(matches!(result, Err(RpcError::Cancelled(reason)) if reason == expected));
    assert_eq!(reasons.recv().await.expect("a reason"), "cancelled");
}

async fn a_dropped_call_is_reported() {
    let worker = start();
    let result = worker.requests.call(Request::Forget, ()).await;
    assert!(matches!(result, Err(RpcError::Dropped)));
}

async fn descriptors_travel() {
    let worker = start();
    let mut file = tempfile::tempfile().expect("a file");
    let fd = Fd(file.try_clone().expect("a descriptor").into());
    worker
        .requests
        .call(Request::Write, fd)
        .await
        .expect("done");
    let mut text = String::new();
    file.rewind().expect("a file");
    file.read_to_string(&mut text).expect("text");
    assert_eq!(text, "hello");
}

async fn death_closes_channels_and_has_a_cause() {
    let worker = start();
    let (report, _reasons) = channel();
    let call = worker.requests.call(Request::Hang, report);
    let kill = async {
        let sum = worker.requests.call(Request::Add, (1, 1)).await;
        assert_eq!(sum.expect("a sum"), 2);
        worker.child.kill(9).expect("a process");
    };
    let (result, ()) = tokio::join!(call, kill);
    assert!(matches!(result, Err(RpcError::PeerGone)), "{result:?}");
    assert_eq!(worker.child.exited().await.cause, Cause::Signal(9, false));
    assert!(worker.child.kill(9).is_err());
    let result = worker.requests.call(Request::Forget, ()).await;
    assert!(matches!(result, Err(RpcError::PeerGone)), "{result:?}");
}

async fn the_last_lines_of_a_dead_process_are_kept() {
    let worker = start();
    worker.requests.send(Request::Exit(3)).await.expect("sent");
    let death = worker.child.exited().await;
    assert_eq!(death.cause, Cause::Code(3));
    let expected: Vec<_> = (68..100).map(|line| format!("line {line}")).collect();
    assert_eq!(death.last_lines, expected);
    let worker = start();
    let abort = Request::Die("abort".into());
    worker.requests.send(abort).await.expect("sent");
    let death = worker.child.exited().await;
    assert!(matches!(death.cause, Cause::Signal(6, _)), "{death:?}");
    assert_eq!(death.last_lines, ["dying by abort"]);
}

async fn a_process_ends_when_its_channels_close() {
    let Worker { child, requests } = start();
    drop(requests);
    assert_eq!(child.exited().await.cause, Cause::Code(0));
}

/// Both ends of one channel leave this process for two others while messages are on
/// their way, again and again.
async fn both_ends_move_at_once_without_loss() {
    const COUNT: u64 = 2000;
    let workers = [start(), start(), start()];
    for round in 0..20 {
        let (first, source) = channel();
        let (middle, middle_end) = channel();
        let (last, mut sink) = channel();
        let mut sent = 0..COUNT;
        for number in sent.by_ref().take(100 + round) {
            first.send(number).await.expect("sent");
        }
        let to = |n: usize| &workers[(n + round) % 3].requests;
        let forward = Request::Forward(source, middle);
        to(0).send(forward).await.expect("sent");
        let forward = Request::Forward(middle_end, last);
        to(1).send(forward).await.expect("sent");
        let send = async {
            for number in sent {
                first.send(number).await.expect("sent");
            }
            drop(first);
        };
        let receive = async {
            for number in 0..COUNT {
                assert_eq!(sink.recv().await.expect("a number"), number);
            }
            assert!(sink.recv().await.is_err());
        };
        tokio::join!(send, receive);
    }
}

/// A receiver wanders through three processes, again and again, while its senders send.
async fn a_receiver_wanders_through_processes_without_loss() {
    const HOPS: u64 = 60;
    const COUNT: u64 = 25;
    let workers = [start(), start(), start()];
    let (sender, numbers) = channel();
    let (to, mut taken) = channel();
    let mut next: Vec<_> = (1..HOPS)
        .map(|hop| workers[(hop % 3) as usize].requests.clone())
        .collect();
    // The last one takes what is one too many: the end.
    next.push(workers[0].requests.clone());
    let first = Request::Take {
        numbers,
        count: COUNT,
        to,
        next,
    };
    workers[0].requests.send(first).await.expect("sent");
    let send = async {
        for number in 0..HOPS * COUNT {
            sender.send(number).await.expect("sent");
        }
        drop(sender);
    };
    let receive = async {
        for number in 0..HOPS * COUNT {
            assert_eq!(taken.recv().await.expect("a number"), number);
        }
        assert!(taken.recv().await.is_err());
    };
    tokio::join!(send, receive);
}

async fn a_process_killed_while_it_sends_leaves_whole_messages() {
    for size in [10, 20_000, 200_000] {
        let worker = start();
        let (to, mut flood) = channel();
        let request = Request::Flood(to, size);
        worker.requests.send(request).await.expect("sent");
        let mut expected = 0;
        let end = loop {
            match flood.recv().await {
                Ok((number, bytes)) => {
                    assert_eq!(number, expected);
                    assert_eq!(bytes.len(), size);
                    assert!(bytes.iter().all(|byte| *byte == number as u8));
                    expected += 1;
                }
                Err(error) => break error,
            }
            if expected == 50 {
                worker.child.kill(9).expect("a process");
            }
        };
        assert!(matches!(end, RecvError::Closed), "{end}");
        assert!(expected >= 50);
    }
}

async fn a_process_that_hangs_holds_little_and_nobody() {
    const SIGSTOP: i32 = 19;
    const SIGCONT: i32 = 18;
    for (size, most) in [(100, 1000), (10 << 20, 16)] {
        let worker = start();
        worker.child.kill(SIGSTOP).expect("a process");
        let mut sent = 0;
        let unsent = loop {
            let request = Request::Idle("x".repeat(size));
            match worker.requests.try_send(request) {
                Ok(()) => sent += 1,
                Err(TrySendError::Full(unsent)) => break unsent,
                Err(error) => panic!("{error}"),
            }
        };
        assert!(sent <= most, "{sent} messages of {size} bytes queued");
        let context = CancelContext::new().with_timeout(Duration::from_millis(10));
        let result = worker.requests.call_within(&context, Request::Add, (1, 1));
        assert!(matches!(result.await, Err(RpcError::Cancelled(_))));
        worker.child.kill(SIGCONT).expect("a process");
        worker.requests.send(unsent).await.expect("sent");
        let sum = worker.requests.call(Request::Add, (1, 1)).await;
        assert_eq!(sum.expect("a sum"), 2);
    }
}

async fn a_program_that_was_not_invited_says_so() {
    let status = std::process::Command::new("/proc/self/exe")
        .arg0("uninvited")
        .stdin(std::process::Stdio::null())
        .status()
        .expect("a process");
    assert!(status.success());
}

async fn a_program_that_does_not_exist_is_an_error() {
    let config = ProcessConfig::new("worker").executable("/nonexistent");
    let (_requests, receiver) = channel();
    let result = process::launch(config, Parameters { requests: receiver });
    let error = result.expect_err("no process").to_string();
    assert!(error.starts_with("worker: starting it: "), "{error}");
}

/// Runs each as a test of its own name; a first argument filters as usual.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        fn run_tests() -> ExitCode {
            let arguments: Vec<_> = std::env::args().skip(1).collect();
            let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
            let list = arguments.iter().any(|argument| argument == "--list");
            $(
                let name = stringify!($name);
                if list {
                    println!("{name}: test");
                } else if filter.is_none_or(|filter| name.contains(filter.as_str())) {
                    // In a task: the main future of a runtime is woken at a cost.
                    let test = async { tokio::spawn($name()).await };
                    if let Err(error) = runtime().block_on(test) {
                        eprintln!("test {name} ... FAILED: {error}");
                        return ExitCode::FAILURE;
                    }
                    println!("test {name} ... ok");
                }
            )*
            ExitCode::SUCCESS
        }
    };
}

tests!(
    a_receiver_wanders_through_processes_without_loss,
    a_process_killed_while_it_sends_leaves_whole_messages,
    a_process_that_hangs_holds_little_and_nobody,
    a_program_that_was_not_invited_says_so,
    a_program_that_does_not_exist_is_an_error,
    calls_between_processes_are_answered,
    large_messages_travel_both_ways,
    a_deadline_travels_and_ends_the_call,
    cancellation_travels,
    a_dropped_call_is_reported,
    descriptors_travel,
    death_closes_channels_and_has_a_cause,
    the_last_lines_of_a_dead_process_are_kept,
    a_process_ends_when_its_channels_close,
    both_ends_move_at_once_without_loss,
);
