//! What can go wrong between a client and a VM.

use crate::VmAddress;
use diag_proto::ttrpc::Code;
use inspect::printable;
use std::io;
use std::time::Duration;

/// What can go wrong between a client and a VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at the address.
    #[error("{address}: no VM listens there: {source}")]
    NoVm {
        /// Where.
        address: VmAddress,
        /// Why not.
        source: io::Error,
    },
    /// Something is at the address, but the connection cannot be made.
    #[error("{address}: cannot connect: {source}")]
    Connect {
        /// Where.
        address: VmAddress,
        /// Why not.
        source: io::Error,
    },
    /// The helper is there, but nothing in the VM takes the connection: the VM boots, has
    /// ended, or has no diagnostics service.
    #[error("{address}: the VM does not take connections at vsock port {port}")]
    NotListening {
        /// Where.
        address: VmAddress,
        /// Which port.
        port: u32,
    },
    /// What is at the address does not speak hybrid vsock.
    #[error("{address}: not a hybrid vsock: it answered {answer:?}, expected \"OK <port>\"")]
    NotHybridVsock {
        /// Where.
        address: VmAddress,
        /// The begin of what it said.
        answer: String,
    },
    /// No answer in time.
    #[error("{what}: no answer in {} ms", timeout.as_millis())]
    TimedOut {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The VM closed the connection instead of answering.
    #[error("{what}: the VM closed the connection")]
    Closed {
        /// What was asked.
        what: String,
    },
    /// The connection broke.
    #[error("{what}: {source}")]
    Io {
        /// What was asked.
        what: String,
        /// How it broke.
        source: io::Error,
    },
    /// The answer breaks the protocol.
    #[error("{what}: bad answer: {reason}")]
    Protocol {
        /// What was asked.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The VM answered that it cannot or will not.
    #[error("{what}: {} ({})", printable(message), code_name(*code))]
    Status {
        /// What was asked.
        what: String,
        /// One of [`Code`].
        code: i32,
        /// The VM's reason, as it came.
        message: String,
    },
    /// A node of the tree could not be read or changed.
    #[error("{path}: {}", printable(&source.to_string()))]
    Node {
        /// Its path.
        path: String,
        /// Why.
        source: inspect::Error,
    },
}

impl Error {
    /// Whether there is no VM, or none that can be talked to.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::NoVm { .. }
                | Self::Connect { .. }
                | Self::NotListening { .. }
                | Self::NotHybridVsock { .. }
        )
    }

    /// Whether time ran out, here or in the VM.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Status { code, .. } => *code == Code::DeadlineExceeded as i32,
            Self::Node { source, .. } => *source == inspect::Error::Unresolved,
            _ => false,
        }
    }

    /// The code of the VM's answer, if it answered with a failure.
    pub fn status(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Code::try_from(*code).ok(),
            _ => None,
        }
    }
}

fn code_name(code: i32) -> String {
    match Code::try_from(code) {
        Ok(code) => format!("{code:?}"),
        Err(_) => format!("code {code}"),
    }
}
