//! The processor and the platform, as the suites see them. Bare-metal only.

pub mod console;
pub mod descriptors;
pub mod entry;
pub mod hypercall;
pub mod memory;
pub mod probe;
pub mod real_mode;
pub mod vps;
