//! One VM worker process: from its start until the kernel says how it ended.
//!
//! A task of its own watches it, so that whatever the worker does, or fails to do, the rest
//! of the control process goes on answering.

use inspect::Inspect;
use inspect::Unit;
use mesh::Bytes;
use mesh::CancelContext;
use mesh::Receiver;
use mesh::RpcError;
use mesh::Sender;
use mesh::process::Cause;
use mesh::process::Child;
use mesh::process::Death;
use nix::sys::signal::Signal;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use underhill_core::Event;
use underhill_core::Request;
use underhill_core::clock::Stamp;
use underhill_core::protocol::GuestEvent;

/// Commands and reports that wait at a time; there are never many.
pub(crate) const QUEUE: usize = 8;

/// The largest event of a worker, in bytes: what is decoded can take many times as much.
pub(crate) const EVENT_MAX: usize = 16 << 10;

/// The longest reason of a worker for its end, in bytes.
const REASON_MAX: usize = 1024;

/// The longest report about a guest, in bytes.
const GUEST_REPORT_MAX: usize = 8 << 10;

/// The most stamps that a worker may report, and the longest name of one in bytes.
const STAMPS_MAX: usize = 16;
const STAMP_NAME_MAX: usize = 64;

/// How closely a worker is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// How long it may take to get ready.
    pub(crate) start_deadline: Duration,
    /// Time between two questions, and how long the answer may take.
    pub(crate) watchdog: Option<(Duration, Duration)>,
}

/// What the watching task is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Ask the worker to end; kill it if that takes longer.
    Stop {
        /// How long it may take.
        deadline: Duration,
    },
    /// The same, and ask for its state. It may refuse, and goes on then.
    HandOver {
        /// How long it may take.
        deadline: Duration,
    },
    /// Make it end by a signal.
    Kill {
        /// Which.
        signal: Signal,
        /// On whose behalf, for the report.
        reason: String,
    },
}

/// What the watching task reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// The worker is ready.
    Ready {
        /// Which worker.
        generation: u32,
        /// Moments of its start.
        stamps: Vec<Stamp>,
    },
    /// Something has become of its guest.
    Guest(GuestEvent),
    /// The worker cannot be replaced, and why; it goes on.
    Stays {
        /// In its words.
        reason: String,
    },
    /// The worker has ended, however that came. The last report.
    Ended(End),
}

/// How a worker has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Why it was ended, or why it ended itself, if that is known.
    pub(crate) reason: Option<String>,
    /// How the kernel saw it.
    pub(crate) cause: String,
    /// The end of what it wrote to standard error.
    pub(crate) last_lines: Vec<String>,
    /// It was asked to end, and had answered.
    pub(crate) orderly: bool,
    /// Its state, if it was asked for that and gave it.
    pub(crate) state: Option<Bytes>,
}

impl End {
    /// One line that says it all.
    pub(crate) fn describe(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{}; {reason}", self.cause),
            None => self.cause.clone(),
        }
    }
}

/// The text for a cause.
pub(crate) fn describe_cause(cause: Cause) -> String {
    match cause {
        Cause::Code(code) => format!("exit code {code}"),
        Cause::Signal(number, core_dumped) => {
            let name = Signal::try_from(number).map_or("unknown", Signal::as_str);
            let core = if core_dumped { ", core dumped" } else { "" };
            format!("signal {number} ({name}{core})")
        }
        Cause::Unknown => "unknown cause".to_owned(),
    }
}

/// How the watchdog's questions were answered.
#[derive(Debug, Default)]
pub(crate) struct WatchdogStats {
    answers: AtomicU64,
    last_ns: AtomicU64,
    longest_ns: AtomicU64,
}

impl WatchdogStats {
    fn answered(&self, after: Duration) {
        let ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.answers.fetch_add(1, Relaxed);
        self.last_ns.store(ns, Relaxed);
        self.longest_ns.fetch_max(ns, Relaxed);
    }
}

impl Inspect for WatchdogStats {
    fn inspect(&self, request: inspect::Request<'_>) {
        request
            .respond()
            .counter("answers", &self.answers)
            .unit("last_answer_took", Unit::Nanoseconds, &self.last_ns)
            .unit("longest_answer_took", Unit::Nanoseconds, &self.longest_ns);
    }
}

