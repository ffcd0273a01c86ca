//! openhcl_boot
