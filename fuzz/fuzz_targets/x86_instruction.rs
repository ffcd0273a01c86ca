//! Instructions that a guest makes the emulator execute, on any state, through any page
//! tables. `x86_emulate::testing::run` says how the input is read.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| x86_emulate::testing::run(data));
