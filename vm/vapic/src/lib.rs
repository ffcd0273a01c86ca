//! The local APIC that the host gives to VTL0, one per VP.
//!
//! A pure model: it touches no processor, no clock and no memory, so it is tested on the
//! build machine and could serve any hypervisor. Its parts:
//! - [`LocalApic`]: what only the VP's own CPU touches (`&mut`): registers, priorities,
//!   timer, start-up state. Accesses return an [`Effect`] that the owner carries out.
//! - [`Shared`]: what other VPs touch, without locks: requests on their way in, and where
//!   the APIC can be addressed. A post is never lost and causes at most one kick.
//! - [`deliver`] finds the APICs that a [`Message`] is for; [`assert_virtual_interrupt`]
//!   makes a message of VTL2's hypercall.
//!
//! How the owner uses it, for each entry into the guest:
//! 1. After an exit: [`Shared::leave`], then [`LocalApic::sync_eoi`] before anything that
//!    looks at the state (the guest may have ended an interrupt without an exit), and
//!    [`LocalApic::sync_cr8`].
//! 2. Serve the exit: [`LocalApic::read_msr`], [`LocalApic::write_msr`] and their kin (after
//!    [`LocalApic::collect`], so that the guest reads what has been requested); carry out
//!    the effect; [`Shared::publish`] the [`LocalApic::address`], which may have changed.
//! 3. [`LocalApic::collect`] what others have posted, [`LocalApic::poll_timer`].
//! 4. [`LocalApic::plan`] says what to inject and what to wait for. Load CR8 from
//!    [`LocalApic::cr8`], arm the host's timer with [`LocalApic::next_deadline`].
//! 5. [`Shared::enter`]; if it says no, go back to 3 (what the plan injects occupies the
//!    processor from then on). Halting in place of the guest is the same: a halted VP is
//!    entered when the plan injects something.
//!
//! Whoever posts and is told to kick makes the target's CPU exit. Between `enter` and the
//! guest a kick must stay pending (on SVM: GIF is clear).
//!
//! What it promises: no access by a guest panics, blocks or takes memory; a fault is an
//! [`MsrError`]. What it refuses, as the TLFS permits ("Virtual Interrupt Control", "Local
//! APIC"): SMIs, a change of the APIC id, and another place for the xAPIC page. There are
//! no focus processors, no EOI broadcast suppression, no remote reads; LINT pins are
//! pulses. Sections are those of the Intel SDM, volume 3A, chapter 11.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod access;
mod assist;
mod base;
mod bus;
mod icr;
mod local;
mod plan;
mod saved;
mod shared;
mod timer;
mod vectors;

#[cfg(test)]
mod tests;

pub use access::{Effect, MsrError, owns_msr};
pub use assist::EoiAssist;
pub use base::Mode;
pub use bus::{Apics, assert_virtual_interrupt, deliver};
pub use icr::{Destination, Message};
pub use local::{Collected, Config, LocalApic, Source, Startup};
pub use plan::{CpuState, Injection, Plan, Window};
pub use saved::{RestoreError, SavedApic, SavedTimer};
pub use shared::{Address, Shared, Word};
pub use timer::Rates;
pub use vectors::VectorSet;
