//! Reads the device tree that the kernel shows as directories and files.
//!
//! The boot shim wrote the tree, but out of values that came from the host, and a later
//! stage does not rely on an earlier one having checked everything. Sizes, alignments
//! and texts are checked where they are read; an error names node and property.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use thiserror::Error;

/// Where the kernel shows the tree.
pub const ROOT: &str = "/proc/device-tree";

/// The largest property that is read: more than 2048 CPUs or 1024 ranges need.
const PROPERTY_MAX: usize = 64 * 1024;

/// The most children that a node may have.
const CHILDREN_MAX: usize = 4096;

/// What is wrong with the tree.
#[derive(Debug, Error)]
#[error("device tree: {node}: {fault}")]
pub struct DeviceTreeError {
    /// Path of the node.
    pub node: String,
    /// The fault.
    pub fault: Fault,
}

/// What is wrong with a node.
#[derive(Debug, Error)]
pub enum Fault {
    /// The node or the property is not there, or cannot be read.
    #[error("{name} cannot be read: {cause}")]
    Read {
        /// The property, or `node`.
        name: String,
        /// What the system says.
        cause: io::Error,
    },
    /// More data than anything valid has.
    #[error("{name} has more than {max} {unit}")]
    TooMuch {
        /// The property, or `node`.
        name: String,
        /// The limit.
        max: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A value of the wrong size.
    #[error("{name} has {size} bytes, expected {expected}")]
    Size {
        /// The property.
        name: String,
        /// Its size.
        size: usize,
        /// What it should be.
        expected: &'static str,
    },
    /// A text that is none.
    #[error("{name} is not a NUL-terminated UTF-8 text")]
    Text {
        /// The property.
        name: String,
    },
    /// A value that has no meaning.
    #[error("{name} is {value}, expected {expected}")]
    Value {
        /// The property.
        name: String,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The name of the node has no address.
    #[error("name has no hexadecimal unit address")]
    UnitAddress,
}

/// A node of the tree.
#[derive(Debug, Clone)]
pub struct Node {
    directory: PathBuf,
    /// Path inside the tree, for messages.
    path: String,
}

/// Bytes from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Number of bytes.
    pub size: u64,
}

impl Node {
    /// The root of the tree that is shown at `directory`.
    pub fn root(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            path: "/".to_owned(),
        }
    }

    /// The error that says what is wrong here.
    pub fn error(&self, fault: Fault) -> DeviceTreeError {
        DeviceTreeError {
            node: self.path.clone(),
            fault,
        }
    }

    /// A child, which must be there.
    pub fn child(&self, name: &str) -> Result<Self, DeviceTreeError> {
        let child = Self {
            directory: self.directory.join(name),
            path: format!("{}/{name}", self.path.trim_end_matches('/')),
        };
        match std::fs::metadata(&child.directory) {
            Ok(metadata) if metadata.is_dir() => Ok(child),
            Ok(_) => Err(child.unreadable("node", io::ErrorKind::NotADirectory.into())),
            Err(source) => Err(child.unreadable("node", source)),
        }
    }

