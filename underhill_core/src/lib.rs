//! The VM worker: the process that runs the guest.
//!
//! The paravisor process starts it (persona [`PERSONA`]), gives it [`Parameters`] over
//! mesh and asks it through [`Request`]s. The worker loads the guest that the image
//! carries, runs its VPs on threads of their own, serves its devices, says what becomes of
//! it, answers the watchdog and inspections, and hands its state over when it is restarted.
//! An image without a guest has a worker all the same, which does the rest.
//!
//! * Promises: [`Event::Ready`] comes after everything that it was given was found usable;
//!   one thread answers everything, so an answer to [`Request::Ping`] means that the worker
//!   as a whole is alive; it ends with code 0 after [`Request::Stop`], after it has
//!   handed over, and when the paravisor process has gone.
//! * Refuses: a decision about its own life. It is not restarted by itself and reads no
//!   configuration: all it knows was given to it.
//! * What it is given is checked again where it could be out of date: a saved state of
//!   another version is refused.

pub mod clock;
mod guest;
pub mod protocol;
pub mod saved_state;
mod test_hooks;
mod vm;
mod worker;

pub use protocol::Event;
pub use protocol::PERSONA;
pub use protocol::Parameters;
pub use protocol::Request;
pub use worker::main;

use inspect::Format;
use inspect::Inspect;
use inspect::Unit;

/// What mesh has moved between this process and others.
#[derive(Debug, Clone, Copy)]
pub struct MeshTraffic;

impl Inspect for MeshTraffic {
    fn inspect(&self, request: inspect::Request<'_>) {
        let stats = mesh::stats();
        let bytes = Format::unit(Unit::Bytes).counter();
        request
            .respond()
            .counter("packets_sent", &stats.packets_sent)
            .formatted("bytes_sent", bytes, &stats.bytes_sent)
            .counter("packets_received", &stats.packets_received)
            .formatted("bytes_received", bytes, &stats.bytes_received)
            .counter("large_messages", &stats.large_messages)
            .counter("queue_full", &stats.queue_full)
            .counter("calls", &stats.calls)
            .counter("refused", &stats.refused);
    }
}
