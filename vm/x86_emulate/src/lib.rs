//! Emulates one instruction of the guest: one that touched a device's registers in memory,
//! or a string instruction on an I/O port. The processor stops at such an instruction
//! without having done any of it, and tells neither operand nor value.
//!
//! [`emulate`] decodes the instruction (iced-x86), finds its operands as the processor
//! would (segments, address size, page tables), does the accesses through the [`Cpu`] of
//! its caller, and leaves registers and flags as the instruction would.
//!
//! What it knows: the instructions with a memory operand that compilers and operating
//! systems use on device registers. Moves of all widths and kinds, among them the 128-bit
//! moves of SSE; two-operand arithmetic, bit tests, exchanges, with LOCK; conditional
//! moves; string instructions with REP, port ones among them; PUSH and POP.
//!
//! What it promises:
//! - The guest is not trusted. No instruction, state or memory content panics, loops
//!   without bound or takes memory: a long REP stops after [`REPEAT_LIMIT`] elements and
//!   continues when the guest runs again.
//! - An instruction takes effect as a whole or not at all; of a REP, each element does. A
//!   fault of the guest is an [`Outcome`], with the state of before.
//! - A device sees naturally aligned accesses of 1, 2, 4 or 8 bytes, each once.
//! - Anything else is an [`Unsupported`] that says what was there, so that the VM can stop
//!   with a report instead of going on wrongly.
//!
//! What it leaves out: alignment checks (#AC), protection keys, data breakpoints, shadow
//! stacks, and access by instructions that no driver uses on a device (x87, AVX, …).
//! Sections named in comments are those of the AMD64 Architecture Programmer's Manual.
//!
//! No crate that we know does this: `mshv`'s and Cloud Hypervisor's emulators are parts of
//! their VMMs and know some ten instructions.

#![cfg_attr(not(test), forbid(unsafe_code))]

mod address;
mod alu;
mod cpu;
mod error;
mod execute;
mod fetch;
mod memory;
mod mode;
mod operand;
pub mod paging;
mod sse;
mod string;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;

pub use cpu::{Access, Cpu, Gpr, SegmentName, TranslateError, Width};
pub use error::{EmulateError, Exception, Reason, Unsupported};
pub use string::REPEAT_LIMIT;

use error::Stop;
use execute::Emulator;

/// Longest instruction.
pub const MAX_INSTRUCTION: usize = 15;

/// What became of the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and RIP is behind it. The caller ends the interrupt shadow of an STI or a
    /// load of SS, if there was one.
    Done,
    /// It is done, as [`Outcome::Done`] says, and RFLAGS.TF asks for a #DB behind it (or
    /// behind the element, of a REP). The caller raises it with DR6.BS set.
    SingleStep,
    /// Only a part of a REP is done, or a locked access lost too many races: RIP stays, and
    /// the guest continues where it was when it runs again.
    Interrupted,
    /// It faults. The caller raises the exception; RIP stays.
    Exception(Exception),
}

/// Emulates the instruction at RIP. `bytes` are what the hypervisor has read there: perhaps
/// less than the whole instruction (the rest is read through `cpu`), perhaps more.
pub fn emulate<C: Cpu>(cpu: &mut C, bytes: &[u8]) -> Result<Outcome, EmulateError<C::Error>> {
    let mode = mode::Mode::of(cpu);
    let rip = cpu.rip();
    let mut fetched = fetch::Fetched::new(bytes);
    let result = fetch::decode(cpu, mode, &mut fetched)
        .and_then(|instruction| Emulator::new(cpu, mode, instruction).run());
    match result {
        Ok(outcome) => Ok(outcome),
        Err(Stop::Exception(exception)) => Ok(Outcome::Exception(exception)),
        Err(Stop::Retry) => Ok(Outcome::Interrupted),
        Err(Stop::Cpu(error)) => Err(EmulateError::Cpu(error)),
        Err(Stop::Unsupported(reason)) => Err(EmulateError::Unsupported(Box::new(
            fetched.report(mode, rip, reason),
        ))),
    }
}
