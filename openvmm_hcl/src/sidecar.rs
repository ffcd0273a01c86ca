//! The nodes of the sidecar, as the boot shim's device tree tells of them.

use crate::device_tree::DeviceTreeError;
use crate::device_tree::Fault;
use crate::device_tree::Node;
use crate::device_tree::Range;
use loader_defs::PAGE_SIZE;
use sidecar_defs::MAX_CPUS_PER_NODE;
use sidecar_defs::node_shared_size;

/// What the nodes are compatible to.
const COMPATIBLE: &str = "microsoft,openhcl-sidecar";

/// VPs of which only the first has Linux at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarNode {
    /// Control page, command pages and register pages.
    pub pages: Range,
    /// The first VP.
    pub base_vp: u32,
    /// How many VPs, with the first.
    pub cpu_count: u32,
}

/// Reads the nodes of a machine with so many VPs. There are none without a sidecar.
pub fn read(root: &Node, vps: usize) -> Result<Vec<SidecarNode>, DeviceTreeError> {
    let nodes = root.children("sidecar")?;
    nodes.iter().map(|node| read_node(node, vps)).collect()
}

fn read_node(node: &Node, vps: usize) -> Result<SidecarNode, DeviceTreeError> {
    let wrong = |name: &str, value: String, expected| {
        Err(node.error(Fault::Value {
            name: name.to_owned(),
            value,
            expected,
        }))
    };
    let compatible = node.text("compatible")?;
    if compatible != COMPATIBLE {
        return wrong("compatible", compatible, COMPATIBLE);
    }
    let cpu_count = node.u32("cpu-count")?;
    if !(1..=MAX_CPUS_PER_NODE).contains(&cpu_count) {
        return wrong("cpu-count", cpu_count.to_string(), "1 to 32");
    }
    let base_vp = node.u32("base-cpu")?;
    let end = base_vp.checked_add(cpu_count);
    if end.is_none_or(|end| end as usize > vps) {
        return wrong("base-cpu", base_vp.to_string(), "CPUs that exist");
    }
    let ranges = node.ranges("reg")?;
    let size = node_shared_size(cpu_count);
    match ranges[..] {
        [control, shared]
            if control.size == PAGE_SIZE
                && control.start.is_multiple_of(PAGE_SIZE)
                && control.start.checked_add(PAGE_SIZE) == Some(shared.start)
                && shared.size == size - PAGE_SIZE =>
        {
            let pages = Range {
                start: control.start,
                size,
            };
            Ok(SidecarNode {
                pages,
                base_vp,
                cpu_count,
            })
        }
        _ => wrong(
            "reg",
            format!("{ranges:x?}"),
            "a page and then two for each CPU",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    const BASE: u64 = 0x1234_5000;

    struct Tree(TempDir);

    impl Tree {
        /// A node of 4 CPUs from 2 on.
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.set("compatible", b"microsoft,openhcl-sidecar\0");
            tree.set("base-cpu", &2_u32.to_be_bytes());
            tree.set("cpu-count", &4_u32.to_be_bytes());
            tree.reg(&[BASE, 0x1000, BASE + 0x1000, 0x8000]);
            tree
        }

        fn set(&self, name: &str, bytes: &[u8]) {
            let node = self.0.path().join(format!("sidecar@{BASE:x}"));
            std::fs::create_dir_all(&node).unwrap();
            std::fs::write(node.join(name), bytes).unwrap();
        }

        fn reg(&self, cells: &[u64]) {
            let cells: Vec<_> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
            self.set("reg", &cells);
        }

        fn read(&self) -> Result<Vec<SidecarNode>, DeviceTreeError> {
            read(&Node::root(self.0.path()), 6)
        }
    }

    #[test]
    fn a_node_is_read_as_it_is_described() {
        let expected = SidecarNode {
            pages: Range {
                start: BASE,
                size: 0x9000,
            },
            base_vp: 2,
            cpu_count: 4,
        };
        assert_eq!(Tree::new().read().unwrap(), [expected]);
    }

    #[test]
    fn a_machine_without_a_sidecar_has_no_nodes() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(&Node::root(directory.path()), 1).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        type Change = fn(&Tree);
        let changes: [(Change, &str); 7] = [
            (|tree| tree.set("compatible", b"x\0"), "compatible is x"),
            (|tree| tree.set("cpu-count", &[0; 4]), "cpu-count is 0"),
            (
                |tree| tree.set("cpu-count", &33_u32.to_be_bytes()),
                "cpu-count is 33",
            ),
            (
                |tree| tree.set("base-cpu", &3_u32.to_be_bytes()),
                "base-cpu is 3",
            ),
            (
                |tree| tree.set("base-cpu", &[0xff; 4]),
                "base-cpu is 4294967295",
            ),
            (|tree| tree.reg(&[BASE, 0x1000]), "reg is"),
            (
                |tree| tree.reg(&[BASE, 0x1000, BASE + 0x2000, 0x8000]),
                "reg is",
            ),
        ];
        for (change, text) in changes {
            let tree = Tree::new();
            change(&tree);
            let error = tree.read().unwrap_err().to_string();
            let expected = format!("device tree: /sidecar@{BASE:x}: {text}");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_property_is_read_or_refused(
            name in prop::sample::select(vec!["compatible", "base-cpu", "cpu-count", "reg"]),
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let tree = Tree::new();
            tree.set(name, &bytes);
            let _ = tree.read();
        }
    }
}
