//! Typed channels inside and between the processes of the paravisor.

#![deny(unsafe_code)]
