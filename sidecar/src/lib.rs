//! The kernel of the processors that Linux has not booted.
//!
//! The boot shim calls it on the first processor of VTL2. It starts the processors that the
//! shim has chosen, each of which starts more, and returns when all wait for commands
//! ([`sidecar_defs`]). From then on each of them is alone: with its own page tables, stack and
//! pages, it executes one command after the other, the most important of which is to run its
//! VP of VTL0. It never uses SSE or x87 (its target is soft-float), so what VTL0 has there
//! stays in the processor.
//!
//! What it refuses: to serve an intercept, to schedule, to own a device. A processor that is
//! needed for more leaves the sidecar for Linux, for ever.

#![no_std]
#![forbid(unsafe_code)]

pub mod context;
pub mod map;
pub mod plan;
