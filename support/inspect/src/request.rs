//! How a type answers.

use crate::Error;
use crate::Format;
use crate::Inspect;
use crate::Limits;
use crate::Node;
use crate::Query;
use crate::Sensitivity;
use crate::Unit;
use crate::Value;
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// Name of the entry that stands for all that a limit has cut off.
const TRUNCATED_NAME: &str = "...";

/// An answer that comes later.
pub(crate) type Deferred = Pin<Box<dyn Future<Output = Node> + Send>>;

/// Where an answer goes.
pub(crate) enum Slot {
    /// The name that is looked for has not come yet.
    Missing,
    /// There is nothing to show.
    Ignored,
    Node(Node),
    Dir(Vec<(String, Sensitivity, Slot)>),
    Deferred {
        answer: Deferred,
        /// Levels of directories that it may have, itself included.
        levels: u32,
    },
}

impl Slot {
    /// What it stays when a request is dropped.
    pub(crate) fn unanswered() -> Self {
        Self::failed(Error::Unresolved)
    }

    pub(crate) fn failed(error: Error) -> Self {
        Self::Node(Node::Failed(error))
    }
}

/// What is the same for all requests of a query.
pub(crate) struct Context<'a> {
    pub(crate) max: Sensitivity,
    pub(crate) update: Option<&'a str>,
    nodes: Cell<u32>,
    bytes: Cell<u32>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(max: Sensitivity, limits: Limits, update: Option<&'a str>) -> Self {
        Self {
            max,
            update,
            nodes: Cell::new(limits.nodes),
            bytes: Cell::new(limits.bytes),
        }
    }

    /// What the limits have left.
    pub(crate) fn left(&self) -> Limits {
        Limits {
            nodes: self.nodes.get(),
            bytes: self.bytes.get(),
        }
    }

    /// Takes from the limits. If they do not suffice, takes all that is left, so that
    /// nothing small slips in behind something large that did not fit.
    pub(crate) fn charge(&self, nodes: u32, bytes: usize) -> bool {
        let nodes = self.nodes.get().checked_sub(nodes);
        let bytes = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.bytes.get().checked_sub(bytes));
        match (nodes, bytes) {
            (Some(nodes), Some(bytes)) => {
                self.nodes.set(nodes);
                self.bytes.set(bytes);
                true
            }
            _ => {
                self.nodes.set(0);
                self.bytes.set(0);
                false
            }
        }
    }
}

