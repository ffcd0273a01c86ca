//! A reader of flattened device trees that is safe against any bytes.
//!
//! The whole blob is checked once, by [`ValidatedFdt::new`]; after that a walk cannot
//! fail. Why not the `fdt` crate, which this project uses where the tree is trusted:
//! version 0.1.5 asserts and unwraps on truncated blobs, on text that is not UTF-8 and
//! on NOP tokens (which are legal), and it does not tell `boot_cpuid_phys`. A checker in
//! front of it would need this same walk, so the walk is the reader. Tests compare what
//! both see in a good tree.

use core::str;
use thiserror::Error;

const MAGIC: u32 = 0xd00d_feed;
const HEADER_SIZE: usize = 40;
/// The version whose layout is read here.
const VERSION: u32 = 17;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Nodes inside nodes. A host's tree has four levels; the walk below does not recurse,
/// the limit only keeps absurd trees out.
const MAX_DEPTH: usize = 16;

/// Bytes of a node or property name; the specification allows 31 and a unit address.
const MAX_NAME: usize = 128;

/// What is wrong with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FdtError {
    /// The first byte is zero: nobody put a tree here.
    #[error("no device tree: the parameter area is empty")]
    Empty,
    /// Fewer bytes than a header.
    #[error("device tree of {size} bytes, expected at least {HEADER_SIZE}")]
    TooSmall {
        /// Bytes there are.
        size: usize,
    },
    /// Another file.
    #[error("device tree magic {found:#x}, expected {MAGIC:#x}")]
    Magic {
        /// What is there.
        found: u32,
    },
    /// A layout that this reader does not know.
    #[error(
        "device tree version {version} (compatible with {last_compatible}), expected {VERSION}"
    )]
    Version {
        /// From the header.
        version: u32,
        /// From the header.
        last_compatible: u32,
    },
    /// A block lies outside the blob or is misaligned.
    #[error(
        "device tree {block} at {offset:#x}, {size:#x} bytes, expected inside {total:#x} bytes and aligned"
    )]
    Block {
        /// Which one.
        block: &'static str,
        /// From the header.
        offset: u32,
        /// From the header.
        size: u32,
        /// Bytes of the blob.
        total: usize,
    },
    /// The structure is malformed.
    #[error("device tree structure at {offset:#x}: {problem}")]
    Structure {
        /// Bytes from the start of the structure block.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
}

/// A blob whose structure is sound. What the properties say is still the host's word.
#[derive(Debug, Clone, Copy)]
pub struct ValidatedFdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    boot_cpuid_phys: u32,
}

impl<'a> ValidatedFdt<'a> {
    /// Checks a blob; bytes behind its total size are ignored.
    pub fn new(memory: &'a [u8]) -> Result<Self, FdtError> {
        if memory.first() == Some(&0) {
            return Err(FdtError::Empty);
        }
        let header = |index: usize| u32_at(memory, index * 4);
        let too_small = FdtError::TooSmall { size: memory.len() };
        let (
            Some(magic),
            Some(total),
            Some(structure_offset),
            Some(strings_offset),
            Some(version),
            Some(last_compatible),
            Some(boot_cpuid_phys),
            Some(strings_size),
            Some(structure_size),
        ) = (
            header(0),
            header(1),
            header(2),
            header(3),
            header(5),
            header(6),
            header(7),
            header(8),
            header(9),
        )
        else {
            return Err(too_small);
        };
        if magic != MAGIC {
            return Err(FdtError::Magic { found: magic });
        }
        if version < VERSION || last_compatible > VERSION {
            return Err(FdtError::Version {
                version,
                last_compatible,
            });
        }
        let blob = memory.get(..total as usize).ok_or(FdtError::Block {
            block: "total size",
            offset: 0,
            size: total,
            total: memory.len(),
        })?;
        let fdt = Self {
            structure: block(blob, "structure", structure_offset, structure_size)?,
            strings: block(blob, "strings", strings_offset, strings_size)?,
            boot_cpuid_phys,
        };
        fdt.check_structure()?;
        Ok(fdt)
    }

