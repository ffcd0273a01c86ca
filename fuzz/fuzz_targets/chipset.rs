//! The devices that a guest finds: any accesses, in any order, at any time. Beside the
//! machine lives one that was restored from its saved state and must do the same;
//! `chipset::testing::run` says how the input is read.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| chipset::testing::run(data));