/// A question to one object. It is answered by one of its methods; dropping it leaves
/// [`Error::Unresolved`].
pub struct Request<'a> {
    cx: &'a Context<'a>,
    slot: &'a mut Slot,
    /// What is left of the path; only `/` and nothing mean that this object is the target.
    path: &'a str,
    /// Levels of directories that may be shown.
    levels: u32,
    /// Of the entry that this object is.
    level: Sensitivity,
    format: Format,
    /// The answer goes to the directory that is already in the slot.
    merge: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn root(
        cx: &'a Context<'a>,
        slot: &'a mut Slot,
        path: &'a str,
        levels: u32,
        level: Sensitivity,
    ) -> Self {
        Self {
            cx,
            slot,
            path,
            levels,
            level,
            format: Format::PLAIN,
            merge: false,
        }
    }

    /// Answers with a value.
    pub fn value(self, value: impl Into<Value>) {
        self.leaf(|request| match request.cx.update {
            Some(_) => Node::Failed(Error::Immutable),
            None => request.charged(value.into()),
        });
    }

    /// Answers with a value that can be changed: `set` gets the text of a new one and
    /// returns the value that it has become, or why not.
    pub fn update<V: Into<Value>, E: fmt::Display>(
        self,
        current: impl Into<Value>,
        set: impl FnOnce(&str) -> Result<V, E>,
    ) {
        self.leaf(|request| match request.cx.update {
            None => request.charged(current.into()),
            Some(text) => match set(text) {
                Ok(value) => request.charged(value.into()),
                Err(error) => Node::Failed(Error::Refused(error.to_string())),
            },
        });
    }

    /// Answers that there is no answer.
    pub fn fail(self, error: Error) {
        self.leaf(|_| Node::Failed(error));
    }

    /// Answers that there is nothing: the entry is left out.
    pub fn ignore(self) {
        if !self.merge {
            *self.slot = Slot::Ignored;
        }
    }

    /// Answers with a directory.
    pub fn respond(self) -> Response<'a> {
        let (name, rest) = split(self.path);
        let mode = if let Some(name) = name {
            if !self.merge {
                *self.slot = Slot::Missing;
            }
            Mode::Find { name, rest }
        } else if self.merge {
            Mode::List
        } else if self.cx.update.is_some() {
            *self.slot = Slot::failed(Error::Immutable);
            Mode::Skip
        } else if self.levels == 0 {
            *self.slot = Slot::Node(Node::Unevaluated);
            Mode::Skip
        } else {
            *self.slot = Slot::Dir(Vec::new());
            Mode::List
        };
        Response {
            path: self.path,
            cx: self.cx,
            slot: self.slot,
            mode,
            levels: self.levels,
            inherited: self.level,
            level: Sensitivity::Unspecified,
            format: self.format,
        }
    }

    /// Answers later: `ask` gets the question that is left, typically sends it to another
    /// process and returns the future of its answer. Errors on the way are
    /// [`Error::Unreachable`]. The answer is not trusted: it is cut to the limits, the
    /// depth and the sensitivity of the query.
    ///
    /// Nothing is asked if the depth ends here. A deferred answer cannot be merged into
    /// another directory ([`Response::merge`]) and is then left out.
    pub fn defer<F, A>(self, ask: F)
    where
        F: FnOnce(Query) -> A,
        A: Future<Output = Node> + Send + 'static,
    {
        if self.merge {
            return;
        }
        let at_target = split(self.path).0.is_none();
        *self.slot = if at_target && self.levels == 0 && self.cx.update.is_none() {
            Slot::Node(Node::Unevaluated)
        } else {
            let query = Query::remote(self.cx, self.path, self.levels, self.level);
            Slot::Deferred {
                answer: Box::pin(ask(query)),
                levels: self.levels,
            }
        };
    }

    /// Lets numbers that have no format of their own be printed with this one. Containers
    /// pass it on to their items.
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    fn leaf(self, node: impl FnOnce(&Self) -> Node) {
        if self.merge {
            return;
        }
        let node = if split(self.path).0.is_some() {
            Node::Failed(Error::NotADirectory)
        } else {
            node(&self)
        };
        *self.slot = Slot::Node(node);
    }

    fn charged(&self, mut value: Value) -> Node {
        if !self.cx.charge(0, value.cost()) {
            return Node::Failed(Error::Truncated);
        }
        if value.is_number() && value.format == Format::PLAIN {
            value.format = self.format;
        }
        Node::Value(value)
    }
}

/// The first name of a path, and the rest.
fn split(path: &str) -> (Option<&str>, &str) {
    let path = path.trim_start_matches('/');
    match path.split_once('/') {
        Some((name, rest)) => (Some(name), rest),
        None if path.is_empty() => (None, ""),
        None => (Some(path), ""),
    }
}

/// What a directory has to do.
#[derive(Clone, Copy)]
enum Mode<'a> {
    /// Only the entry of this name counts.
    Find { name: &'a str, rest: &'a str },
    /// All entries count.
    List,
    /// None does.
    Skip,
}

/// A directory as an answer: its methods add entries, in the order in which they are shown.
/// An entry that nobody asked for costs nothing but the call.
pub struct Response<'a> {
    cx: &'a Context<'a>,
    slot: &'a mut Slot,
    mode: Mode<'a>,
    path: &'a str,
    levels: u32,
    inherited: Sensitivity,
    level: Sensitivity,
    format: Format,
}

