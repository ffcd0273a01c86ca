//! Channels inside of one process.

use super::run;
use super::travel;
use crate::CancelContext;
use crate::CancelReason;
use crate::Fd;
use crate::RecvError;
use crate::Rpc;
use crate::RpcError;
use crate::SendError;
use crate::TrySendError;
use crate::channel;
use crate::channel_with_capacity;
use crate::oneshot;
use serde::Deserialize;
use serde::Serialize;
use serde::Serializer;
use std::time::Duration;

/// Can be sent, but not encoded.
#[derive(Debug, PartialEq, Deserialize)]
struct Stubborn(u32);

impl Serialize for Stubborn {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no"))
    }
}

#[test]
fn nothing_is_encoded_inside_a_process() {
    let (sender, mut receiver) = channel();
    sender.try_send(Stubborn(1)).expect("sent");
    // Not even if another sender is elsewhere.
    let _remote = travel(sender.clone());
    sender.try_send(Stubborn(2)).expect("sent");
    assert_eq!(receiver.try_recv().expect("open"), Some(Stubborn(1)));
    assert_eq!(receiver.try_recv().expect("open"), Some(Stubborn(2)));
    assert_eq!(receiver.try_recv().expect("open"), None);
}

#[test]
fn a_message_that_cannot_travel_is_an_error_of_its_sender() {
    let (sender, receiver) = channel();
    let mut receiver = travel(receiver);
    let result = sender.try_send(Stubborn(1));
    assert!(matches!(
        result,
        Err(TrySendError::Failed(SendError::Encode(_)))
    ));
    assert_eq!(receiver.try_recv().expect("open"), None);
}

#[test]
fn a_full_queue_refuses_and_gives_the_message_back() {
    for remote in [false, true] {
        let (sender, receiver) = channel_with_capacity::<(u32, Vec<u8>)>(2);
        let mut receiver = if remote { travel(receiver) } else { receiver };
        let mut count = 0;
        let unsent = loop {
            match sender.try_send((count, vec![0; 1000])) {
                Ok(()) => count += 1,
                Err(TrySendError::Full(unsent)) => break unsent,
                Err(error) => panic!("{error}"),
            }
        };
        assert!((2..1000).contains(&count), "{count} messages queued");
        let (first, _) = receiver.try_recv().expect("open").expect("a message");
        assert_eq!(first, 0);
        sender.try_send(unsent).expect("space");
        for expected in 1..=count {
            let (number, _) = receiver.try_recv().expect("open").expect("a message");
            assert_eq!(number, expected);
        }
    }
}

#[test]
fn sending_waits_for_space() {
    run(async {
        for remote in [false, true] {
            let (sender, receiver) = channel_with_capacity(1);
            let mut receiver = if remote { travel(receiver) } else { receiver };
            let task = tokio::spawn(async move {
                for number in 0..2000_u32 {
                    sender.send((number, vec![0_u8; 500])).await.expect("sent");
                }
            });
            for expected in 0..2000 {
                let (number, _) = receiver.recv().await.expect("a message");
                assert_eq!(number, expected);
            }
            task.await.expect("a task");
            assert!(matches!(receiver.recv().await, Err(RecvError::Closed)));
        }
    });
}

#[test]
fn a_sender_without_pause_leaves_other_tasks_their_turns() {
    run(async {
        const COUNT: u32 = 200;
        for remote in [false, true] {
            let (sender, receiver) = channel();
            let mut receiver = if remote { travel(receiver) } else { receiver };
            for number in 0..COUNT {
                sender.try_send(number).expect("sent");
            }
            let other = tokio::spawn(async {});
            while receiver.recv().await.expect("a message") < COUNT - 1 {
                if other.is_finished() {
                    break;
                }
            }
            assert!(other.is_finished());
        }
    });
}

