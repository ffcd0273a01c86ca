//! What the paravisor does for its clients.

use crate::Status;
use diag_proto::diag::StartRequest;
use diag_proto::inspect::Node;
use diag_proto::inspect::Value;
use std::future::Future;
use std::time::Instant;

/// Which values a client may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visibility {
    /// All.
    Everything,
    /// Those that are marked safe: the client is the host of an isolated VM.
    Safe,
}

/// `InspectService.Inspect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InspectCall {
    /// Names separated by `/`; empty: the root. At most [`Limits::path_bytes`].
    ///
    /// [`Limits::path_bytes`]: crate::Limits::path_bytes
    pub path: String,
    /// How many levels below the path are wanted; `usize::MAX`: all.
    pub depth: usize,
    /// When the client wants its answer, complete or not. The server gives the handler
    /// [`Limits::inspect_grace`] more, for parts that did not answer in time.
    ///
    /// [`Limits::inspect_grace`]: crate::Limits::inspect_grace
    pub deadline: Option<Instant>,
    /// What the answer may contain. The server filters entries of directories once more;
    /// a single value it cannot judge.
    pub visibility: Visibility,
}

/// `InspectService.Update`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateCall {
    /// Names separated by `/`.
    pub path: String,
    /// The new value as text.
    pub value: String,
    /// When the client gives up; the server then drops the future.
    pub deadline: Option<Instant>,
}

/// What the server cannot do by itself. A method that is not implemented answers
/// `UNIMPLEMENTED`. Implementations write `async fn`.
///
/// A future is dropped when its client has gone or its deadline has passed. What must not
/// stop halfway belongs into a task of its own that the future waits for.
pub trait Handler: Send + Sync + 'static {
    /// Reads a part of the tree of live state.
    fn inspect(&self, call: InspectCall) -> impl Future<Output = Result<Node, Status>> + Send {
        let _ = call;
        missing("inspect")
    }

    /// Changes a value of the tree and returns what it is then.
    fn update(&self, call: UpdateCall) -> impl Future<Output = Result<Value, Status>> + Send {
        let _ = call;
        missing("update")
    }

    /// Starts a VM whose start was held back.
    fn start(&self, request: StartRequest) -> impl Future<Output = Result<(), Status>> + Send {
        let _ = request;
        missing("start")
    }

    /// Restarts the worker.
    fn restart(&self) -> impl Future<Output = Result<(), Status>> + Send {
        missing("restart")
    }

    /// Stops the VM's processors and devices.
    fn pause(&self) -> impl Future<Output = Result<(), Status>> + Send {
        missing("pause")
    }

    /// Lets them go on.
    fn resume(&self) -> impl Future<Output = Result<(), Status>> + Send {
        missing("resume")
    }

    /// Makes a process of the paravisor crash.
    fn crash(&self, pid: i32) -> impl Future<Output = Result<(), Status>> + Send {
        let _ = pid;
        missing("crash")
    }

    /// The state that a servicing would save.
    fn dump_saved_state(&self) -> impl Future<Output = Result<Vec<u8>, Status>> + Send {
        missing("dump saved state")
    }

    /// Has Linux boot a CPU that is in the sidecar, and returns when it is there. The text is
    /// why it has left the sidecar; none: it was not there.
    fn online_cpu(&self, cpu: u32) -> impl Future<Output = Result<Option<String>, Status>> + Send {
        let _ = cpu;
        missing("bring a CPU online")
    }

    /// Begins to power the machine off, and returns before it is off. The way: resolve the
    /// `shutdown` future of [`serve`](crate::serve), return, and go on when `serve` has
    /// returned: it delivers this request's answer first.
    fn power_off(&self) -> impl Future<Output = Result<(), Status>> + Send {
        missing("power off")
    }
}

async fn missing<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format_args!(
        "this paravisor cannot {what}"
    )))
}
