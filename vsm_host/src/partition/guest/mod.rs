//! The guest in VTL0: how a VP goes there and comes back, and what its exits mean.
//!
//! VTL2 enters the guest by a VTL return. The VP comes back to VTL2 when a physical
//! interrupt is there, which is VTL2's, or when the guest does what VTL2 has to answer; a
//! message in the VP assist page says what that was. All else the host answers itself.
//!
//! What the VTLs of a VP share (TLFS "Virtual Secure Mode", "VTL state"): general-purpose
//! registers other than RSP, CR2, debug addresses, and x87, SSE and AVX state, which the
//! host never touches. The rest is in the control block of each.

mod exits;
pub mod lapic;
mod message;
pub(crate) mod msrs;
pub(crate) mod protections;
pub(crate) mod registers;
mod switch;

/// What the host knows of a VP's guest beside its registers.
#[derive(Default)]
pub struct GuestVp {
    /// TSC_AUX of the VTL that does not run: control blocks do not have it.
    pub(crate) other_tsc_aux: u64,
    /// An INIT has come since the register page was filled: it shows what was before.
    pub(crate) page_is_outdated: bool,
}

/// How the VP's CPU goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It runs the block of the VTL that the VP is in.
    Run,
    /// The guest has nothing to do: the CPU waits for an interrupt or an NMI.
    Idle,
}

#[cfg(test)]
mod tests;
