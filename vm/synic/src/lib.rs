//! The synthetic interrupt controller of a VTL of a VP, and its synthetic timers.
//!
//! It extends the local APIC (crate `vapic`) by 16 sources ("SINTs"), each with a message
//! slot and 2048 event flags in pages of the guest, and by four timers. TLFS chapters
//! "Virtual Interrupt Control", "Inter-Partition Communication" and "Timers".
//!
//! A pure model: it touches no clock and no processor, and the guest's memory only through
//! [`GuestPages`]. Its parts:
//! - [`Synic`]: registers, message queues, events, timers. Whoever calls it holds whatever
//!   lock the owner has put around it; other VPs post through the same functions.
//!   Interrupts come back as [`Raised`]: the owner posts them to the VP's APIC.
//! - [`Connections`]: which connection of which VTL leads to which port, as data; among
//!   them the redirection of VTL0's connections to VTL2's SINT 7.
//! - [`DirectMessage`], [`DirectEvent`]: the hypercalls that need no connection.
//!
//! After each of the guest's ends of interrupt and of message, call
//! [`Synic::end_of_interrupt`] or let [`Synic::write_msr`] do it; arm the host's timer with
//! [`Synic::next_deadline`] and call [`Synic::poll`] then. Time is the partition's
//! reference time in units of 100 ns.
//!
//! What it promises: memory is bounded (16 queued messages of others, one intercept, one
//! message for each timer); the guest's pages may be anywhere, absent or written at any
//! moment, and nothing is believed of them but whether a slot is empty; no timer, however
//! short, asks for more than one wake-up per 100 µs.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod controller;
mod direct;
mod messages;
mod pages;
mod ports;
mod registers;
mod saved;
mod timer;

#[cfg(test)]
mod tests;

pub use controller::{Raised, Synic};
pub use direct::{DirectEvent, DirectMessage};
pub use messages::GUEST_MESSAGES;
pub use pages::{GuestPages, NotMapped};
pub use ports::{
    Connection, Connections, EventRoute, MessageRoute, Port, PortKind, REDIRECT_SINT, TargetVp,
};
pub use registers::{msr_of_register, owns_msr};
pub use saved::{RestoreError, SavedMessage, SavedSynic, SavedTimer};
pub use timer::SHORTEST_PERIOD;
pub use vapic::MsrError;
