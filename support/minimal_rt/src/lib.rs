//! minimal_rt
