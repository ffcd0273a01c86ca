//! The configuration of the paravisor: types, rules, messages.

#![forbid(unsafe_code)]
