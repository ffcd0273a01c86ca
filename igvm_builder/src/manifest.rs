//! The manifest: what kind of image is wanted. It names no file and no path, so it means
//! the same on every machine.

use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::{
    COMMAND_LINE_CAPACITY, CommandLinePolicy, PARAVISOR_DEFAULT_MEMORY_BASE_ADDRESS,
};
use page_table::LeafSize;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Alignment of the image's memory: the page tables map it with 2 MiB leaves.
pub const MEMORY_ALIGNMENT: u64 = LeafSize::Size2M.bytes();
/// The format stores the size of required memory in 32 bits.
const MEMORY_SIZE_LIMIT: u64 = 1 << 32;

/// Why a manifest is not accepted.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("manifest {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Not TOML, or a field is missing, unknown or of a wrong kind.
    #[error("manifest {}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Place, problem and expectation.
        error: Box<toml::de::Error>,
    },
    /// A value that cannot be used.
    #[error("manifest {}: {field} = {value}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Path of the field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
}

/// A part that the command line supplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceName {
    /// Linux, `vmlinux` as ELF.
    Kernel,
    /// The boot shim as ELF.
    Shim,
    /// The initial RAM disk.
    Initrd,
    /// The sidecar kernel as ELF.
    Sidecar,
}

impl ResourceName {
    /// The name, which is also that of the command-line option.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Shim => "shim",
            Self::Initrd => "initrd",
            Self::Sidecar => "sidecar",
        }
    }
}

/// An accepted manifest. Its values are consistent, so only [`Manifest::parse`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// Security version number.
    pub svn: u32,
    /// Where the image is built for.
    pub memory_base: u64,
    /// The host may load it elsewhere.
    pub relocatable: bool,
    /// Bytes of VTL2 memory that the image asks for.
    pub memory_size: u64,
    /// Measured command line.
    pub command_line: String,
    /// Who may add to it.
    pub command_line_policy: CommandLinePolicy,
    /// The sidecar kernel is part of the image.
    pub sidecar: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    arch: Arch,
    isolation: Isolation,
    svn: u32,
    resources: Vec<ResourceName>,
    memory: RawMemory,
    command_line: RawCommandLine,
    vtl0: RawVtl0,
}

/// Architectures that can be built.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Arch {
    X64,
}

/// Isolation technologies that can be built for.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Isolation {
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMemory {
    base: Option<String>,
    size: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommandLine {
    text: String,
    policy: RawPolicy,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawPolicy {
    Static,
    AppendChosen,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVtl0 {
    image: Vtl0Image,
}

/// What the image can carry for VTL0.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Vtl0Image {
    None,
}

impl Manifest {
    /// Reads a manifest file.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let text = std::fs::read_to_string(path).map_err(|error| ManifestError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::parse(&text, path)
    }

    /// Parses a manifest; `path` is only for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ManifestError> {
        let raw: RawManifest = toml::from_str(text).map_err(|error| ManifestError::Syntax {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        let refuse = |field, value: String, expected: String| ManifestError::Value {
            path: path.to_owned(),
            field,
            value,
            expected,
        };
        let memory = |field: &'static str, text: &str| {
            parse_size(text)
                .filter(|bytes| bytes.is_multiple_of(MEMORY_ALIGNMENT))
                .ok_or_else(|| {
                    refuse(
                        field,
                        format!("{text:?}"),
                        "a multiple of 2 MiB, as \"64 MiB\"".into(),
                    )
                })
        };

        let RawManifest {
            arch: Arch::X64,
            isolation: Isolation::None,
            svn,
            resources,
            memory: raw_memory,
            command_line,
            vtl0: RawVtl0 {
                image: Vtl0Image::None,
            },
        } = raw;

        let memory_size = memory("memory.size", &raw_memory.size)?;
        if memory_size == 0 || memory_size >= MEMORY_SIZE_LIMIT {
            return Err(refuse(
                "memory.size",
                format!("{:?}", raw_memory.size),
                "at least 2 MiB and less than 4 GiB (the format has 32 bits for it)".into(),
            ));
        }
        let memory_base = match &raw_memory.base {
            Some(text) => memory("memory.base", text)?,
            None => PARAVISOR_DEFAULT_MEMORY_BASE_ADDRESS,
        };
        // GPA 0 holds the measured configuration of VTL0.
        if memory_base == 0 || memory_base > page_table::ADDRESS_LIMIT - memory_size {
            return Err(refuse(
                "memory.base",
                format!("{:?}", raw_memory.base.unwrap_or_default()),
                "above 0 and, with the size, at most 2^48".into(),
            ));
        }
        if command_line.text.len() > COMMAND_LINE_CAPACITY || command_line.text.contains('\0') {
            return Err(refuse(
                "command_line.text",
                format!("a text of {} bytes", command_line.text.len()),
                format!("at most {COMMAND_LINE_CAPACITY} bytes without NUL"),
            ));
        }
        let mut sorted = resources.clone();
        sorted.sort();
        let names: Vec<_> = sorted.iter().map(|r| r.name()).collect();
        let sidecar = match names.as_slice() {
            ["kernel", "shim", "initrd"] => false,
            ["kernel", "shim", "initrd", "sidecar"] => true,
            _ => {
                return Err(refuse(
                    "resources",
                    format!("{names:?}"),
                    "\"kernel\", \"shim\", \"initrd\" and optionally \"sidecar\", once each".into(),
                ));
            }
        };

        Ok(Self {
            svn,
            memory_base,
            relocatable: raw_memory.base.is_none(),
            memory_size,
            command_line: command_line.text,
            command_line_policy: match command_line.policy {
                RawPolicy::Static => CommandLinePolicy::STATIC,
                RawPolicy::AppendChosen => CommandLinePolicy::APPEND_CHOSEN,
            },
            sidecar,
        })
    }
}

/// Parses `64 MiB`, `64MiB`, `4 KiB`, `1 GiB` or a number of bytes, decimal or with `0x`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1u64 << 30)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, size)| text.strip_suffix(name).map(|n| (n.trim_end(), *size)))
        .unwrap_or((text, 1));
    let number = match number.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => number.parse().ok()?,
    };
    number.checked_mul(unit)
}

const _: () = assert!(MEMORY_ALIGNMENT.is_multiple_of(PAGE_SIZE));
