//! The diagnostics service of the paravisor.

#![deny(unsafe_code)]
