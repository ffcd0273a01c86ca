//! Failures of requests.

pub use diag_proto::ttrpc::Code;
use std::fmt;

/// Why a request failed: goes to the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// What kind of failure.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl Status {
    /// A failure of kind `code`.
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }

    /// This server cannot do that at all.
    pub fn unimplemented(message: impl fmt::Display) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// The request itself is wrong.
    pub fn invalid_argument(message: impl fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// What the request names does not exist.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// It cannot be done in this state.
    pub fn failed_precondition(message: impl fmt::Display) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// A limit has been reached.
    pub fn resource_exhausted(message: impl fmt::Display) -> Self {
        Self::new(Code::ResourceExhausted, message)
    }

    /// It cannot be done now; later it may.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// A defect.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.message, self.code)
    }
}

impl std::error::Error for Status {}

impl From<Status> for diag_proto::ttrpc::Status {
    fn from(status: Status) -> Self {
        Self {
            code: status.code as i32,
            message: status.message,
        }
    }
}
