//! The whole boot, over a machine made of memory.
