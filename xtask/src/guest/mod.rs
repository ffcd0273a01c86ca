//! The guest: a kernel of Debian, as Debian ships it, and a small initrd of ours.

pub(crate) mod image;
pub(crate) mod initrd;
pub(crate) mod kernel;
