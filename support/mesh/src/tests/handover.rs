//! Channel ends that move to other processes while messages are on their way.
//!
//! A process is simulated: to leave it an end is encoded, to arrive in another it is
//! decoded, and other steps happen in between. All that two real processes share, the
//! sockets, is real. Each step is atomic in the code too (it runs under the lock of the
//! channel, or is one system call), so trying all orders of steps tries all there is.

use super::Travelling;
use super::run;
use super::travel;
use crate::Receiver;
use crate::RecvError;
use crate::Rpc;
use crate::Sender;
use crate::channel;
use std::collections::HashMap;

/// Who sent it, and its number.
type Numbered = (char, u32);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Sends the next number.
    Send,
    /// Leaves the process.
    Depart,
    /// Reaches the next one.
    Arrive,
    /// Takes a message if there is one.
    Receive,
    /// Makes one more sender here.
    Fork,
}

use Step::Arrive;
use Step::Depart;
use Step::Fork;
use Step::Receive;
use Step::Send;

enum End<T> {
    Here(T),
    Travelling(Travelling),
    Lost,
}

impl<T: crate::Message> End<T> {
    fn depart(&mut self) {
        if let Self::Here(end) = std::mem::replace(self, Self::Lost) {
            *self = Self::Travelling(Travelling::depart(end));
        }
    }

    fn arrive(&mut self) {
        if let Self::Travelling(end) = std::mem::replace(self, Self::Lost) {
            *self = Self::Here(end.arrive());
        }
    }

    fn get(&mut self) -> &mut T {
        match self {
            Self::Here(end) => end,
            _ => panic!("not here"),
        }
    }
}

struct SenderActor {
    name: char,
    end: End<Sender<Numbered>>,
    forks: Vec<Sender<Numbered>>,
    next: u32,
}

struct World {
    senders: Vec<SenderActor>,
    receiver: End<Receiver<Numbered>>,
    received: Vec<Numbered>,
}

impl World {
    fn new(senders: usize) -> Self {
        let (sender, receiver) = channel();
        Self {
            senders: ('a'..)
                .take(senders)
                .map(|name| SenderActor {
                    name,
                    end: End::Here(sender.clone()),
                    forks: Vec::new(),
                    next: 0,
                })
                .collect(),
            receiver: End::Here(receiver),
            received: Vec::new(),
        }
    }

    /// Actor 0 is the receiver.
    fn step(&mut self, actor: usize, step: Step) {
        if actor == 0 {
            match step {
                Depart => self.receiver.depart(),
                Arrive => self.receiver.arrive(),
                _ => {
                    let message = self.receiver.get().try_recv().expect("an open channel");
                    self.received.extend(message);
                }
            }
            return;
        }
        let actor = &mut self.senders[actor - 1];
        match step {
            Depart => actor.end.depart(),
            Arrive => actor.end.arrive(),
            Fork => {
                let fork = actor.end.get().clone();
                actor.forks.push(fork);
            }
            _ => {
                let sent = actor.end.get().try_send((actor.name, actor.next));
                sent.expect("an open channel");
                actor.next += 1;
            }
        }
    }

    /// Takes the rest, and checks that all came once and in order.
    fn check(mut self) {
        let mut expected = HashMap::new();
        for mut actor in std::mem::take(&mut self.senders) {
            // What others send for it later comes later.
            for fork in &actor.forks {
                fork.try_send((actor.name, actor.next)).expect("open");
                actor.next += 1;
            }
            expected.insert(actor.name, actor.next);
        }
        let receiver = self.receiver.get();
        loop {
            match receiver.try_recv() {
                Ok(Some(message)) => self.received.push(message),
                Err(RecvError::Closed) => break,
                other => panic!("{other:?}"),
            }
        }
        let mut next = HashMap::new();
        for (name, number) in self.received {
            let next = next.entry(name).or_insert(0);
            assert_eq!(number, *next, "order of {name}");
            *next += 1;
        }
        next.retain(|_, count| *count > 0);
        expected.retain(|_, count| *count > 0);
        assert_eq!(next, expected);
    }
}

/// All orders in which the actors can do their steps.
fn for_all_orders(actors: &[&[Step]], mut check: impl FnMut(&[usize])) -> u32 {
    fn extend(
        actors: &[&[Step]],
        done: &mut [usize],
        order: &mut Vec<usize>,
        check: &mut dyn FnMut(&[usize]),
    ) -> u32 {
        let mut count = 0;
        for actor in 0..actors.len() {
            if done[actor] < actors[actor].len() {
                done[actor] += 1;
                order.push(actor);
                count += extend(actors, done, order, check);
                order.pop();
                done[actor] -= 1;
            }
        }
        if count == 0 {
            check(order);
            count = 1;
        }
        count
    }
    extend(
        actors,
        &mut vec![0; actors.len()],
        &mut Vec::new(),
        &mut check,
    )
}

fn try_all(actors: &[&[Step]]) -> u32 {
    for_all_orders(actors, |order| {
        let mut world = World::new(actors.len() - 1);
        let mut done = vec![0; actors.len()];
        for &actor in order {
            world.step(actor, actors[actor][done[actor]]);
            done[actor] += 1;
        }
        world.check();
    })
}

#[test]
fn both_ends_may_cross_three_processes_at_once() {
    let receiver = [Depart, Arrive, Depart, Arrive];
    let sender = [Send, Depart, Arrive, Send, Depart, Arrive, Send];
    assert_eq!(try_all(&[&receiver, &sender, &[Send]]), 3_960);
}

