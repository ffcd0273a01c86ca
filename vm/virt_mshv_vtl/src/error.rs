//! Errors.

use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::registers::HvRegisterName;
use rustix::io::Errno;
use sidecar_defs::CpuStatus;
use sidecar_defs::command::Command;
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
    /// A node of the sidecar is not what it should be.
    #[error("sidecar node at {control_page:#x}: {what} is {found:#x}, expected {expected}")]
    SidecarNode {
        /// Its control page.
        control_page: u64,
        /// What is wrong.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// A CPU of the sidecar is in another state than it can be.
    #[error("sidecar: VP {vp} is {status:?}, expected {expected}")]
    SidecarStatus {
        /// Which.
        vp: u32,
        /// Its state.
        status: CpuStatus,
        /// What it should be.
        expected: &'static str,
    },
    /// The sidecar's kernel has failed.
    #[error("sidecar: the kernel of VP {vp} has failed: {text}")]
    SidecarFailed {
        /// On which CPU.
        vp: u32,
        /// What it says.
        text: String,
    },
    /// The sidecar cannot do what it is asked.
    #[error("sidecar: VP {vp}: {command:?}: {text}")]
    SidecarCommand {
        /// Which.
        vp: u32,
        /// What it was asked.
        command: Command,
        /// What it says.
        text: String,
    },
    /// The sidecar does not answer.
    #[error("sidecar: VP {vp} has been {status:?} for {seconds} s")]
    SidecarSilent {
        /// Which.
        vp: u32,
        /// Its state.
        status: CpuStatus,
        /// For how long it was waited for.
        seconds: u64,
    },
    /// A thread cannot have the VP.
    #[error("VP {vp} is in the sidecar, expected its CPU to run Linux")]
    InSidecar {
        /// Which.
        vp: u32,
    },
    /// The VP runs on a thread.
    #[error("VP {vp} is not in the sidecar")]
    NotInSidecar {
        /// Which.
        vp: u32,
    },
    /// Linux cannot boot a CPU.
    #[error("CPU {cpu} cannot be brought online: {error}")]
    Online {
        /// Which.
        cpu: u32,
        /// What the kernel says.
        error: std::io::Error,
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
