//! boot_events
