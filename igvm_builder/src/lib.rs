//! Packs the parts of the paravisor into one IGVM file, and reads such files back.
//!
//! An IGVM file is a list of instructions for the host: which memory the VM needs, which
//! pages hold what, where the host's own parameters belong, and the registers that the
//! first processor starts with. `vsm_host` and Hyper-V carry them out; then the boot shim
//! runs and everything else is its business. This crate therefore decides where things
//! are in VTL2's memory, and the boot shim learns it from one page (`ShimParamsRaw`).
//!
//! What it promises:
//! - The same inputs give the same bytes, wherever and whenever it runs. Nothing but the
//!   manifest and the contents of the resources enters the file: no path, no time.
//! - No two parts overlap, and all of them lie inside the memory that the manifest asks
//!   for; otherwise an error names both parties or the sizes.
//! - Offsets, sizes and magic numbers come from `loader_defs`, which the boot shim reads
//!   too; page tables come from `page_table`.
//! - The `igvm` crate's parser reads every file back without loss.
//!
//! What it refuses: to interpret what it packs. The kernel and the boot shim are ELF
//! files of which only the loadable segments and the entry count; no relocation is
//! applied (the shim relocates itself). A guest's kernel is packed only if `vm_loader` could load
//! it. Isolated platforms (SNP, TDX, VBS) are refused by name until they exist.
//!
//! The modules, in the order of the work: [`manifest`] says what is wanted, [`elf`] reads
//! kernel and shim, [`layout`] decides the places, [`guest`] packs what the
//! image carries for VTL0, [`registers`] the start of the first
//! processor, [`image`] writes the file. Then the other direction: [`view`] reads any
//! file and recognises the parts, [`dump`], [`map`], [`diff`] and [`measure`] tell about
//! it, and [`placement`] asks the host's loader what it would do with it.

#![forbid(unsafe_code)]

pub mod check;
pub mod component;
pub mod diff;
pub mod dump;
pub mod elf;
pub mod error;
pub mod guest;
pub mod image;
pub mod layout;
pub mod linux_direct;
pub mod manifest;
pub mod map;
pub mod measure;
pub mod placement;
pub mod registers;
pub mod view;

pub use error::Error;
pub use guest::GuestFiles;
pub use image::BuiltImage;
pub use image::Resources;
pub use image::build;
pub use linux_direct::{LinuxDirect, LinuxDirectError};
pub use manifest::Manifest;
