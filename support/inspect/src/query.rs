//! What is asked: a path, a depth, limits, perhaps a new value.

use crate::Error;
use crate::Evaluation;
use crate::Inspect;
use crate::MAX_LEVELS;
use crate::Node;
use crate::Sensitivity;
use crate::Value;
use crate::request::Context;
use crate::request::Request;
use crate::request::Slot;
use serde::Deserialize;
use serde::Serialize;
use std::future::Future;

/// Bounds of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most nodes.
    pub nodes: u32,
    /// Most bytes of names, texts and other values.
    pub bytes: u32,
}

impl Default for Limits {
    /// Enough for a machine of 64 processors, and an encoded size well below 4 MiB.
    fn default() -> Self {
        Self {
            nodes: 20_000,
            bytes: 1 << 20,
        }
    }
}

/// A question about a tree. It is a serde type: what [`Request::defer`] hands out travels
/// to another process, which answers with [`Query::answer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    path: String,
    depth: u32,
    update: Option<String>,
    max: Sensitivity,
    limits: Limits,
    /// Of the entry that the root of the asked tree is; what containers give their items.
    inherited: Sensitivity,
}

/// A [`Query`] on its way to another process.
pub type RemoteRequest = Query;

impl Query {
    /// Asks for all that is at `path`: names separated by `/`; empty is the root.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            depth: MAX_LEVELS,
            update: None,
            max: Sensitivity::Sensitive,
            limits: Limits::default(),
            inherited: Sensitivity::Unspecified,
        }
    }

    /// How many levels of directories below that at the path are evaluated: with 0, the
    /// directory itself is, and the directories in it are [`Node::Unevaluated`]. Values
    /// above [`MAX_LEVELS`] mean that.
    pub fn depth(mut self, depth: u32) -> Self {
        self.depth = depth.min(MAX_LEVELS);
        self
    }

    /// The highest level that is shown; everything without it.
    pub fn max_sensitivity(mut self, max: Sensitivity) -> Self {
        self.max = max;
        self
    }

    /// Other limits than the default.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Asks for a change: what is at the path shall get this value. The answer is the
    /// value that it has then, or [`Node::Failed`].
    pub fn with_update(mut self, value: impl Into<String>) -> Self {
        self.update = Some(value.into());
        self
    }

    /// Where in the tree.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it asks for a change.
    pub fn is_update(&self) -> bool {
        self.update.is_some()
    }

    /// Asks `root` without waiting for anything. What was deferred is in the result, which
    /// no longer needs `root`.
    pub fn evaluate(&self, root: &dyn Inspect) -> Evaluation {
        let cx = Context::new(self.max, self.limits, self.update.as_deref());
        let mut slot = Slot::unanswered();
        let levels = self.depth.min(MAX_LEVELS) + 1;
        root.inspect(Request::root(
            &cx,
            &mut slot,
            &self.path,
            levels,
            self.inherited,
        ));
        Evaluation::new(slot, self.max, cx.left(), self.update.is_some())
    }

    /// Answers with what `root` says, and waits for all that it defers; a deadline is the
    /// matter of the process that asks.
    pub fn answer(&self, root: &dyn Inspect) -> impl Future<Output = Node> + Send + use<> {
        let evaluation = self.evaluate(root);
        evaluation.resolve(std::future::pending())
    }

    /// Like [`Query::answer`], but what `root` defers must come before `deadline` ends.
    pub fn answer_within<D: Future<Output = ()>>(
        &self,
        root: &dyn Inspect,
        deadline: D,
    ) -> impl Future<Output = Node> + use<D> {
        let evaluation = self.evaluate(root);
        evaluation.resolve(deadline)
    }

    /// The question that is left for whoever answers for the rest of the path.
    pub(crate) fn remote(
        cx: &Context<'_>,
        path: &str,
        levels: u32,
        inherited: Sensitivity,
    ) -> Self {
        Self {
            path: path.to_owned(),
            depth: levels.saturating_sub(1),
            update: cx.update.map(str::to_owned),
            max: cx.max,
            limits: cx.left(),
            inherited,
        }
    }
}

/// Everything at `path`, `depth` levels deep (see [`Query::depth`]). What has not answered
/// when `deadline` ends is [`Error::Unresolved`].
pub fn inspect<D: Future<Output = ()>>(
    path: &str,
    depth: u32,
    deadline: D,
    root: &dyn Inspect,
) -> impl Future<Output = Node> + use<D> {
    Query::new(path).depth(depth).answer_within(root, deadline)
}

/// Changes the value at `path`, and returns what it is then.
///
/// # Errors
///
/// What [`Error`] says: among others [`Error::Immutable`] for what cannot be changed and
/// [`Error::Refused`] with the reason.
pub fn update<D: Future<Output = ()>>(
    path: &str,
    value: &str,
    deadline: D,
    root: &dyn Inspect,
) -> impl Future<Output = Result<Value, Error>> + use<D> {
    let answer = Query::new(path)
        .with_update(value)
        .answer_within(root, deadline);
    async { answer.await.into_updated() }
}

impl Node {
    /// The result of a query with [`Query::with_update`].
    ///
    /// # Errors
    ///
    /// The reason if the value was not changed.
    pub fn into_updated(self) -> Result<Value, Error> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Failed(error) => Err(error),
            // Whoever answered so did not change anything.
            Self::Dir(_) | Self::Unevaluated => Err(Error::Immutable),
        }
    }
}
