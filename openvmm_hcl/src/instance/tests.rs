//! Watches over processes that only end, or do not; what a worker would say is said by
//! the test.

use super::*;
use mesh::process::ProcessConfig;

/// Far longer than any test; for what must not happen.
const LONG: Duration = Duration::from_secs(600);
/// What must happen by itself.
const SHORT: Duration = Duration::from_millis(20);

/// The same, after something that the test does in time even on a busy machine.
const ANSWERED: Duration = Duration::from_millis(500);

/// A worker under watch: its process runs this script.
struct Watched {
    events: Sender<Event>,
    requests: Receiver<Request>,
    commands: mpsc::Sender<Command>,
    reports: mpsc::Receiver<Report>,
}

fn watched(script: &str, patience: Patience) -> Watched {
    let (requests, worker_requests) = mesh::channel();
    let (events, worker_events) = mesh::channel();
    let (commands, watch_commands) = mpsc::channel(QUEUE);
    let (watch_reports, reports) = mpsc::channel(QUEUE);
    let config = ProcessConfig::new("sh")
        .executable("/bin/sh")
        .arg("-c")
        .arg(script);
    let instance = Instance {
        generation: 7,
        child: mesh::process::launch(config, ()).unwrap(),
        events: worker_events,
        requests,
        patience,
        watchdog: Arc::default(),
    };
    tokio::spawn(instance.watch(watch_commands, watch_reports));
    Watched {
        events,
        requests: worker_requests,
        commands,
        reports,
    }
}

impl Watched {
    async fn ready(&mut self) {
        let stamps = Vec::new();
        self.events.send(Event::Ready { stamps }).await.unwrap();
        assert!(matches!(
            self.reports.recv().await,
            Some(Report::Ready { generation: 7, .. })
        ));
    }

    async fn end(&mut self) -> End {
        match self.reports.recv().await {
            Some(Report::Ended(end)) => end,
            other => panic!("{other:?}, expected the end"),
        }
    }
}

/// A script that ends with `code` when the test makes the file `now`.
fn until(directory: &std::path::Path, code: u8) -> String {
    let now = directory.join("now");
    format!(
        "while ! [ -e '{}' ]; do sleep 0.01; done; exit {code}",
        now.display()
    )
}

