//! Good trees are read as other readers read them; no bytes cause a panic.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

fn sample() -> Vec<u8> {
    let mut fdt = FdtWriter::new().unwrap();
    fdt.set_boot_cpuid_phys(7);
    let root = fdt.begin_node("").unwrap();
    fdt.property_u32("#address-cells", 2).unwrap();
    let a = fdt.begin_node("bus@10").unwrap();
    fdt.property_string_list("compatible", ["one".into(), "two".into()].into())
        .unwrap();
    let inner = fdt.begin_node("inner").unwrap();
    fdt.property_u64("reg", 0x1_0000_0002).unwrap();
    fdt.end_node(inner).unwrap();
    fdt.end_node(a).unwrap();
    let b = fdt.begin_node("chosen").unwrap();
    fdt.property_string("bootargs", "a b").unwrap();
    fdt.property_null("ranges").unwrap();
    fdt.end_node(b).unwrap();
    fdt.end_node(root).unwrap();
    fdt.finish().unwrap()
}

// Reads everything that can be read.
fn walk(node: Node<'_>, seen: &mut usize) {
    for property in node.properties() {
        *seen += property.value.len();
        let _ = (property.as_u32(), property.as_u64(), property.as_str());
        *seen += property.as_u32_list().map_or(0, |l| l.count());
        *seen += property.as_u64_list().map_or(0, |l| l.count());
    }
    for child in node.children() {
        *seen += 1;
        walk(child, seen);
    }
}

