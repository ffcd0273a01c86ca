//! Tests, by what they compare with: the manual, the processor, and nothing (hostile).

mod faults;
mod hostile;
mod moves;
#[cfg(target_arch = "x86_64")]
mod native;
mod paging;
#[cfg(target_arch = "x86_64")]
mod same_as_processor;
mod strings;

use crate::testing::Machine;
use crate::{Outcome, emulate};

/// Where the device of [`machine`] is.
const DEVICE: u64 = 0x2000;

/// Two pages of memory, one of a device.
fn machine() -> Machine {
    Machine::new(DEVICE as usize, 0x1000)
}

/// Emulates an instruction that must be one.
fn run(machine: &mut Machine, bytes: &[u8]) -> Outcome {
    emulate(machine, bytes).expect("the instruction is emulated")
}
