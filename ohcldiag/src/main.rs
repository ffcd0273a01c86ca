//! `ohcldiag`: asks a running paravisor.

#![deny(unsafe_code)]
fn main() {}
