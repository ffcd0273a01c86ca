//! What end-to-end tests are written with.
//!
//! A test describes a machine as a [`Scenario`], starts it, gets a [`TestVm`] and says
//! what it expects:
//!
//! ```no_run
//! use vmm_tests::Scenario;
//!
//! let mut vm = Scenario::release().vps(2).start();
//! assert_eq!(vm.topology().vps, [1, 2]);
//! ```
//!
//! It promises:
//! - the image, the host and QEMU are the real ones, built by `cargo xtask vmm-tests`, and
//!   what is asserted was seen on a console or in QEMU's exit status;
//! - tests share nothing, so they may run at the same time; each machine has a directory of
//!   its own for its consoles, which stays if the test fails and is named in the failure;
//! - no test passes or fails by how fast it was: waits end at events, the deadline only
//!   turns a hang into a failure that shows what was seen last.
//!
//! It refuses to skip: without images or QEMU a test fails and says what to do.
//!
//! Its functions panic, with the whole story, where a test cannot go on: a test then reads
//! without error handling. [`Image`] makes broken IGVM files out of the real one.

#![forbid(unsafe_code)]

mod artifacts;
mod guest_tests;
mod image;
mod program;
mod reports;
mod scenario;
mod tmk_image;

pub use artifacts::ARTIFACTS_VARIABLE;
pub use artifacts::Artifacts;
pub use artifacts::ArtifactsError;
pub use artifacts::GuestKernel;
pub use artifacts::initrd;
pub use artifacts::sidecar_kernel;
pub use guest_tests::GuestReport;
pub use guest_tests::GuestResult;
pub use guest_tests::GuestTests;
pub use guest_tests::plain_guest_tests;
pub use image::Image;
pub use reports::Memory;
pub use reports::Topology;
pub use scenario::Scenario;
pub use scenario::TestVm;
pub use scenario::diag_address;
pub use tmk_image::TmkImage;