fn patience(start_deadline: Duration, watchdog: Option<(Duration, Duration)>) -> Patience {
    Patience {
        start_deadline,
        watchdog,
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn a_cause_is_told_with_the_name_of_the_signal() {
    assert_eq!(describe_cause(Cause::Code(3)), "exit code 3");
    assert_eq!(
        describe_cause(Cause::Signal(9, false)),
        "signal 9 (SIGKILL)"
    );
    assert_eq!(
        describe_cause(Cause::Signal(11, true)),
        "signal 11 (SIGSEGV, core dumped)"
    );
    assert_eq!(
        describe_cause(Cause::Signal(40, false)),
        "signal 40 (unknown)"
    );
}

#[test]
fn the_end_of_a_worker_is_told_with_its_last_words() {
    run(async {
        let mut worker = watched("echo one >&2; echo two >&2; exit 7", patience(LONG, None));
        let end = worker.end().await;
        assert_eq!(end.describe(), "exit code 7");
        assert_eq!(end.last_lines, ["one", "two"]);
        assert_eq!(end.state, None);
    });
}

#[test]
fn a_worker_that_never_gets_ready_is_killed() {
    run(async {
        let mut worker = watched("exec sleep 600", patience(SHORT, None));
        let end = worker.end().await;
        assert_eq!(end.describe(), "signal 9 (SIGKILL); not ready within 20 ms");
    });
}

#[test]
fn a_worker_that_cannot_start_says_why() {
    run(async {
        let ends = tempfile::tempdir().unwrap();
        let mut worker = watched(&until(ends.path(), 1), patience(LONG, None));
        let reason = "x".repeat(5000);
        worker.events.send(Event::Failed { reason }).await.unwrap();
        std::fs::write(ends.path().join("now"), "").unwrap();
        let end = worker.end().await;
        assert_eq!(end.cause, "exit code 1");
        assert_eq!(end.reason.map(|reason| reason.len()), Some(REASON_MAX));
    });
}

#[test]
fn a_worker_that_answers_no_ping_is_killed() {
    run(async {
        let watchdog = Some((SHORT, SHORT));
        let mut worker = watched("exec sleep 600", patience(LONG, watchdog));
        worker.ready().await;
        let end = worker.end().await;
        assert_eq!(end.cause, "signal 9 (SIGKILL)");
        let reason = end.reason.unwrap();
        assert!(
            reason.starts_with("watchdog: no answer to a ping within 20 ms"),
            "{reason}"
        );
    });
}

#[test]
fn a_worker_that_says_again_that_it_is_ready_is_watched_all_the_same() {
    run(async {
        let watchdog = Some((SHORT, SHORT));
        let mut worker = watched("exec sleep 600", patience(LONG, watchdog));
        worker.ready().await;
        let events = worker.events.clone();
        let insistent = tokio::spawn(async move {
            let again = || Event::Ready { stamps: Vec::new() };
            while events.send(again()).await.is_ok() {}
        });
        // The first report behind that of its start.
        let end = worker.end().await;
        assert!(end.describe().contains("watchdog"), "{}", end.describe());
        insistent.await.unwrap();
    });
}

#[test]
fn a_worker_that_answers_lives() {
    run(async {
        let watchdog = Some((Duration::from_millis(1), LONG));
        let mut worker = watched("exec sleep 600", patience(LONG, watchdog));
        worker.ready().await;
        for _ in 0..20 {
            match worker.requests.recv().await.unwrap() {
                Request::Ping(rpc) => rpc.complete(()),
                other => panic!("{other:?}"),
            }
        }
        assert!(worker.reports.try_recv().is_err());
        let kill = Command::Kill {
            signal: Signal::SIGABRT,
            reason: "test".to_owned(),
        };
        worker.commands.send(kill).await.unwrap();
        assert!(
            worker
                .end()
                .await
                .describe()
                .starts_with("signal 6 (SIGABRT")
        );
    });
}

#[test]
fn a_worker_that_is_replaced_leaves_its_state() {
    run(async {
        let ends = tempfile::tempdir().unwrap();
        let mut worker = watched(&until(ends.path(), 0), patience(LONG, None));
        worker.ready().await;
        let hand_over = Command::HandOver { deadline: LONG };
        worker.commands.send(hand_over).await.unwrap();
        match worker.requests.recv().await.unwrap() {
            Request::HandOver(rpc) => rpc.complete(Ok(Bytes(vec![1, 2, 3]))),
            other => panic!("{other:?}"),
        }
        std::fs::write(ends.path().join("now"), "").unwrap();
        let end = worker.end().await;
        assert_eq!(end.describe(), "exit code 0");
        assert_eq!((end.orderly, end.state), (true, Some(Bytes(vec![1, 2, 3]))));
    });
}

#[test]
fn a_worker_that_cannot_be_replaced_stays_and_is_watched() {
    run(async {
        let watchdog = Some((Duration::from_millis(1), LONG));
        let mut worker = watched("exec sleep 600", patience(LONG, watchdog));
        worker.ready().await;
        let hand_over = Command::HandOver { deadline: LONG };
        worker.commands.send(hand_over).await.unwrap();
        loop {
            match worker.requests.recv().await.unwrap() {
                Request::Ping(rpc) => rpc.complete(()),
                Request::HandOver(rpc) => break rpc.complete(Err("no".repeat(REASON_MAX))),
                other => panic!("{other:?}"),
            }
        }
        match worker.reports.recv().await {
            Some(Report::Stays { reason }) => assert_eq!(reason, "no".repeat(REASON_MAX / 2)),
            other => panic!("{other:?}, expected a refusal"),
        }
        for _ in 0..3 {
            match worker.requests.recv().await.unwrap() {
                Request::Ping(rpc) => rpc.complete(()),
                other => panic!("{other:?}"),
            }
        }
        let stop = Command::Stop { deadline: SHORT };
        worker.commands.send(stop).await.unwrap();
        assert!(!worker.end().await.orderly);
    });
}

#[test]
fn a_worker_that_gets_ready_after_it_was_asked_to_stop_still_stops() {
    run(async {
        let ends = tempfile::tempdir().unwrap();
        let mut worker = watched(&until(ends.path(), 0), patience(LONG, None));
        let stop = Command::Stop { deadline: LONG };
        worker.commands.send(stop).await.unwrap();
        let Request::Stop(rpc) = worker.requests.recv().await.unwrap() else {
            panic!("expected to be asked to stop");
        };
        worker.ready().await;
        assert_eq!(rpc.context().reason(), None, "it is still waited for");
        rpc.complete(());
        std::fs::write(ends.path().join("now"), "").unwrap();
        let end = worker.end().await;
        assert_eq!((end.orderly, end.state), (true, None));
    });
}

#[test]
fn a_worker_that_does_not_stop_is_killed_at_the_deadline() {
    run(async {
        let mut worker = watched("exec sleep 600", patience(LONG, None));
        worker.ready().await;
        let stop = Command::Stop { deadline: SHORT };
        worker.commands.send(stop).await.unwrap();
        let end = worker.end().await;
        assert_eq!(end.cause, "signal 9 (SIGKILL)");
        assert!(end.reason.unwrap().starts_with("did not stop within 20 ms"));
        assert_eq!((end.orderly, end.state), (false, None));
    });
}

#[test]
fn a_worker_that_gives_its_state_but_does_not_end_is_killed() {
    run(async {
        let mut worker = watched("exec sleep 600", patience(LONG, None));
        worker.ready().await;
        let hand_over = Command::HandOver { deadline: ANSWERED };
        worker.commands.send(hand_over).await.unwrap();
        match worker.requests.recv().await.unwrap() {
            Request::HandOver(rpc) => rpc.complete(Ok(Bytes(vec![1]))),
            other => panic!("{other:?}"),
        }
        let end = worker.end().await;
        assert_eq!(end.state, Some(Bytes(vec![1])));
        assert_eq!(
            end.reason.as_deref(),
            Some("stopped, but did not end within 500 ms")
        );
    });
}

#[test]
fn a_worker_that_reports_without_end_is_cut_short() {
    let stamps = vec![
        Stamp {
            name: "é".repeat(5000),
            ticks: underhill_core::clock::Ticks(1),
        };
        100
    ];
    let stamps = sensible(stamps);
    assert_eq!(stamps.len(), STAMPS_MAX);
    assert!(
        stamps
            .iter()
            .all(|stamp| stamp.name.len() <= STAMP_NAME_MAX)
    );
}

#[test]
fn a_report_about_a_guest_is_passed_on_and_cut() {
    run(async {
        let mut worker = watched("exec sleep 600", patience(LONG, None));
        worker.ready().await;
        // Bytes of more than one in a character, so that the cut may not be anywhere.
        let report = "é".repeat(GUEST_REPORT_MAX);
        let stopped = GuestEvent::Stopped { report };
        for event in [GuestEvent::PoweredOff, stopped] {
            worker.events.send(Event::Guest(event)).await.unwrap();
        }
        let mut reports = Vec::new();
        for _ in 0..2 {
            match worker.reports.recv().await {
                Some(Report::Guest(event)) => reports.push(event),
                other => panic!("{other:?}, expected what became of the guest"),
            }
        }
        let report = "é".repeat(GUEST_REPORT_MAX / 2);
        assert_eq!(
            reports,
            [GuestEvent::PoweredOff, GuestEvent::Stopped { report }]
        );
        worker
            .commands
            .send(Command::Kill {
                signal: Signal::SIGKILL,
                reason: "the test is over".to_owned(),
            })
            .await
            .unwrap();
        worker.end().await;
    });
}

#[test]
fn what_a_worker_says_of_its_guest_before_its_end_is_told_before_it() {
    run(async {
        let ends = tempfile::tempdir().unwrap();
        let mut worker = watched(&until(ends.path(), 0), patience(LONG, None));
        let events = worker.events.clone();
        std::fs::write(ends.path().join("now"), "").unwrap();
        let event = Event::Guest(GuestEvent::PoweredOff);
        events.send(event).await.unwrap();
        let told = worker.reports.recv().await;
        assert!(matches!(told, Some(Report::Guest(GuestEvent::PoweredOff))));
        assert_eq!(worker.end().await.cause, "exit code 0");
    });
}