    /// The children called `prefix@address`, in the order of their addresses.
    pub fn children(&self, prefix: &str) -> Result<Vec<Self>, DeviceTreeError> {
        let unreadable = |source| self.unreadable("node", source);
        let mut children = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let Some(("", address)) = name
                .strip_prefix(prefix)
                .and_then(|rest| rest.split_once('@'))
            else {
                continue;
            };
            let child = self.child(name)?;
            let address =
                u64::from_str_radix(address, 16).map_err(|_| child.error(Fault::UnitAddress))?;
            if children.len() == CHILDREN_MAX {
                return Err(self.error(Fault::TooMuch {
                    name: "node".to_owned(),
                    max: CHILDREN_MAX,
                    unit: "children",
                }));
            }
            children.push((address, child));
        }
        children.sort_by_key(|(address, _)| *address);
        Ok(children.into_iter().map(|(_, child)| child).collect())
    }

    /// A property; `None` if it is not there.
    pub fn property(&self, name: &str) -> Result<Option<Vec<u8>>, DeviceTreeError> {
        let file = match File::open(self.directory.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.unreadable(name, source)),
        };
        let mut bytes = Vec::new();
        file.take(PROPERTY_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| self.unreadable(name, source))?;
        if bytes.len() > PROPERTY_MAX {
            return Err(self.error(Fault::TooMuch {
                name: name.to_owned(),
                max: PROPERTY_MAX,
                unit: "bytes",
            }));
        }
        Ok(Some(bytes))
    }

    /// A property that must be there.
    fn required(&self, name: &str) -> Result<Vec<u8>, DeviceTreeError> {
        self.property(name)?
            .ok_or_else(|| self.unreadable(name, io::ErrorKind::NotFound.into()))
    }

    /// A 32-bit value that must be there.
    pub fn u32(&self, name: &str) -> Result<u32, DeviceTreeError> {
        parse_u32(name, &self.required(name)?).map_err(|fault| self.error(fault))
    }

    /// A 64-bit value, if it is there.
    pub fn optional_u64(&self, name: &str) -> Result<Option<u64>, DeviceTreeError> {
        self.property(name)?
            .map(|bytes| parse_u64(name, &bytes))
            .transpose()
            .map_err(|fault| self.error(fault))
    }

    /// A value of one or two cells that must be there.
    pub fn one_or_two_cells(&self, name: &str) -> Result<u64, DeviceTreeError> {
        parse_one_or_two_cells(name, &self.required(name)?).map_err(|fault| self.error(fault))
    }

    /// A text that must be there.
    pub fn text(&self, name: &str) -> Result<String, DeviceTreeError> {
        self.optional_text(name)?
            .ok_or_else(|| self.unreadable(name, io::ErrorKind::NotFound.into()))
    }

    /// A text, if it is there.
    pub fn optional_text(&self, name: &str) -> Result<Option<String>, DeviceTreeError> {
        self.property(name)?
            .map(|bytes| parse_text(name, &bytes).map(str::to_owned))
            .transpose()
            .map_err(|fault| self.error(fault))
    }

    /// Ranges of two-cell addresses and sizes; they must be there.
    pub fn ranges(&self, name: &str) -> Result<Vec<Range>, DeviceTreeError> {
        parse_ranges(name, &self.required(name)?).map_err(|fault| self.error(fault))
    }

    fn unreadable(&self, name: &str, cause: io::Error) -> DeviceTreeError {
        self.error(Fault::Read {
            name: name.to_owned(),
            cause,
        })
    }
}

fn parse_u32(name: &str, bytes: &[u8]) -> Result<u32, Fault> {
    match bytes.try_into() {
        Ok(bytes) => Ok(u32::from_be_bytes(bytes)),
        Err(_) => Err(wrong_size(name, bytes, "4")),
    }
}

fn parse_u64(name: &str, bytes: &[u8]) -> Result<u64, Fault> {
    match bytes.try_into() {
        Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
        Err(_) => Err(wrong_size(name, bytes, "8")),
    }
}

fn parse_one_or_two_cells(name: &str, bytes: &[u8]) -> Result<u64, Fault> {
    match bytes.len() {
        4 => parse_u32(name, bytes).map(u64::from),
        8 => parse_u64(name, bytes),
        _ => Err(wrong_size(name, bytes, "4 or 8")),
    }
}

fn parse_text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Fault> {
    std::ffi::CStr::from_bytes_with_nul(bytes)
        .ok()
        .and_then(|text| text.to_str().ok())
        .ok_or_else(|| Fault::Text {
            name: name.to_owned(),
        })
}

