//! Errors.

use thiserror::Error;

/// Why something cannot be done to a partition or a VP.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such VP.
    #[error("VP {vp} does not exist: there are {count}")]
    NoSuchVp {
        /// What was asked for.
        vp: u32,
        /// How many there are.
        count: u32,
    },
    /// A thread has it.
    #[error("VP {vp} is already bound to a thread")]
    Bound {
        /// Which.
        vp: u32,
    },
    /// It is no remote VP.
    #[error("VP {vp} is not remote: a thread can bind it")]
    NotRemote {
        /// Which.
        vp: u32,
    },
    /// An instruction that cannot be ended this way: it needs an emulator.
    #[error("instruction at {rip:#x} of VP {vp} is not simple: it must be emulated")]
    NotSimple {
        /// Of which VP.
        vp: u32,
        /// Where.
        rip: u64,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] guest_memory::Error),
    /// What is below says no.
    #[error(transparent)]
    Backend(Box<dyn std::error::Error + Send + Sync>),
}
