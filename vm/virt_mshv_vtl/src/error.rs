//! Errors.

use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::registers::HvRegisterName;
use rustix::io::Errno;
use thiserror::Error;

/// Why the partition cannot be had, or something cannot be done to it.
#[derive(Debug, Error)]
pub enum Error {
    /// A device of the kernel is not there.
    #[error("cannot open {path}: {error}")]
    Open {
        /// Which.
        path: &'static str,
        /// Why.
        error: Errno,
    },
    /// The kernel refuses.
    #[error("kernel: {what}: {error}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// Why.
        error: Errno,
    },
    /// The kernel found no register page when it started.
    #[error("kernel: there are no register pages, expected one for each CPU")]
    NoRegisterPage,
    /// The host refuses.
    #[error("hypercall {code:?}: {status:?}")]
    Hypercall {
        /// The hypercall.
        code: HypercallCode,
        /// What the host says.
        status: HvStatus,
    },
    /// The host refuses one of several registers.
    #[error("hypercall {code:?} for register {register:?}: {status:?}")]
    Register {
        /// The hypercall.
        code: HypercallCode,
        /// The first register that it refuses.
        register: HvRegisterName,
        /// What the host says.
        status: HvStatus,
    },
    /// More CPUs than the driver's files have room for.
    #[error("{0} VPs, expected at most {max}", max = u16::MAX)]
    TooManyVps(u32),
    /// CPUs are not in the order of VPs.
    #[error("CPU {cpu} is VP {vp}, expected the same number")]
    Order {
        /// CPU.
        cpu: u32,
        /// What it says.
        vp: u64,
    },
    /// The memory of the guest cannot be mapped.
    #[error(transparent)]
    Map(#[from] guest_memory::MapError),
    /// A message that contradicts itself.
    #[error("intercept message {message_type:#x}: {what} is {value:#x}")]
    Message {
        /// Its type.
        message_type: u32,
        /// What is wrong.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// An exit is ended that there was not.
    #[error("VP {vp} has not stopped at an intercept since its reset")]
    NotStopped {
        /// Which.
        vp: u32,
    },
    /// An event would push out another.
    #[error("VP {vp}: cannot inject vector {vector}: event {pending:#x} is pending")]
    EventPending {
        /// Which.
        vp: u32,
        /// What was to be injected.
        vector: u8,
        /// What is pending already.
        pending: u64,
    },
}

impl From<Error> for virt::Error {
    fn from(error: Error) -> Self {
        Self::Backend(Box::new(error))
    }
}