/// Each range is whole pages, has a size and an end that can be expressed.
fn parse_ranges(name: &str, bytes: &[u8]) -> Result<Vec<Range>, Fault> {
    let (pairs, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() || pairs.is_empty() {
        return Err(wrong_size(name, bytes, "a multiple of 16, not 0"));
    }
    pairs
        .iter()
        .map(|pair| {
            let value = u128::from_be_bytes(*pair);
            let range = Range {
                start: (value >> 64) as u64,
                size: value as u64,
            };
            let fault = |expected| Fault::Value {
                name: name.to_owned(),
                value: format!("{:#x}+{:#x}", range.start, range.size),
                expected,
            };
            if !(range.start | range.size).is_multiple_of(loader_defs::PAGE_SIZE) {
                return Err(fault("whole pages"));
            }
            if range.size == 0 {
                return Err(fault("a size above 0"));
            }
            if range.start.checked_add(range.size).is_none() {
                return Err(fault("an end below 2^64"));
            }
            Ok(range)
        })
        .collect()
}

fn wrong_size(name: &str, bytes: &[u8], expected: &'static str) -> Fault {
    Fault::Size {
        name: name.to_owned(),
        size: bytes.len(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cells_are_big_endian() {
        assert_eq!(parse_u32("reg", &[0, 0, 1, 2]).unwrap(), 0x102);
        assert_eq!(parse_one_or_two_cells("reg", &[0, 0, 1, 2]).unwrap(), 0x102);
        assert_eq!(
            parse_one_or_two_cells("reg", &[1, 0, 0, 0, 0, 0, 0, 2]).unwrap(),
            0x0100_0000_0000_0002
        );
    }

    #[test]
    fn a_value_of_a_wrong_size_is_refused_with_both_sizes() {
        assert_eq!(
            parse_u32("reg", &[0; 5]).unwrap_err().to_string(),
            "reg has 5 bytes, expected 4"
        );
        assert_eq!(
            parse_ranges("reg", &[0; 24]).unwrap_err().to_string(),
            "reg has 24 bytes, expected a multiple of 16, not 0"
        );
    }

    #[test]
    fn a_range_must_be_whole_pages_with_an_end() {
        let text = |start: u64, size: u64| {
            let bytes = [start.to_be_bytes(), size.to_be_bytes()].concat();
            parse_ranges("reg", &bytes).unwrap_err().to_string()
        };
        assert_eq!(text(1, 0x1000), "reg is 0x1+0x1000, expected whole pages");
        assert_eq!(
            text(0x1000, 0),
            "reg is 0x1000+0x0, expected a size above 0"
        );
        assert_eq!(
            text(0xffff_ffff_ffff_f000, 0x1000),
            "reg is 0xfffffffffffff000+0x1000, expected an end below 2^64"
        );
    }

    #[test]
    fn children_come_in_the_order_of_their_addresses() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["cpu@a", "cpu@2", "cpu@10", "cpus@1", "memory@0", "cpu"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let names: Vec<_> = Node::root(directory.path())
            .children("cpu")
            .unwrap()
            .into_iter()
            .map(|node| node.path)
            .collect();
        assert_eq!(names, ["/cpu@2", "/cpu@a", "/cpu@10"]);
    }

    #[test]
    fn an_error_names_node_and_property() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("cpu@1")).unwrap();
        let node = Node::root(directory.path()).child("cpu@1").unwrap();
        assert_eq!(
            node.u32("reg").unwrap_err().to_string(),
            "device tree: /cpu@1: reg cannot be read: entity not found"
        );
        std::fs::create_dir(directory.path().join("cpu@x")).unwrap();
        assert_eq!(
            Node::root(directory.path())
                .children("cpu")
                .unwrap_err()
                .to_string(),
            "device tree: /cpu@x: name has no hexadecimal unit address"
        );
    }

    #[test]
    fn an_endless_property_is_not_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("reg"), vec![0; PROPERTY_MAX + 1]).unwrap();
        assert_eq!(
            Node::root(directory.path())
                .property("reg")
                .unwrap_err()
                .to_string(),
            "device tree: /: reg has more than 65536 bytes"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_u32("p", &bytes);
            let _ = parse_u64("p", &bytes);
            let _ = parse_one_or_two_cells("p", &bytes);
            let _ = parse_text("p", &bytes);
            if let Ok(ranges) = parse_ranges("p", &bytes) {
                prop_assert_eq!(ranges.len() * 16, bytes.len());
                for range in ranges {
                    prop_assert!(range.size > 0 && range.start.checked_add(range.size).is_some());
                }
            }
        }
    }
}
