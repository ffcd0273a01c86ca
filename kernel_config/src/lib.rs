//! kernel_config
