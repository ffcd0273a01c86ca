//! The diagnostics service of the paravisor: what `ohcldiag` talks to.
//!
//! [`serve`] answers ttrpc requests on control connections, and hands out numbered data
//! connections for streams of bytes (the kernel's log, files, input and output of
//! processes). What it can do by itself it does: ping, the log, files, processes. What
//! concerns the VM or the worker goes through [`Handler`], which the paravisor implements.
//!
//! * Promises: service, method and field numbers are OpenHCL's, so its clients work; an
//!   unknown service or method is answered `UNIMPLEMENTED`; a message that is too long is
//!   answered with an error and the connection goes on; whatever peers do, memory, tasks,
//!   descriptors and processes are bounded by [`Limits`]; a peer that does not read only
//!   stops itself.
//! * Refuses: authority. Whoever reaches the sockets is an administrator. On an isolated
//!   VM, where the host is not one, [`Exposure::SafeInspect`] leaves nothing but the
//!   reading of values that are marked safe.
//!
//! Everything runs on the caller's tokio runtime, which must have I/O and time enabled.
//! One thread is enough: nothing here blocks but short reads of local files and `fork`.

#![deny(unsafe_code)]

mod call;
mod connection;
mod data;
mod files;
mod handler;
mod limits;
mod process;
mod safe;
mod server;
mod service;
mod stats;
mod status;
mod sys;
mod tasks;

pub use byte_stream::Listener;
pub use handler::Handler;
pub use handler::InspectCall;
pub use handler::UpdateCall;
pub use handler::Visibility;
pub use limits::Limits;
pub use server::Listeners;
pub use server::ServeError;
pub use server::serve;
pub use stats::Counter;
pub use stats::Gauge;
pub use stats::ServerStats;
pub use status::Code;
pub use status::Status;

use std::path::PathBuf;

/// Whom the server trusts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exposure {
    /// Clients are administrators: all services.
    #[default]
    Everything,
    /// The host of an isolated VM: only the reading of values that are marked safe. There
    /// are no other services and no data connections, as if this server had none.
    SafeInspect,
}

/// How to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Bounds on what peers can make the server hold.
    pub limits: Limits,
    /// Whom the server trusts.
    pub exposure: Exposure,
    /// The device that gives out the kernel's log.
    pub kernel_log: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            exposure: Exposure::default(),
            kernel_log: "/dev/kmsg".into(),
        }
    }
}
