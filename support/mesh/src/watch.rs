//! Descriptors that the runtime watches.
//!
//! The only unsafe code of the crate, because tokio cannot know by itself that a
//! descriptor stays open as long as it is watched.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What keeps a descriptor open and the same until it is dropped.
pub(crate) trait Owner: AsRawFd {}

impl Owner for OwnedFd {}
impl Owner for Arc<OwnedFd> {}

/// Lets the runtime of this thread watch `descriptor`.
pub(crate) fn register<T: Owner>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    // SAFETY: the descriptor must stay open, and the same, until the registration ends.
    // The `AsyncFd` owns its owner, and nothing here mutates what is inside of one.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    Ok(registered?)
}
