//! Files that QEMU gives the machine (fw_cfg), read by DMA.

#![deny(unsafe_code)]
