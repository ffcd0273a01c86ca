//! Linux Direct on aarch64: a flat `Image`
//! (`Documentation/arch/arm64/booting.rst`) and a device tree.
//!
//! The kernel goes to the lowest 2 MiB boundary in RAM with room for it, the device tree to
//! the next one behind it, the initrd to the next one behind that. There is no ACPI.

pub mod device_tree;
pub mod image;

pub use device_tree::{Conduit, DeviceTreeError, GicV3, MAX_DEVICE_TREE, Machine, Pl011, Timer};
pub use image::{Image, ImageError};

use crate::memory::{Free, MemoryError, MemoryLayout};
use crate::plan::{Piece, Plan, PlanError};
use crate::{GIB, MIB};
use alloc::vec;
use loader_defs::range::GpaRange;
use thiserror::Error;

/// What the addresses of kernel (without its offset), device tree and initrd are multiples
/// of.
pub const ALIGNMENT: u64 = 2 * MIB;
/// Kernel and initrd lie in one window of this size, aligned to 1 GiB.
pub const INITRD_WINDOW: u64 = 32 * GIB;
/// EL1 with its own stack pointer; debug exceptions, SErrors and interrupts are masked.
const PSTATE: u64 = 0x3c5;

/// What is to be loaded, and into what VM.
#[derive(Debug, Clone, Copy)]
pub struct LinuxDirect<'a> {
    /// The file: an uncompressed `Image`.
    pub kernel: &'a [u8],
    /// The file.
    pub initrd: Option<&'a [u8]>,
    /// Without a zero.
    pub command_line: &'a str,
    /// The memory of the VM.
    pub memory: MemoryLayout<'a>,
    /// What the device tree describes.
    pub machine: &'a Machine<'a>,
}

/// State of the first processor. What is not here is as after a reset: MMU and caches are
/// off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// The first instruction of the kernel.
    pub pc: u64,
    /// The device tree. X1 to X3 are zero.
    pub x0: u64,
    /// Exception level 1, everything masked.
    pub pstate: u64,
}

/// Why a kernel cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    /// The memory of the VM.
    #[error("memory layout: {0}")]
    Memory(#[from] MemoryError),
    /// The kernel.
    #[error("kernel: {0}")]
    Image(#[from] ImageError),
    /// An initrd without bytes.
    #[error("initrd is empty, expected an archive, or none at all")]
    InitrdEmpty,
    /// The initrd is too far away.
    #[error(
        "initrd at {initrd} is not in the 32 GiB at {window:#x} that also hold the kernel, as \
         the boot protocol demands"
    )]
    InitrdWindow {
        /// Where it would be.
        initrd: GpaRange,
        /// Start of the kernel's window.
        window: u64,
    },
    /// No room.
    #[error(
        "{what} of {size} bytes does not fit: at or above {from:#x}, aligned to 2 MiB, below \
         {limit:#x} at most {available} bytes of RAM are free"
    )]
    DoesNotFit {
        /// "kernel", "device tree" or "initrd".
        what: &'static str,
        /// Memory that it needs.
        size: u64,
        /// Where it can be at the lowest.
        from: u64,
        /// The limit.
        limit: u64,
        /// The largest room.
        available: u64,
    },
    /// The device tree.
    #[error("device tree: {0}")]
    DeviceTree(#[from] DeviceTreeError),
    /// Something is where it cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl<'a> LinuxDirect<'a> {
    /// Decides where everything goes. Nothing is written.
    pub fn plan(&self) -> Result<Plan<'a, Registers>, LoadError> {
        self.memory.validate()?;
        let usable = self.memory.usable();
        let image = Image::parse(self.kernel)?;
        let room = Room {
            free: &usable,
            limit: self.memory.limit,
        };
        let text_offset = image.header.text_offset;
        // The offset is below 2 MiB, the size below 2^48.
        let kernel = room.find("kernel", text_offset + image.header.image_size, 0)?;
        let tree_place = room.find("device tree", MAX_DEVICE_TREE as u64, kernel.end())?;
        let initrd = self.place_initrd(&room, kernel, tree_place.end())?;
        let tree = device_tree::build(self.machine, &usable, self.command_line, initrd)?;

        let entry = kernel.start() + text_offset;
        let mut piece = Piece::new("kernel", entry, self.kernel.into())?;
        piece.range = GpaRange::from_bounds(entry, kernel.end()).unwrap_or(piece.range);
        let mut pieces = vec![
            piece,
            Piece::new("device tree", tree_place.start(), tree.into())?,
        ];
        if let (Some(range), Some(file)) = (initrd, self.initrd) {
            pieces.push(Piece::new("initrd", range.start(), file.into())?);
        }
        let registers = Registers {
            pc: entry,
            x0: tree_place.start(),
            pstate: PSTATE,
        };
        Ok(Plan::new(pieces, registers, &usable, self.memory.limit)?)
    }

    fn place_initrd(
        &self,
        room: &Room<'_>,
        kernel: GpaRange,
        from: u64,
    ) -> Result<Option<GpaRange>, LoadError> {
        let Some(file) = self.initrd else {
            return Ok(None);
        };
        if file.is_empty() {
            return Err(LoadError::InitrdEmpty);
        }
        let initrd = room.find("initrd", file.len() as u64, from)?;
        let window = kernel.start() / GIB * GIB;
        if initrd.end() - window > INITRD_WINDOW {
            return Err(LoadError::InitrdWindow { initrd, window });
        }
        Ok(Some(initrd))
    }
}

/// Memory that things can go to.
struct Room<'a> {
    free: &'a Free,
    limit: u64,
}

impl Room<'_> {
    fn find(&self, what: &'static str, size: u64, from: u64) -> Result<GpaRange, LoadError> {
        let limit = self.limit;
        self.free
            .find(size, ALIGNMENT, from, limit)
            .ok_or_else(|| LoadError::DoesNotFit {
                what,
                size,
                from,
                limit,
                available: self.free.largest(ALIGNMENT, from, limit),
            })
    }
}