    /// The hardware id of the boot processor.
    pub fn boot_cpuid_phys(&self) -> u32 {
        self.boot_cpuid_phys
    }

    /// The root node.
    pub fn root(&self) -> Node<'a> {
        let whole = Tokens {
            rest: self.structure,
            strings: self.strings,
        };
        // A validated structure has exactly one outermost node.
        let mut nodes = Children { tokens: whole };
        nodes.next().unwrap_or(Node {
            name: "",
            body: Tokens {
                rest: &[],
                strings: self.strings,
            },
        })
    }

    fn check_structure(&self) -> Result<(), FdtError> {
        let mut tokens = Tokens {
            rest: self.structure,
            strings: self.strings,
        };
        let mut depth = 0usize;
        let mut roots = 0;
        let mut may_have_properties = false;
        loop {
            let offset = self.structure.len() - tokens.rest.len();
            let error = |problem| Err(FdtError::Structure { offset, problem });
            match tokens
                .next_token()
                .map_err(|problem| FdtError::Structure { offset, problem })?
            {
                Token::Begin(name) => {
                    if depth == 0 {
                        roots += 1;
                        if roots > 1 || !name.is_empty() {
                            return error("expected exactly one root node, without a name");
                        }
                    } else if name.is_empty() {
                        return error("a node below the root has no name");
                    }
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return error("nodes are nested too deep, expected at most 16 levels");
                    }
                    may_have_properties = true;
                }
                Token::End => {
                    let Some(parent) = depth.checked_sub(1) else {
                        return error("a node ends that has not begun");
                    };
                    depth = parent;
                    may_have_properties = false;
                }
                Token::Property(_) => {
                    if !may_have_properties {
                        return error("a property outside a node or behind a child node");
                    }
                }
                Token::Finish => {
                    return if depth == 0 && roots == 1 {
                        Ok(())
                    } else {
                        error("the structure ends inside a node")
                    };
                }
            }
        }
    }
}

/// A node.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    name: &'a str,
    body: Tokens<'a>,
}

impl<'a> Node<'a> {
    /// Name with unit address.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Name without unit address.
    pub fn base_name(&self) -> &'a str {
        self.name
            .split_once('@')
            .map_or(self.name, |(base, _)| base)
    }

    /// The properties, in order.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut tokens = self.body;
        core::iter::from_fn(move || match tokens.next_token() {
            Ok(Token::Property(property)) => Some(property),
            _ => None,
        })
    }

    /// The property with this name.
    pub fn property(&self, name: &str) -> Option<Property<'a>> {
        self.properties().find(|p| p.name == name)
    }

    /// The child nodes, in order.
    pub fn children(&self) -> impl Iterator<Item = Self> + use<'a> {
        Children { tokens: self.body }
    }

    /// One of the texts of `compatible` is `name`.
    pub fn is_compatible(&self, name: &str) -> bool {
        self.property("compatible")
            .is_some_and(|p| p.value.split(|&b| b == 0).any(|s| s == name.as_bytes()))
    }
}

/// A property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> Property<'a> {
    /// The value, if it is one cell.
    pub fn as_u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value, if it is two cells.
    pub fn as_u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value, if it is one text, ended by one zero byte.
    pub fn as_str(&self) -> Option<&'a str> {
        let (0, text) = self.value.split_last()? else {
            return None;
        };
        if text.contains(&0) {
            return None;
        }
        str::from_utf8(text).ok()
    }

    /// The value as cells, if it consists of whole ones.
    pub fn as_u32_list(&self) -> Option<impl ExactSizeIterator<Item = u32> + use<'a>> {
        let (cells, []) = self.value.as_chunks::<4>() else {
            return None;
        };
        Some(cells.iter().map(|&c| u32::from_be_bytes(c)))
    }

    /// The value as pairs of cells, if it consists of whole ones.
    pub fn as_u64_list(&self) -> Option<impl ExactSizeIterator<Item = u64> + use<'a>> {
        let (cells, []) = self.value.as_chunks::<8>() else {
            return None;
        };
        Some(cells.iter().map(|&c| u64::from_be_bytes(c)))
    }
}