#[test]
fn senders_learn_that_the_receiver_is_gone() {
    run(async {
        for remote in [false, true] {
            let (sender, receiver) = channel_with_capacity(1);
            let receiver = if remote { travel(receiver) } else { receiver };
            let other = travel(sender.clone());
            let closed = {
                let sender = sender.clone();
                tokio::spawn(async move { sender.closed().await })
            };
            tokio::task::yield_now().await;
            assert!(!closed.is_finished());
            drop(receiver);
            closed.await.expect("a task").expect("closed");
            for sender in [sender, other] {
                assert!(matches!(sender.send(1).await, Err(SendError::Closed)));
            }
        }
    });
}

#[test]
fn a_oneshot_carries_one_message() {
    run(async {
        let (sender, receiver) = oneshot();
        sender.send(1).expect("sent");
        assert_eq!(receiver.await.expect("a message"), 1);
        let (sender, receiver) = oneshot();
        travel(sender).send(2).expect("sent");
        assert_eq!(travel(receiver).await.expect("a message"), 2);
        let (sender, receiver) = oneshot::<u32>();
        drop(sender);
        assert!(matches!(receiver.await, Err(RecvError::Closed)));
    });
}

#[test]
fn descriptors_and_channel_ends_need_a_channel() {
    let fd = Fd(std::fs::File::open("/dev/null").expect("a file").into());
    assert!(postcard::to_stdvec(&fd).is_err());
    let (sender, receiver) = channel::<u32>();
    assert!(postcard::to_stdvec(&sender).is_err());
    assert!(postcard::to_stdvec(&receiver).is_err());
    assert!(postcard::from_bytes::<Fd>(&[0]).is_err());
    sender.try_send(1).expect("still open");
}

#[test]
fn a_receiver_is_sent_once() {
    let (sender, receiver) = channel::<u32>();
    let arrived = crate::codec::encode(&receiver, None, 0);
    assert!(arrived.is_ok());
    assert!(matches!(
        crate::codec::encode(&receiver, None, 0),
        Err(crate::EncodeError::AlreadySent { what: "receiver" })
    ));
    drop(arrived);
    assert!(matches!(
        sender.try_send(1),
        Err(TrySendError::Failed(SendError::Closed))
    ));
}

#[test]
fn cancellation_reaches_children_and_not_parents() {
    run(async {
        let parent = CancelContext::new();
        let child = parent.child();
        let grandchild = child.child();
        child.cancel();
        assert_eq!(grandchild.cancelled().await, CancelReason::Cancelled);
        assert_eq!(child.child().reason(), Some(CancelReason::Cancelled));
        assert_eq!(parent.reason(), None);
    });
}

#[test]
fn the_earlier_deadline_counts() {
    run(async {
        let parent = CancelContext::new().with_timeout(Duration::from_millis(1));
        let child = parent.with_timeout(Duration::from_secs(1000));
        assert_eq!(child.deadline(), parent.deadline());
        assert_eq!(child.cancelled().await, CancelReason::DeadlineExceeded);
        let result = child.run(std::future::pending::<()>()).await;
        assert_eq!(result, Err(CancelReason::DeadlineExceeded));
    });
}

#[test]
fn a_handler_can_end_with_its_caller() {
    run(async {
        for remote in [false, true] {
            let (sender, receiver) = channel::<Rpc<(), ()>>();
            let mut receiver = if remote { travel(receiver) } else { receiver };
            let context = CancelContext::new();
            let call = sender.call_within(&context, |rpc| rpc, ());
            let handle = async {
                let rpc = receiver.recv().await.expect("a call");
                context.cancel();
                rpc.handle_while_wanted(async |()| std::future::pending().await)
                    .await;
            };
            let (result, ()) = tokio::join!(call, handle);
            assert!(matches!(
                result,
                Err(RpcError::Cancelled(CancelReason::Cancelled))
            ));
        }
    });
}

#[test]
fn a_dropped_call_future_cancels_the_call() {
    run(async {
        for remote in [false, true] {
            let (sender, receiver) = channel::<Rpc<(), ()>>();
            let mut receiver = if remote { travel(receiver) } else { receiver };
            let call = tokio::spawn(async move { sender.call(|rpc| rpc, ()).await });
            let rpc = receiver.recv().await.expect("a call");
            call.abort();
            assert_eq!(rpc.context().cancelled().await, CancelReason::Cancelled);
        }
    });
}
