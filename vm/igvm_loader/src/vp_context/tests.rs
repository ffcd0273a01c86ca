//! A context for tests.

use super::*;

/// A context of 64-bit code that a VP can begin in.
pub(crate) fn long_mode() -> HvInitialVpContext {
    let mut context = InitialContext::reset().state;
    context.cs.attributes = 0xa09b.into();
    context.cr0 = 0x8000_0011;
    context.cr4 = 0x20;
    context.efer = 0xd01;
    context
}
