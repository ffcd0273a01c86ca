//! The parts of an image by name, and ranges of guest-physical addresses.

use loader_defs::PAGE_SIZE;
use serde::{Serialize, Serializer};
use std::fmt;

/// A part of the image. The order is that of the addresses in an image built here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Measured configuration of VTL0, at GPA 0.
    Vtl0Config,
    /// State that survives servicing; not in the file.
    PersistedState,
    /// The Linux kernel.
    Kernel,
    /// The sidecar kernel.
    Sidecar,
    /// The boot shim.
    Shim,
    /// The initial RAM disk.
    Initrd,
    /// The guest's files; for who runs the image, the end of the initrd.
    Guest,
    /// The global descriptor table that the shim starts with.
    Gdt,
    /// `ShimParamsRaw`.
    ShimParams,
    /// The measured command line.
    CommandLine,
    /// Pages that only isolated platforms use; not in the file.
    Reserved,
    /// The host's SLIT.
    Slit,
    /// The host's PPTT.
    Pptt,
    /// The host's device tree.
    DeviceTree,
    /// The list of imported regions.
    ImportedRegions,
    /// Measured configuration of VTL2.
    Vtl2Config,
    /// Expected hashes of shared pages; not in the file, as nothing is shared.
    PageHashes,
    /// The boot shim's log.
    Log,
    /// The boot shim's heap.
    Heap,
    /// The page tables that the shim starts with.
    PageTables,
    /// VTL2 memory behind the image.
    Free,
    /// Something that none of the above explains.
    Unknown,
}

impl Component {
    /// The name, as the tools print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vtl0Config => "vtl0-config",
            Self::PersistedState => "persisted-state",
            Self::Kernel => "kernel",
            Self::Sidecar => "sidecar",
            Self::Shim => "shim",
            Self::Initrd => "initrd",
            Self::Guest => "guest",
            Self::Gdt => "gdt",
            Self::ShimParams => "shim-params",
            Self::CommandLine => "command-line",
            Self::Reserved => "reserved",
            Self::Slit => "slit",
            Self::Pptt => "pptt",
            Self::DeviceTree => "device-tree",
            Self::ImportedRegions => "imported-regions",
            Self::Vtl2Config => "vtl2-config",
            Self::PageHashes => "page-hashes",
            Self::Log => "log",
            Self::Heap => "heap",
            Self::PageTables => "page-tables",
            Self::Free => "free",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Component {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Guest-physical addresses from `start` to `end` (exclusive).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GpaRange {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

impl GpaRange {
    /// `size` bytes from `start`; ends at the last address if it would go beyond.
    pub const fn with_size(start: u64, size: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(size),
        }
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.end - self.start
    }

    /// Whole pages, the last one counted even if it is only partly covered.
    pub const fn pages(&self) -> u64 {
        self.size().div_ceil(PAGE_SIZE)
    }

    /// Whether the address is inside.
    pub const fn contains(&self, gpa: u64) -> bool {
        self.start <= gpa && gpa < self.end
    }

    /// Whether the whole other range is inside.
    pub const fn encloses(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}

/// Bytes as a person reads them: `64 MiB`, `12 KiB`, `513 bytes`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let Some((unit, size)) = UNITS.into_iter().find(|(_, size)| bytes >= *size) else {
        return format!("{bytes} bytes");
    };
    if bytes.is_multiple_of(size) {
        format!("{} {unit}", bytes / size)
    } else {
        format!("{:.1} {unit}", bytes as f64 / size as f64)
    }
}
