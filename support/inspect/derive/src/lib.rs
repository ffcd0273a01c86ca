//! `#[derive(Inspect)]`.

#![forbid(unsafe_code)]
