//! Deadlines and cancellation.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;
use thiserror::Error;
use tokio::sync::Notify;

/// Why work should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CancelReason {
    /// Somebody called [`CancelContext::cancel`], or does not wait for the answer any more.
    #[error("cancelled")]
    Cancelled,
    /// The deadline is over.
    #[error("deadline exceeded")]
    DeadlineExceeded,
}

/// Whether some work is still wanted, and until when.
///
/// A child is cancelled with its parent, and its deadline is never later. A clone is the
/// same context.
#[derive(Debug, Clone, Default)]
pub struct CancelContext {
    node: Arc<Node>,
    deadline: Option<Instant>,
}

#[derive(Debug, Default)]
struct Node {
    cancelled: AtomicBool,
    notify: Notify,
    children: Mutex<Vec<Weak<Node>>>,
}

impl CancelContext {
    /// A context without deadline that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A context that can be cancelled without its parent.
    pub fn child(&self) -> Self {
        let node = Arc::new(Node::default());
        let mut children = lock(&self.node.children);
        if children.len() == children.capacity() {
            children.retain(|child| child.strong_count() > 0);
            // Space for as many again, so that the next search pays off.
            let live = children.len();
            children.reserve(live + 1);
        }
        children.push(Arc::downgrade(&node));
        drop(children);
        // Either the parent's canceller saw the child, or the child sees the flag.
        if self.node.cancelled.load(Ordering::SeqCst) {
            node.cancel();
        }
        Self {
            node,
            deadline: self.deadline,
        }
    }

    /// A child that ends at `deadline`, or at the parent's if that is earlier.
    #[must_use]
    pub fn with_deadline(&self, deadline: Instant) -> Self {
        let mut child = self.child();
        child.deadline = Some(self.deadline.map_or(deadline, |own| own.min(deadline)));
        child
    }

    /// A child that ends after `timeout`, or at the parent's deadline if that is earlier.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.with_deadline(deadline),
            None => self.child(),
        }
    }

    /// When the work ends at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Cancels this context and its children.
    pub fn cancel(&self) {
        self.node.cancel();
    }

    /// Why the work should stop, if it should.
    pub fn reason(&self) -> Option<CancelReason> {
        if self.node.cancelled.load(Ordering::SeqCst) {
            Some(CancelReason::Cancelled)
        } else if self.deadline.is_some_and(|end| end <= Instant::now()) {
            Some(CancelReason::DeadlineExceeded)
        } else {
            None
        }
    }

    /// Waits until the work should stop.
    ///
    /// A context with a deadline needs a tokio runtime with a clock.
    pub async fn cancelled(&self) -> CancelReason {
        let mut notified = pin!(self.node.notify.notified());
        notified.as_mut().enable();
        if let Some(reason) = self.reason() {
            return reason;
        }
        match self.deadline {
            None => notified.await,
            Some(deadline) => {
                if tokio::time::timeout_at(deadline.into(), notified)
                    .await
                    .is_err()
                {
                    return CancelReason::DeadlineExceeded;
                }
            }
        }
        CancelReason::Cancelled
    }

    /// Runs `work` until it is done or should stop; what is done first counts.
    ///
    /// # Errors
    /// Why it was stopped.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, CancelReason> {
        let mut work = pin!(work);
        let mut cancelled = pin!(self.cancelled());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            cancelled.as_mut().poll(cx).map(Err)
        })
        .await
    }
}

impl Node {
    fn cancel(&self) {
        // A list instead of recursion: a chain of children may be long.
        let mut rest = self.cancel_one();
        while let Some(child) = rest.pop() {
            if let Some(child) = child.upgrade() {
                rest.extend(child.cancel_one());
            }
        }
    }

    fn cancel_one(&self) -> Vec<Weak<Node>> {
        self.cancelled.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
        std::mem::take(&mut *lock(&self.children))
    }
}

/// Locks; a panic of another holder does not make the state wrong here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