#[test]
fn a_receiver_may_leave_between_any_two_messages() {
    let receiver = [Receive, Depart, Arrive, Receive, Depart, Arrive, Receive];
    let sender = [Send, Send, Depart, Arrive, Send];
    assert_eq!(try_all(&[&receiver, &sender, &[Send]]), 10_296);
}

#[test]
fn a_receiver_that_stays_keeps_the_order_of_senders_that_leave() {
    let receiver = [Receive, Receive, Receive];
    let sender = [Send, Send, Depart, Arrive, Send, Send];
    assert_eq!(try_all(&[&receiver, &sender, &[Send, Send]]), 4_620);
}

#[test]
fn senders_may_be_forked_and_sent_on_everywhere() {
    let receiver = [Depart, Arrive, Receive];
    let one = [Send, Fork, Depart, Arrive, Fork];
    let other = [Depart, Arrive, Send];
    assert_eq!(try_all(&[&receiver, &one, &other]), 9_240);
}

#[test]
fn threads_may_send_while_the_receiver_moves() {
    run(async {
        const COUNT: u32 = 3_000;
        let (sender, mut receiver) = channel::<Numbered>();
        let threads: Vec<_> = ['a', 'b']
            .map(|name| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    run(async move {
                        for number in 0..COUNT {
                            sender.send((name, number)).await.expect("sent");
                        }
                    });
                })
            })
            .into_iter()
            .collect();
        drop(sender);
        let mut next = HashMap::new();
        let mut received = 0;
        while let Ok((name, number)) = receiver.recv().await {
            let next = next.entry(name).or_insert(0);
            assert_eq!(number, *next, "order of {name}");
            *next += 1;
            received += 1;
            if received % 100 == 0 {
                receiver = travel(receiver);
            }
        }
        assert_eq!(received, 2 * COUNT);
        for thread in threads {
            thread.join().expect("a thread");
        }
    });
}

#[test]
fn calls_are_answered_while_the_receiver_moves() {
    const CALLS: u32 = 500;
    run(async {
        let (sender, mut receiver) = channel::<Rpc<u32, u32>>();
        let callee = tokio::spawn(async move {
            let mut open = Vec::new();
            for _ in 0..CALLS {
                let rpc = receiver.recv().await.expect("a call");
                receiver = travel(receiver);
                // Some are answered much later, from a process that has moved on.
                if rpc.input() % 3 == 0 {
                    open.push(rpc);
                } else {
                    rpc.handle(async |n| n + 1).await;
                }
            }
            for rpc in open {
                rpc.handle(async |n| n + 1).await;
            }
        });
        let remote = travel(sender.clone());
        let mut calls = Vec::new();
        for n in 0..CALLS {
            let sender = if n % 2 == 0 { &sender } else { &remote };
            let sender = sender.clone();
            calls.push(tokio::spawn(async move { sender.call(|rpc| rpc, n).await }));
        }
        drop((sender, remote));
        for (n, call) in calls.into_iter().enumerate() {
            let answer = call.await.expect("a task").expect("an answer");
            assert_eq!(answer, n as u32 + 1);
        }
        callee.await.expect("a task");
    });
}

#[test]
fn a_call_may_be_passed_on() {
    run(async {
        let (sender, receiver) = channel::<Rpc<u32, u32>>();
        let mut receiver = travel(receiver);
        let callee = async {
            let rpc = receiver.recv().await.expect("a call");
            let rpc = travel(travel(rpc));
            rpc.handle(async |n| n + 1).await;
        };
        let (answer, ()) = tokio::join!(sender.call(|rpc| rpc, 1), callee);
        assert_eq!(answer.expect("an answer"), 2);
    });
}

#[test]
fn calls_travel_in_queues_and_answers() {
    run(async {
        let (sender, receiver) = channel::<Rpc<(), Rpc<u32, u32>>>();
        // The answer of the outer call is itself a call.
        let caller = tokio::spawn(async move { sender.call(|rpc| rpc, ()).await });
        tokio::task::yield_now().await;
        let mut receiver = travel(receiver);
        let outer = receiver.recv().await.expect("a call");
        let (inner_sender, mut inner_receiver) = channel::<Rpc<u32, u32>>();
        let inner = tokio::spawn(async move { inner_sender.call(|rpc| rpc, 1).await });
        outer.complete(inner_receiver.recv().await.expect("a call"));
        let rpc = caller.await.expect("a task").expect("an answer");
        rpc.handle(async |n| n + 1).await;
        assert_eq!(inner.await.expect("a task").expect("an answer"), 2);
    });
}

#[test]
fn messages_lost_with_a_receiver_end_its_calls() {
    run(async {
        let (sender, receiver) = channel::<Rpc<u32, u32>>();
        let mut receiver = travel(receiver);
        let call = |n| {
            let sender = sender.clone();
            tokio::spawn(async move { sender.call(|rpc| rpc, n).await })
        };
        let first = call(1);
        let open = receiver.recv().await.expect("a call");
        let second = call(2);
        tokio::task::yield_now().await;
        // The first call keeps the connection alive; the second is in the socket.
        drop(receiver);
        assert!(second.await.expect("a task").is_err());
        open.complete(5);
        assert_eq!(first.await.expect("a task").expect("an answer"), 5);
    });
}