impl Response<'_> {
    /// Sets who may see the entries that follow. Without it they are
    /// [`Sensitivity::Unspecified`], whatever the directory is: to be safe must be said of
    /// each entry on the way.
    pub fn sensitivity(&mut self, level: Sensitivity) -> &mut Self {
        self.level = level;
        self
    }

    /// Gives the entries that follow the level of the directory itself. For containers,
    /// whose items are what the container was declared to be.
    pub fn inherit_sensitivity(&mut self) -> &mut Self {
        self.level = self.inherited;
        self
    }

    /// Adds an entry.
    pub fn field(&mut self, name: &str, value: &(impl Inspect + ?Sized)) -> &mut Self {
        self.child(name, |request| value.inspect(request))
    }

    /// Adds an entry whose numbers are printed in this way.
    pub fn formatted(
        &mut self,
        name: &str,
        format: Format,
        value: &(impl Inspect + ?Sized),
    ) -> &mut Self {
        self.child(name, |request| value.inspect(request.format(format)))
    }

    /// Adds an entry whose numbers are hexadecimal.
    pub fn hex(&mut self, name: &str, value: &(impl Inspect + ?Sized)) -> &mut Self {
        self.formatted(name, Format::HEX, value)
    }

    /// Adds an entry whose numbers have a unit.
    pub fn unit(&mut self, name: &str, unit: Unit, value: &(impl Inspect + ?Sized)) -> &mut Self {
        self.formatted(name, Format::unit(unit), value)
    }

    /// Adds a number that only ever grows.
    pub fn counter(&mut self, name: &str, value: &(impl Inspect + ?Sized)) -> &mut Self {
        self.formatted(name, Format::PLAIN.counter(), value)
    }

    /// Adds the text of a value.
    pub fn display(&mut self, name: &str, value: &(impl fmt::Display + ?Sized)) -> &mut Self {
        self.child(name, |request| request.value(value.to_string()))
    }

    /// Adds the debug text of a value.
    pub fn debug(&mut self, name: &str, value: &(impl fmt::Debug + ?Sized)) -> &mut Self {
        self.child(name, |request| request.value(format!("{value:?}")))
    }

    /// Adds an entry that `answer` answers for. It is only called if the entry counts.
    ///
    /// A `/` in the name, which no path could name, becomes `_`, and so does an empty one.
    pub fn child(&mut self, name: &str, answer: impl FnOnce(Request<'_>)) -> &mut Self {
        if self.level > self.cx.max {
            return self;
        }
        match self.mode {
            Mode::Skip => {}
            Mode::Find { name: wanted, rest } => {
                if matches!(self.slot, Slot::Missing) && addressable(name) == wanted {
                    self.find(rest, answer);
                }
            }
            Mode::List => self.list(&addressable(name), answer),
        }
        self
    }

    /// Adds the entries of another directory to this one.
    pub fn merge(&mut self, other: &(impl Inspect + ?Sized)) -> &mut Self {
        if !matches!(self.mode, Mode::Skip) {
            other.inspect(Request {
                cx: self.cx,
                slot: self.slot,
                path: self.path,
                levels: self.levels,
                level: self.inherited,
                format: self.format,
                merge: true,
            });
        }
        self
    }

    fn find(&mut self, rest: &str, answer: impl FnOnce(Request<'_>)) {
        *self.slot = Slot::unanswered();
        answer(Request {
            cx: self.cx,
            slot: self.slot,
            path: rest,
            levels: self.levels,
            level: self.level,
            format: self.format,
            merge: false,
        });
        // The name was here, so no later entry is meant.
        if matches!(self.slot, Slot::Missing | Slot::Ignored) {
            *self.slot = Slot::failed(Error::NotFound);
        }
    }

    fn list(&mut self, name: &str, answer: impl FnOnce(Request<'_>)) {
        let Slot::Dir(entries) = &mut *self.slot else {
            return;
        };
        let mut slot = Slot::unanswered();
        if self.cx.charge(1, name.len()) {
            answer(Request {
                cx: self.cx,
                slot: &mut slot,
                path: "",
                levels: self.levels.saturating_sub(1),
                level: self.level,
                format: self.format,
                merge: false,
            });
            if !matches!(slot, Slot::Ignored) {
                entries.push((name.to_owned(), self.level, slot));
            }
        } else if entries
            .last()
            .is_none_or(|(name, ..)| name != TRUNCATED_NAME)
        {
            let failed = Slot::failed(Error::Truncated);
            entries.push((TRUNCATED_NAME.to_owned(), Sensitivity::Safe, failed));
        }
    }
}

fn addressable(name: &str) -> Cow<'_, str> {
    if name.is_empty() {
        Cow::Borrowed("_")
    } else if name.contains('/') {
        Cow::Owned(name.replace('/', "_"))
    } else {
        Cow::Borrowed(name)
    }
}
