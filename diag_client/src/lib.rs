//! The client of the diagnostics service, and the list of VMs that run here.

#![deny(unsafe_code)]
