//! Waiting for the answers that come later, and cutting them to what was asked.

use crate::Entry;
use crate::Error;
use crate::Limits;
use crate::Node;
use crate::Sensitivity;
use crate::request::Context;
use crate::request::Deferred;
use crate::request::Slot;
use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// What a tree has answered at once, and the answers that it still waits for.
#[must_use = "it holds the answer"]
pub struct Evaluation {
    slot: Slot,
    max: Sensitivity,
    left: Limits,
    update: bool,
}

impl Evaluation {
    pub(crate) fn new(slot: Slot, max: Sensitivity, left: Limits, update: bool) -> Self {
        Self {
            slot,
            max,
            left,
            update,
        }
    }

    /// The answer without what comes later: that is [`Error::Unresolved`].
    pub fn now(self) -> Node {
        let cx = Context::new(self.max, self.left, None);
        let nothing = &mut Vec::new().into_iter();
        finish(self.slot, nothing, &cx)
    }

    /// The answer, with all that comes before `deadline` ends. A future that never ends
    /// ([`std::future::pending`]) is no deadline.
    pub async fn resolve(mut self, deadline: impl Future<Output = ()>) -> Node {
        let mut pending = Vec::new();
        collect(&mut self.slot, &mut pending);
        let mut answers: Vec<Option<Node>> = pending.iter().map(|_| None).collect();
        let mut deadline = pin!(deadline);
        poll_fn(|task| {
            let mut waiting = false;
            for (future, answer) in pending.iter_mut().zip(&mut answers) {
                if answer.is_none() {
                    match future.as_mut().poll(task) {
                        Poll::Ready(node) => *answer = Some(node),
                        Poll::Pending => waiting = true,
                    }
                }
            }
            // Answers that are there count, even if they have come in the last moment.
            if waiting {
                deadline.as_mut().poll(task)
            } else {
                Poll::Ready(())
            }
        })
        .await;
        let cx = Context::new(self.max, self.left, self.update.then_some(""));
        finish(self.slot, &mut answers.into_iter(), &cx)
    }
}

/// Moves the futures out, in the order of a walk through the tree.
fn collect(slot: &mut Slot, pending: &mut Vec<Deferred>) {
    match slot {
        Slot::Deferred { answer, .. } => {
            let taken: Deferred = Box::pin(std::future::pending());
            pending.push(std::mem::replace(answer, taken));
        }
        Slot::Dir(entries) => entries
            .iter_mut()
            .for_each(|(.., slot)| collect(slot, pending)),
        Slot::Missing | Slot::Ignored | Slot::Node(_) => {}
    }
}

/// The same walk, with the answers in place of the futures.
fn finish(slot: Slot, answers: &mut dyn Iterator<Item = Option<Node>>, cx: &Context<'_>) -> Node {
    match slot {
        Slot::Missing | Slot::Ignored => Node::Failed(Error::NotFound),
        Slot::Node(node) => node,
        Slot::Dir(entries) => Node::Dir(
            entries
                .into_iter()
                .map(|(name, sensitivity, slot)| Entry {
                    name,
                    sensitivity,
                    node: finish(slot, answers, cx),
                })
                .collect(),
        ),
        Slot::Deferred { levels, .. } => match answers.next().flatten() {
            Some(node) => admit(node, levels, cx),
            None => Node::Failed(Error::Unresolved),
        },
    }
}

/// Cuts an answer to levels, limits and sensitivity. Its sender is not trusted with them.
fn admit(node: Node, levels: u32, cx: &Context<'_>) -> Node {
    match node {
        Node::Value(value) if !cx.charge(0, value.cost()) => Node::Failed(Error::Truncated),
        Node::Dir(_) if levels == 0 => Node::Unevaluated,
        Node::Dir(entries) => {
            let mut admitted = Vec::new();
            for entry in entries {
                if entry.sensitivity > cx.max {
                    continue;
                }
                let room = cx.charge(1, entry.name.len());
                admitted.push(Entry {
                    node: if room {
                        admit(entry.node, levels - 1, cx)
                    } else {
                        Node::Failed(Error::Truncated)
                    },
                    ..entry
                });
                if !room {
                    break;
                }
            }
            Node::Dir(admitted)
        }
        Node::Failed(mut error) => {
            if let Error::Unreachable(text) | Error::Refused(text) = &mut error
                && !cx.charge(0, text.len())
            {
                error = Error::Truncated;
            }
            Node::Failed(error)
        }
        node => node,
    }
}