enum Token<'a> {
    Begin(&'a str),
    End,
    Property(Property<'a>),
    Finish,
}

#[derive(Debug, Clone, Copy)]
struct Tokens<'a> {
    rest: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Tokens<'a> {
    fn next_token(&mut self) -> Result<Token<'a>, &'static str> {
        loop {
            return Ok(match self.cell()? {
                NOP => continue,
                BEGIN_NODE => {
                    let name = text(self.rest, "a node name")?;
                    self.skip_padded(name.len() + 1)?;
                    Token::Begin(name)
                }
                END_NODE => Token::End,
                PROP => {
                    let length = self.cell()? as usize;
                    let name_offset = self.cell()? as usize;
                    let strings = self
                        .strings
                        .get(name_offset..)
                        .ok_or("a property name lies outside the strings")?;
                    let name = text(strings, "a property name")?;
                    let value = self
                        .rest
                        .get(..length)
                        .ok_or("a property is longer than the structure")?;
                    self.skip_padded(length)?;
                    Token::Property(Property { name, value })
                }
                END => Token::Finish,
                _ => return Err("an unknown token"),
            });
        }
    }

    fn cell(&mut self) -> Result<u32, &'static str> {
        let (cell, rest) = self
            .rest
            .split_first_chunk()
            .ok_or("the structure is cut off")?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*cell))
    }

    fn skip_padded(&mut self, length: usize) -> Result<(), &'static str> {
        self.rest = length
            .checked_next_multiple_of(4)
            .and_then(|padded| self.rest.get(padded..))
            .ok_or("the structure is cut off")?;
        Ok(())
    }
}

struct Children<'a> {
    tokens: Tokens<'a>,
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let name = loop {
            match self.tokens.next_token().ok()? {
                Token::Begin(name) => break name,
                Token::Property(_) => {}
                Token::End | Token::Finish => {
                    // The end of the parent: nothing behind it is ours.
                    self.tokens.rest = &[];
                    return None;
                }
            }
        };
        let body = self.tokens;
        let mut depth = 1;
        while depth > 0 {
            match self.tokens.next_token().ok()? {
                Token::Begin(_) => depth += 1,
                Token::End => depth -= 1,
                Token::Property(_) => {}
                Token::Finish => return None,
            }
        }
        Some(Node { name, body })
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

fn block<'a>(
    blob: &'a [u8],
    name: &'static str,
    offset: u32,
    size: u32,
) -> Result<&'a [u8], FdtError> {
    // Cells are 4 bytes; the strings may begin anywhere.
    let aligned = offset.is_multiple_of(4) || name == "strings";
    blob.get(offset as usize..)
        .and_then(|b| b.get(..size as usize))
        .filter(|_| aligned)
        .ok_or(FdtError::Block {
            block: name,
            offset,
            size,
            total: blob.len(),
        })
}

fn text<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str, &'static str> {
    // The reasons are static texts, so that an error needs no memory.
    let is_node = what == "a node name";
    let window = &bytes[..bytes.len().min(MAX_NAME)];
    let end = window.iter().position(|&b| b == 0).ok_or(if is_node {
        "a node name does not end within 128 bytes"
    } else {
        "a property name does not end within 128 bytes"
    })?;
    str::from_utf8(&window[..end]).map_err(|_| {
        if is_node {
            "a node name is not UTF-8"
        } else {
            "a property name is not UTF-8"
        }
    })
}

#[cfg(test)]
mod tests;
