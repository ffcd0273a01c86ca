//! The one program of VTL2's initrd.
//!
//! Every process of VTL2 is this file, started under different names: the name is the
//! *persona*. One static binary instead of several saves RAM that the image would
//! otherwise hold several times, and there is no shared library that could be replaced.
//!
//! Promises: the name alone decides what runs; a wrong one is an error that lists the
//! right ones. Refuses: options, defaults, and any work of its own.

#![forbid(unsafe_code)]

mod persona;

use persona::Persona;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Persona::from_argv0(std::env::args_os().next().as_deref()) {
        Ok(Persona::UnderhillInit) => underhill_init::main(),
        Ok(Persona::OpenvmmHcl) => openvmm_hcl::main(),
        Ok(Persona::UnderhillVm) => underhill_core::main(),
        Err(error) => {
            eprintln!("underhill_entry: {error}");
            ExitCode::FAILURE
        }
    }
}