#[test]
fn nodes_and_properties_are_found() {
    let blob = sample();
    let fdt = ValidatedFdt::new(&blob).unwrap();
    assert_eq!(fdt.boot_cpuid_phys(), 7);

    let root = fdt.root();
    let names: Vec<_> = root.children().map(|n| n.name()).collect();
    assert_eq!(names, ["bus@10", "chosen"]);
    let bus = root.children().next().unwrap();
    assert_eq!(bus.base_name(), "bus");
    assert!(bus.is_compatible("two") && !bus.is_compatible("tw"));
    let inner = bus.children().next().unwrap();
    let reg = inner.property("reg").unwrap();
    assert_eq!(reg.as_u64(), Some(0x1_0000_0002));
    assert_eq!(reg.as_u32_list().unwrap().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(reg.as_str(), None);
    let chosen = root.children().nth(1).unwrap();
    assert_eq!(chosen.property("bootargs").unwrap().as_str(), Some("a b"));
    assert_eq!(chosen.property("ranges").unwrap().value, []);
}

#[test]
fn the_fdt_crate_sees_the_same_tree() {
    let blob = sample();
    let other = fdt::Fdt::new(&blob).unwrap();
    let ours = ValidatedFdt::new(&blob).unwrap();
    for node in ours.root().children() {
        let theirs = other
            .find_node(&alloc::format!("/{}", node.name()))
            .unwrap();
        let properties: Vec<_> = theirs.properties().map(|p| (p.name, p.value)).collect();
        let expected: Vec<_> = node.properties().map(|p| (p.name, p.value)).collect();
        assert_eq!(properties, expected);
    }
}

#[test]
fn nop_tokens_are_skipped_everywhere() {
    // Root { p = <1>; child {}; }, with NOPs in between.
    let cells: &[u32] = &[
        NOP,
        BEGIN_NODE,
        0,
        NOP,
        PROP,
        4,
        0,
        1,
        NOP,
        BEGIN_NODE,
        0x6300_0000,
        NOP,
        END_NODE,
        NOP,
        END_NODE,
        NOP,
        END,
    ];
    let blob = raw(cells, b"p\0");
    let root = ValidatedFdt::new(&blob).unwrap().root();
    assert_eq!(root.property("p").unwrap().as_u32(), Some(1));
    assert_eq!(root.children().map(|n| n.name()).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn malformed_structures_are_named() {
    let problem = |cells: &[u32]| match ValidatedFdt::new(&raw(cells, b"p\0")) {
        Err(FdtError::Structure { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(&[BEGIN_NODE, 0]), "the structure is cut off");
    assert_eq!(
        problem(&[BEGIN_NODE, 0, END]),
        "the structure ends inside a node"
    );
    assert_eq!(problem(&[END_NODE, END]), "a node ends that has not begun");
    assert_eq!(problem(&[77]), "an unknown token");
    assert_eq!(
        problem(&[BEGIN_NODE, 0, PROP, 400, 0, 1, END_NODE, END]),
        "a property is longer than the structure"
    );
    assert_eq!(
        problem(&[BEGIN_NODE, 0, PROP, 4, 9, 1, END_NODE, END]),
        "a property name lies outside the strings"
    );
    assert_eq!(
        problem(&[PROP, 4, 0, 1, END]),
        "a property outside a node or behind a child node"
    );
    let mut deep = Vec::from([BEGIN_NODE, 0]);
    for _ in 0..MAX_DEPTH {
        deep.extend([BEGIN_NODE, 0x6300_0000]);
    }
    assert_eq!(
        problem(&deep),
        "nodes are nested too deep, expected at most 16 levels"
    );
}

#[test]
fn headers_are_checked() {
    let blob = sample();
    let with = |index: usize, value: u32| {
        let mut blob = blob.clone();
        blob[index * 4..index * 4 + 4].copy_from_slice(&value.to_be_bytes());
        ValidatedFdt::new(&blob).map(|_| ())
    };
    assert_eq!(ValidatedFdt::new(&[0; 64]).unwrap_err(), FdtError::Empty);
    assert_eq!(
        ValidatedFdt::new(&blob[..39]).unwrap_err(),
        FdtError::TooSmall { size: 39 }
    );
    assert_eq!(
        with(0, 0xd00d_fee0),
        Err(FdtError::Magic { found: 0xd00d_fee0 })
    );
    assert!(matches!(with(1, u32::MAX), Err(FdtError::Block { .. })));
    assert!(matches!(with(2, u32::MAX), Err(FdtError::Block { .. })));
    assert!(matches!(with(9, u32::MAX), Err(FdtError::Block { .. })));
    assert!(matches!(with(5, 16), Err(FdtError::Version { .. })));
}

// A blob of the given structure and strings.
fn raw(cells: &[u32], strings: &[u8]) -> Vec<u8> {
    let structure = cells.len() as u32 * 4;
    let total = HEADER_SIZE as u32 + structure + strings.len() as u32;
    let header = [
        MAGIC,
        total,
        HEADER_SIZE as u32,
        HEADER_SIZE as u32 + structure,
        HEADER_SIZE as u32,
        17,
        16,
        0,
        strings.len() as u32,
        structure,
    ];
    let mut blob: Vec<u8> = header
        .iter()
        .chain(cells)
        .flat_map(|c| c.to_be_bytes())
        .collect();
    blob.extend(strings);
    blob
}

proptest! {
    #[test]
    fn mutated_trees_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut blob = sample();
        for (index, value) in changes {
            let i = index.index(blob.len());
            blob[i] = value;
        }
        if let Ok(fdt) = ValidatedFdt::new(&blob) {
            walk(fdt.root(), &mut 0);
        }
    }

    #[test]
    fn truncated_trees_never_panic(length in 0usize..400) {
        let blob = sample();
        if let Ok(fdt) = ValidatedFdt::new(&blob[..length.min(blob.len())]) {
            walk(fdt.root(), &mut 0);
        }
    }

    #[test]
    fn random_structures_never_panic(
        cells in proptest::collection::vec(prop_oneof![0u32..12, any::<u32>()], 0..64),
        strings in proptest::collection::vec(any::<u8>(), 0..16),
    ) {
        if let Ok(fdt) = ValidatedFdt::new(&raw(&cells, &strings)) {
            walk(fdt.root(), &mut 0);
        }
    }
}
