//! The VM worker.

#![deny(unsafe_code)]