/// What the watch over a worker comes to.
enum Outcome {
    /// It must be killed, and why.
    Problem(String),
    /// It will end; its state, if it was asked for that.
    Ends(Option<Bytes>),
    /// It will not, and why.
    Stays(String),
}

type Watch = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A worker under watch.
pub(crate) struct Instance {
    pub(crate) generation: u32,
    pub(crate) child: Child,
    pub(crate) events: Receiver<Event>,
    pub(crate) requests: Sender<Request>,
    pub(crate) patience: Patience,
    pub(crate) watchdog: Arc<WatchdogStats>,
}

impl Instance {
    /// Watches until the worker has ended. The task must not be dropped before.
    pub(crate) async fn watch(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        reports: mpsc::Sender<Report>,
    ) {
        let generation = self.generation;
        let mut reason = None;
        let mut orderly = false;
        let mut state = None;
        let mut ready = false;
        let mut hears_events = true;
        let mut hears_commands = true;
        let mut watch = Some(not_ready_within(self.patience.start_deadline));
        // Set when it was asked to end: until when, and how long that was.
        let mut stopping: Option<(Instant, Duration)> = None;
        let death = loop {
            tokio::select! {
                death = self.child.exited() => break death,
                event = self.events.recv(), if hears_events => match event {
                    // Its watchdog would begin anew each time.
                    Ok(Event::Ready { .. }) if ready => {}
                    Ok(Event::Ready { stamps }) => {
                        ready = true;
                        // One that was asked to end meanwhile is still to end in time.
                        if stopping.is_none() {
                            watch = self.watchdog();
                        }
                        let stamps = sensible(stamps);
                        // The controller ends after its workers: it listens.
                        let _ = reports.send(Report::Ready { generation, stamps }).await;
                    }
                    Ok(Event::Failed { reason: why }) => reason = Some(cut(why, REASON_MAX)),
                    Ok(Event::Guest(event)) => {
                        let _ = reports.send(Report::Guest(brief(event))).await;
                    }
                    // Either it dies, which is seen, or the watchdog finds it.
                    Err(_) => hears_events = false,
                },
                outcome = watched(&mut watch) => match outcome {
                    Outcome::Problem(problem) => {
                        watch = None;
                        self.kill(Signal::SIGKILL);
                        reason = Some(problem);
                    }
                    Outcome::Ends(given) => {
                        orderly = true;
                        state = given;
                        watch = stopping.map(|(end, deadline)| not_ended(end, deadline));
                    }
                    Outcome::Stays(why) => {
                        stopping = None;
                        watch = self.watchdog();
                        let reason = cut(why, REASON_MAX);
                        let _ = reports.send(Report::Stays { reason }).await;
                    }
                },
                command = commands.recv(), if hears_commands => match command {
                    Some(Command::Stop { deadline }) => {
                        let end = Instant::now() + deadline;
                        stopping = Some((end, deadline));
                        let requests = self.requests.clone();
                        watch = Some(ending(end, deadline, move |context| async move {
                            let ended = requests.call_within(&context, Request::Stop, ()).await;
                            ended.map(|()| Outcome::Ends(None))
                        }));
                    }
                    Some(Command::HandOver { deadline }) => {
                        let end = Instant::now() + deadline;
                        stopping = Some((end, deadline));
                        let requests = self.requests.clone();
                        watch = Some(ending(end, deadline, move |context| async move {
                            let state = requests.call_within(&context, Request::HandOver, ());
                            Ok(match state.await? {
                                Ok(state) => Outcome::Ends(Some(state)),
                                Err(reason) => Outcome::Stays(reason),
                            })
                        }));
                    }
                    Some(Command::Kill { signal, reason: why }) => {
                        self.kill(signal);
                        reason = Some(why);
                    }
                    None => hears_commands = false,
                },
            }
        };
        // What it said right before its end may still be on its way to here.
        while let Ok(Some(event)) = self.events.try_recv() {
            match event {
                Event::Failed { reason: why } => reason = Some(cut(why, REASON_MAX)),
                Event::Guest(event) => {
                    let _ = reports.send(Report::Guest(brief(event))).await;
                }
                Event::Ready { .. } => {}
            }
        }
        let Death { cause, last_lines } = death;
        let end = End {
            reason,
            cause: describe_cause(cause),
            last_lines,
            orderly,
            state,
        };
        let _ = reports.send(Report::Ended(end)).await;
    }

