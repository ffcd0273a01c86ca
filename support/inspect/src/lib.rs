//! A tree of live state, addressed by path, across processes.

#![forbid(unsafe_code)]
