//! igvm_builder
