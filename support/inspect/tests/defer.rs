//! Answers that come later, from peers that are not trusted.

use inspect::Entry;
use inspect::Error;
use inspect::Inspect;
use inspect::Limits;
use inspect::Node;
use inspect::Query;
use inspect::RemoteRequest;
use inspect::Sensitivity;
use inspect::Value;
use inspect::adhoc;
use std::future::pending;
use std::future::ready;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

#[derive(Inspect)]
struct Worker {
    #[inspect(safe)]
    vps: Vec<u32>,
    secret: u32,
}

type Ask = (Vec<u8>, oneshot::Sender<Vec<u8>>);

/// A worker behind an encoded channel, as another process would be.
fn start_worker() -> mpsc::UnboundedSender<Ask> {
    let (sender, mut requests) = mpsc::unbounded_channel::<Ask>();
    tokio::spawn(async move {
        let worker = Worker {
            vps: vec![10, 11],
            secret: 7,
        };
        while let Some((request, reply)) = requests.recv().await {
            let request: RemoteRequest = postcard::from_bytes(&request).unwrap();
            let node = request.answer(&worker).await;
            _ = reply.send(postcard::to_stdvec(&node).unwrap());
        }
    });
    sender
}

fn control(worker: mpsc::UnboundedSender<Ask>) -> impl Inspect {
    adhoc(move |request| {
        request
            .respond()
            .sensitivity(Sensitivity::Safe)
            .field("here", &1u32)
            .child("vm", |request| {
                let worker = worker.clone();
                request.defer(async move |query: Query| {
                    let (reply, answer) = oneshot::channel();
                    let query = postcard::to_stdvec(&query).unwrap();
                    _ = worker.send((query, reply));
                    match answer.await {
                        Ok(answer) => postcard::from_bytes(&answer).unwrap(),
                        Err(_) => Node::Failed(Error::Unreachable("worker is gone".into())),
                    }
                });
            });
    })
}

#[tokio::test]
async fn a_tree_spans_processes() {
    let root = control(start_worker());
    let at = |path: &str| inspect::inspect(path, 10, pending(), &root);
    assert_eq!(
        at("").await.to_string(),
        "{here: 1, vm: {vps: {0: 10, 1: 11}, secret: 7}}"
    );
    assert_eq!(at("vm/vps/1").await.to_string(), "11");
    assert_eq!(at("vm/x").await, Node::Failed(Error::NotFound));
    let shallow = inspect::inspect("", 1, pending(), &root).await;
    assert_eq!(shallow.to_string(), "{here: 1, vm: {vps: _, secret: 7}}");
    let names = inspect::inspect("", 0, pending(), &root).await;
    assert_eq!(names.to_string(), "{here: 1, vm: _}");
    let safe = Query::new("").max_sensitivity(Sensitivity::Safe);
    let safe = safe.answer(&root).await;
    assert_eq!(safe.to_string(), "{here: 1, vm: {vps: {0: 10, 1: 11}}}");
}

#[tokio::test]
async fn a_dead_peer_is_named() {
    let (sender, requests) = mpsc::unbounded_channel();
    drop(requests);
    let node = inspect::inspect("", 10, pending(), &control(sender)).await;
    assert_eq!(node.to_string(), "{here: 1, vm: <error: worker is gone>}");
}

#[tokio::test]
async fn what_is_late_is_unresolved_and_the_rest_is_there() {
    let root = adhoc(|request| {
        request
            .respond()
            .child("slow", |request| request.defer(|_| pending()))
            .child("quick", |request| {
                request.defer(async |_| {
                    tokio::task::yield_now().await;
                    Node::Value(Value::from(1u32))
                });
            })
            .field("here", &2u32);
    });
    // The deadline ends long after the other one has answered.
    let (end, deadline) = oneshot::channel::<()>();
    tokio::spawn(async move {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        _ = end.send(());
    });
    let deadline = async { _ = deadline.await };
    let node = inspect::inspect("", 10, deadline, &root).await;
    assert_eq!(
        node.to_string(),
        "{slow: <error: no answer in time>, quick: 1, here: 2}"
    );
}

#[tokio::test]
async fn an_answer_that_is_there_wins_over_the_deadline() {
    let root = adhoc(|request| request.defer(|_| ready(Node::Value(Value::from(1u32)))));
    let node = inspect::inspect("", 1, ready(()), &root).await;
    assert_eq!(node.as_u64(), Some(1));
}

#[tokio::test]
async fn an_update_reaches_the_other_process() {
    let root = adhoc(|request| {
        request.defer(async |query: Query| {
            let target = adhoc(|request| {
                request.respond().child("x", |request| {
                    request.update(1u32, |text| text.parse::<u32>());
                });
            });
            query.answer(&target).await
        });
    });
    let result = inspect::update("x", "5", pending(), &root).await;
    assert_eq!(result, Ok(Value::from(5u32)));
    let result = inspect::update("y", "5", pending(), &root).await;
    assert_eq!(result, Err(Error::NotFound));
}

fn entry(name: &str, sensitivity: Sensitivity, node: Node) -> Entry {
    Entry {
        name: name.into(),
        node,
        sensitivity,
    }
}

#[test]
fn an_answer_is_cut_to_what_was_asked() {
    let answer = || {
        let leaf = || Node::Value(Value::from(1u32));
        Node::Dir(vec![
            entry("secret", Sensitivity::Sensitive, leaf()),
            entry(
                "deep",
                Sensitivity::Safe,
                Node::Dir(vec![entry("x", Sensitivity::Safe, leaf())]),
            ),
            entry("a", Sensitivity::Safe, leaf()),
            entry("b", Sensitivity::Safe, leaf()),
            entry("c", Sensitivity::Safe, leaf()),
        ])
    };
    let root = adhoc(|request| request.defer(|_| ready(answer())));
    let query = Query::new("")
        .depth(0)
        .max_sensitivity(Sensitivity::Safe)
        .limits(Limits {
            nodes: 3,
            bytes: 1000,
        });
    let node = futures_now(query.answer(&root));
    assert_eq!(
        node.to_string(),
        "{deep: _, a: 1, b: 1, c: <error: truncated: a limit of the query was reached>}"
    );
}

fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(future)
}
