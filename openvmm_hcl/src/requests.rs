//! What the control process is asked to do, by whomever.

use mesh::Rpc;
use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;

/// A request to the control process.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Start a worker that is held back, stopped or failed. Answered when it is ready.
    Start(Rpc<StartOptions, Result<(), Refusal>>),
    /// Stop the worker. Answered when it has ended.
    Stop(Rpc<(), Result<(), Refusal>>),
    /// Replace the worker by a new one, which goes on from its state. Answered when the
    /// new one is ready.
    Restart(Rpc<(), Result<(), Refusal>>),
    /// Make a process of the paravisor crash.
    Crash(Rpc<i32, Result<(), Refusal>>),
    /// End the paravisor in order, which ends the machine.
    PowerOff(Rpc<(), ()>),
}

/// Changes to a worker's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOptions {
    /// Variables and their values.
    pub environment: Vec<(String, String)>,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// Not in this state.
    #[error("{0}")]
    State(String),
    /// There is no such process of the paravisor.
    #[error("{0}")]
    NotFound(String),
    /// It was tried, and failed.
    #[error("{0}")]
    Failed(String),
}
