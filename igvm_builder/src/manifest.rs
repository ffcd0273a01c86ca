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
    /// The guest's Linux, `vmlinux` or `bzImage`.
    #[serde(rename = "vtl0_kernel")]
    Vtl0Kernel,
    /// The guest's initial RAM disk.
    #[serde(rename = "vtl0_initrd")]
    Vtl0Initrd,
}

impl ResourceName {
    /// The name, which with hyphens is also that of the command-line option.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Shim => "shim",
            Self::Initrd => "initrd",
            Self::Sidecar => "sidecar",
            Self::Vtl0Kernel => "vtl0_kernel",
            Self::Vtl0Initrd => "vtl0_initrd",
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
    /// Bytes of VTL2 memory that the image asks for; a large guest in it adds to them.
    pub memory_size: u64,
    /// Measured command line.
    pub command_line: String,
    /// Who may add to it.
    pub command_line_policy: CommandLinePolicy,
    /// The sidecar kernel is part of the image.
    pub sidecar: bool,
    /// The guest that the image carries.
    pub guest: Option<Guest>,
}

/// A guest in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// It has an initrd.
    pub initrd: bool,
    /// Its command line.
    pub command_line: String,
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
    command_line: Option<String>,
}

/// What the image can carry for VTL0.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Vtl0Image {
    None,
    Linux,
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
            vtl0,
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
        let parts = Parts::of(&resources, vtl0.image).map_err(|expected| {
            let names: Vec<_> = resources.iter().map(|r| r.name()).collect();
            refuse("resources", format!("{names:?}"), expected)
        })?;
        let guest = match (vtl0.image, vtl0.command_line) {
            (Vtl0Image::None, None) => None,
            (Vtl0Image::None, Some(text)) => {
                return Err(refuse(
                    "vtl0.command_line",
                    format!("{text:?}"),
                    "none, as vtl0.image is \"none\"".into(),
                ));
            }
            (Vtl0Image::Linux, text) => {
                let command_line = text.unwrap_or_default();
                if !is_one_line(&command_line) {
                    let value = format!("{command_line:?}");
                    return Err(refuse("vtl0.command_line", value, ONE_LINE.into()));
                }
                Some(Guest {
                    initrd: parts.vtl0_initrd,
                    command_line,
                })
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
            sidecar: parts.sidecar,
            guest,
        })
    }

    /// The same with another guest, for callers whose user chooses it. Only an image that
    /// carries a guest can have another one.
    pub fn with_guest(self, guest: Guest) -> Result<Self, ManifestError> {
        let refuse = |field, value: &str, expected: &str| ManifestError::Value {
            path: PathBuf::new(),
            field,
            value: format!("{value:?}"),
            expected: expected.into(),
        };
        if self.guest.is_none() {
            return Err(refuse("vtl0.image", "none", "\"linux\", to carry a guest"));
        }
        if !is_one_line(&guest.command_line) {
            return Err(refuse("vtl0.command_line", &guest.command_line, ONE_LINE));
        }
        Ok(Self {
            guest: Some(guest),
            ..self
        })
    }
}

/// What a command line may be.
const ONE_LINE: &str = "one line of text, without control characters";

fn is_one_line(text: &str) -> bool {
    !text.contains(char::is_control)
}

/// The parts that not every image has.
struct Parts {
    sidecar: bool,
    vtl0_initrd: bool,
}

impl Parts {
    /// Reads the list of resources; the error says what was expected.
    fn of(resources: &[ResourceName], image: Vtl0Image) -> Result<Self, String> {
        use ResourceName as R;
        let needed: &[R] = match image {
            Vtl0Image::None => &[R::Kernel, R::Shim, R::Initrd],
            Vtl0Image::Linux => &[R::Kernel, R::Shim, R::Initrd, R::Vtl0Kernel],
        };
        let optional: &[R] = match image {
            Vtl0Image::None => &[R::Sidecar],
            Vtl0Image::Linux => &[R::Sidecar, R::Vtl0Initrd],
        };
        let count = |name| resources.iter().filter(|r| **r == name).count();
        let known = |name: &R| needed.contains(name) || optional.contains(name);
        let right = needed.iter().all(|name| count(*name) == 1)
            && optional.iter().all(|name| count(*name) <= 1)
            && resources.iter().all(known);
        if !right {
            let list = |names: &[R]| {
                let names: Vec<_> = names.iter().map(|r| format!("{:?}", r.name())).collect();
                names.join(", ")
            };
            return Err(format!(
                "{} and optionally {}, once each",
                list(needed),
                list(optional)
            ));
        }
        Ok(Self {
            sidecar: count(R::Sidecar) == 1,
            vtl0_initrd: count(R::Vtl0Initrd) == 1,
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