    fn watchdog(&self) -> Option<Watch> {
        let (interval, deadline) = self.patience.watchdog?;
        let stats = self.watchdog.clone();
        Some(watchdog(self.requests.clone(), stats, interval, deadline))
    }

    fn kill(&self, signal: Signal) {
        // It may have ended by itself meanwhile, which is about to be seen.
        if let Err(error) = self.child.kill(signal as i32) {
            tracing::debug!(%error, "{signal} did not reach the VM worker");
        }
    }
}

/// A worker is not trusted to be brief.
fn sensible(mut stamps: Vec<Stamp>) -> Vec<Stamp> {
    stamps.truncate(STAMPS_MAX);
    for stamp in &mut stamps {
        stamp.name = cut(std::mem::take(&mut stamp.name), STAMP_NAME_MAX);
    }
    stamps
}

fn brief(event: GuestEvent) -> GuestEvent {
    match event {
        GuestEvent::Reset { source, count } => GuestEvent::Reset {
            source: cut(source, STAMP_NAME_MAX),
            count,
        },
        GuestEvent::PoweredOff => GuestEvent::PoweredOff,
        GuestEvent::Crashed { report, action } => GuestEvent::Crashed {
            report: cut(report, GUEST_REPORT_MAX),
            action,
        },
        GuestEvent::Stopped { report } => GuestEvent::Stopped {
            report: cut(report, GUEST_REPORT_MAX),
        },
    }
}

fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// The outcome of the watch, if there is one.
async fn watched(watch: &mut Option<Watch>) -> Outcome {
    match watch {
        Some(watch) => watch.await,
        None => std::future::pending().await,
    }
}

fn not_ready_within(deadline: Duration) -> Watch {
    Box::pin(async move {
        tokio::time::sleep(deadline).await;
        Outcome::Problem(format!("not ready within {} ms", deadline.as_millis()))
    })
}

/// It has answered, and is to end before `end`, like the answer within `deadline`.
fn not_ended(end: Instant, deadline: Duration) -> Watch {
    Box::pin(async move {
        tokio::time::sleep_until(end).await;
        Outcome::Problem(format!(
            "stopped, but did not end within {} ms",
            deadline.as_millis()
        ))
    })
}

/// Asks again and again; ends when an answer does not come.
fn watchdog(
    requests: Sender<Request>,
    stats: Arc<WatchdogStats>,
    interval: Duration,
    deadline: Duration,
) -> Watch {
    Box::pin(async move {
        loop {
            tokio::time::sleep(interval).await;
            let context = CancelContext::new().with_timeout(deadline);
            let asked = Instant::now();
            match requests.call_within(&context, Request::Ping, ()).await {
                Ok(()) => stats.answered(asked.elapsed()),
                // Its end is about to be seen. If it only closed its channels, it is as
                // useless as one that hangs.
                Err(RpcError::PeerGone) => tokio::time::sleep(deadline).await,
                Err(error) => {
                    return Outcome::Problem(format!(
                        "watchdog: no answer to a ping within {} ms ({error})",
                        deadline.as_millis()
                    ));
                }
            }
        }
    })
}

/// Has it asked to end; `end` is after `deadline`.
fn ending<F>(
    end: Instant,
    deadline: Duration,
    ask: impl FnOnce(CancelContext) -> F + Send + 'static,
) -> Watch
where
    F: Future<Output = Result<Outcome, RpcError>> + Send,
{
    Box::pin(async move {
        let context = CancelContext::new().with_deadline(end.into_std());
        match ask(context).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // A worker that dies instead is seen before this is over.
                tokio::time::sleep_until(end).await;
                Outcome::Problem(format!(
                    "did not stop within {} ms ({error})",
                    deadline.as_millis()
                ))
            }
        }
    })
}

#[cfg(test)]
mod tests;
