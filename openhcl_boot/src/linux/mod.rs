//! What the kernel is started with: command line, device tree, boot parameters.

pub mod boot_params;
pub mod command_line;
pub mod device_tree;
mod devices;
