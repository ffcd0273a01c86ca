//! What can be wrong with the host's tree.

use alloc::string::String;
use core::fmt;

use thiserror::Error;

use crate::fdt::{FdtError, Node, Property};
use crate::range::GpaRange;

/// Bytes of a wrong value that an error shows.
const SHOWN_BYTES: usize = 24;

/// Why the tree is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostDtError {
    /// It is not a tree.
    #[error(transparent)]
    Fdt(#[from] FdtError),
    /// A node that must exist does not.
    #[error("host device tree: node {node} is missing")]
    MissingNode {
        /// Its path.
        node: &'static str,
    },
    /// A property that must exist does not.
    #[error("host device tree: node {node} has no property {property}")]
    MissingProperty {
        /// Name of the node.
        node: String,
        /// Name of the property.
        property: &'static str,
    },
    /// A property has a wrong type or value.
    #[error("host device tree: node {node}: {property} = {found}, expected {expected}")]
    Property {
        /// Name of the node.
        node: String,
        /// Name of the property.
        property: String,
        /// The value: text, or bytes in hexadecimal.
        found: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A range does not consist of pages.
    #[error("host device tree: node {node}: range {range}, expected multiples of 4096")]
    Alignment {
        /// Name of the node.
        node: String,
        /// The range.
        range: GpaRange,
    },
    /// A list is longer than the shim can hold.
    #[error("host device tree: more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are accepted.
        limit: usize,
    },
    /// Two nodes describe what can exist only once.
    #[error("host device tree: {what} is described twice, expected once")]
    Duplicate {
        /// What.
        what: &'static str,
    },
}

impl HostDtError {
    pub(super) fn property(node: Node<'_>, property: Property<'_>, expected: &'static str) -> Self {
        Self::Property {
            node: node.name().into(),
            property: property.name.into(),
            found: alloc::format!("{}", Value(property)),
            expected,
        }
    }
}

struct Value<'a>(Property<'a>);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.0.as_str()
            && !text.is_empty()
            && text.chars().all(|c| !c.is_control())
        {
            let end = text.floor_char_boundary(SHOWN_BYTES);
            let more = if end < text.len() { "…" } else { "" };
            return write!(f, "\"{}{more}\"", &text[..end]);
        }
        f.write_str("<")?;
        for byte in self.0.value.iter().take(SHOWN_BYTES) {
            write!(f, "{byte:02x}")?;
        }
        if self.0.value.len() > SHOWN_BYTES {
            f.write_str("…")?;
        }
        write!(f, "> ({} bytes)", self.0.value.len())
    }
}
