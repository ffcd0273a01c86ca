//! Reasons, memory and parameters.

use super::*;
use crate::host_dt::HostDeviceTree;
use crate::host_dt::tests::{HostTree, MIB};
use crate::isolation::{Isolation, Trust};
use crate::memory::NodeRange;
use crate::memory::space::SpaceBuilder;
use crate::params::tests::{BASE, raw, raw_with_sidecar};
use crate::range::GpaRange;
use alloc::string::ToString;
use core::fmt::Write as _;
use proptest::prelude::*;

const TRUSTED: Trust = Trust::new(Isolation::None, false);
const ON: SidecarOptions = SidecarOptions {
    enabled: true,
    log: false,
};

fn partition(tree: &HostTree, trust: Trust) -> PartitionInfo {
    PartitionInfo::new(HostDeviceTree::parse(&tree.build()).unwrap(), trust).unwrap()
}

/// A VM with such a number of VPs on each NUMA node.
fn vm(nodes: &[u32]) -> PartitionInfo {
    let mut tree = HostTree::plain();
    let vnodes = (0..).zip(nodes);
    let vnodes = vnodes.flat_map(|(vnode, vps)| core::iter::repeat_n(vnode, *vps as usize));
    tree.cpus = (1..).zip(vnodes).collect();
    partition(&tree, TRUSTED)
}

/// VTL2's RAM: MiB from the image's begin, and the NUMA node.
fn space(ram: &[(u64, u64, u32)], used_mib: u64) -> AddressSpace {
    let ram: Vec<NodeRange> = ram
        .iter()
        .map(|&(start, size, vnode)| NodeRange {
            range: GpaRange::new((128 + start) * MIB, size * MIB).unwrap(),
            vnode,
        })
        .collect();
    let used = GpaRange::new(128 * MIB, used_mib * MIB).unwrap();
    SpaceBuilder::new(&ram, used).finish()
}

fn params() -> ShimParams {
    ShimParams::new(&raw_with_sidecar(), BASE).unwrap()
}

fn circumstances<'a>(params: &'a ShimParams, partition: &'a PartitionInfo) -> Circumstances<'a> {
    Circumstances {
        arch: Arch::X64,
        vtl: 2,
        params,
        options: ON,
        partition,
        excluded: &[],
    }
}

fn off(circumstances: &Circumstances<'_>) -> Off {
    let mut space = space(&[(0, 64, 0)], 16);
    let before = space.typed_ranges();
    let off = Plan::new(circumstances, &mut space).unwrap_err();
    assert_eq!(space.typed_ranges(), before, "nothing is taken");
    off
}

#[test]
fn every_reason_against_it_is_told() {
    let (params, partition) = (params(), vm(&[4]));
    let usual = circumstances(&params, &partition);
    let with = |change: fn(&mut Circumstances<'_>)| {
        let mut changed = usual;
        change(&mut changed);
        off(&changed)
    };
    assert_eq!(with(|c| c.arch = Arch::Arm64), Off::Architecture);
    assert_eq!(with(|c| c.options.enabled = false), Off::Option);
    assert_eq!(with(|c| c.vtl = 0), Off::Vtl(0));
    assert_eq!(with(|c| c.excluded = &[3, 2, 1]), Off::AllExcluded);

    let bare = ShimParams::new(&raw(), BASE).unwrap();
    assert_eq!(off(&circumstances(&bare, &partition)), Off::NotInImage);
    for (vps, reason) in [
        (&[1][..], Off::OneCpuPerNode),
        (&[1, 1], Off::OneCpuPerNode),
    ] {
        assert_eq!(off(&circumstances(&params, &vm(vps))), reason);
    }
    let many = vm(&[2; 61]);
    assert_eq!(
        off(&circumstances(&params, &many)),
        Off::TooManyNodes { found: 61 }
    );

    let isolated = super::tests::partition(&HostTree::plain(), Trust::new(Isolation::Vbs, false));
    assert_eq!(off(&circumstances(&params, &isolated)), Off::Isolated);
    let mut tree = HostTree::plain();
    tree.boot_cpu = 2;
    let odd = super::tests::partition(&tree, TRUSTED);
    assert_eq!(off(&circumstances(&params, &odd)), Off::BootCpu);
}

#[test]
fn reasons_are_read_in_the_log() {
    assert_eq!(
        Off::TooManyNodes { found: 61 }.to_string(),
        "61 nodes, expected at most 60"
    );
    assert_eq!(
        Off::NoMemory {
            size: 0x35000,
            base_vp: 8
        }
        .to_string(),
        "no 217088 bytes in one piece for the node of VP 8"
    );
    assert!(Off::BootCpu.is_surprising() && !Off::NotInImage.is_surprising());
    let mut text = ErrorText::EMPTY;
    write!(text, "no clock").unwrap();
    let failure = Failure {
        started: 0,
        begun: false,
        text,
    };
    assert_eq!(failure.to_string(), "its kernel does not start: no clock");
}

#[test]
fn image_and_nodes_have_memory_of_their_own_type() {
    let (params, partition) = (params(), vm(&[3, 2]));
    let mut space = space(&[(0, 64, 0)], 16);
    let plan = Plan::new(&circumstances(&params, &partition), &mut space).unwrap();
    let taken: Vec<_> = space
        .typed_ranges()
        .into_iter()
        .filter(|typed| typed.purpose != MemoryVtlType::VTL2_RAM)
        .map(|typed| (typed.purpose, typed.range.start(), typed.range.len()))
        .collect();
    let size = node_memory_size(3) + node_memory_size(2);
    assert_eq!(
        taken,
        [
            (
                MemoryVtlType::SIDECAR_IMAGE,
                params.sidecar.start(),
                128 << 10
            ),
            (MemoryVtlType::SIDECAR_NODE, 144 * MIB, size),
        ]
    );
    let bases: Vec<u64> = plan.nodes.iter().map(|node| node.memory_base).collect();
    assert_eq!(bases, [144 * MIB, 144 * MIB + node_memory_size(3)]);
}

#[test]
fn memory_is_on_the_base_processors_numa_node_where_it_can_be() {
    let (params, partition) = (params(), vm(&[2, 2, 2]));
    let mut space = space(&[(0, 32, 0), (32, 32, 1), (64, 32, 2)], 16);
    let plan = Plan::new(&circumstances(&params, &partition), &mut space).unwrap();
    let bases: Vec<u64> = plan.nodes.iter().map(|n| n.memory_base / MIB).collect();
    // Memory of node 2 is behind what the image's page tables map.
    assert_eq!(bases, [144, 160, 144]);
}

#[test]
fn too_little_memory_is_told_and_nothing_is_taken() {
    let (params, partition) = (params(), vm(&[2, 32]));
    let mut space = space(&[(0, 64, 0)], 63);
    let before = space.typed_ranges();
    let error = Plan::new(&circumstances(&params, &partition), &mut space).unwrap_err();
    let size = node_memory_size(32);
    assert_eq!(error, Off::NoMemory { size, base_vp: 2 });
    assert_eq!(space.typed_ranges(), before);
}

#[test]
fn the_kernel_is_told_its_nodes() {
    let (params, partition) = (params(), vm(&[4, 40]));
    let mut wanted = circumstances(&params, &partition);
    wanted.excluded = &[2, 43];
    wanted.options.log = true;
    let mut space = space(&[(0, 64, 0)], 16);
    let plan = Plan::new(&wanted, &mut space).unwrap();
    let told = plan.params();
    assert_eq!((told.node_count, told.enable_logging), (3, 1));
    let nodes: Vec<_> = told.nodes[..3]
        .iter()
        .map(|node| (node.base_vp, node.cpu_count))
        .collect();
    assert_eq!(nodes, [(0, 4), (4, 20), (24, 20)]);
    assert!(told.nodes[3..].iter().all(|n| *n == NodeParams::default()));
    let excluded: Vec<u32> = (0..100).filter(|vp| told.is_excluded(*vp)).collect();
    assert_eq!(excluded, [2, 43]);
    assert_eq!(plan.linux, [2, 4, 24, 43]);
}

proptest! {
    #[test]
    fn nodes_are_disjoint_and_mapped(
        nodes in prop::collection::vec(0u32..70, 1..8),
        ram in prop::collection::vec((1u64..40, 0u32..8), 1..6),
    ) {
        prop_assume!(nodes.iter().sum::<u32>() > 0);
        let (params, partition) = (params(), vm(&nodes));
        let mut start = 0;
        let mut pieces = Vec::from([(0, 16, 0)]);
        for (size, vnode) in ram {
            pieces.push((16 + start, size, vnode));
            start += size;
        }
        let mut space = space(&pieces, 16);
        let Ok(plan) = Plan::new(&circumstances(&params, &partition), &mut space) else {
            return Ok(());
        };
        let ranges: Vec<GpaRange> = plan
            .nodes
            .iter()
            .map(|n| GpaRange::new(n.memory_base, node_memory_size(n.cpus.cpu_count)).unwrap())
            .collect();
        for (i, range) in ranges.iter().enumerate() {
            prop_assert!(params.memory.contains(range));
            prop_assert!(!range.overlaps(&GpaRange::new(128 * MIB, 16 * MIB).unwrap()));
            prop_assert!(ranges[..i].iter().all(|other| !other.overlaps(range)));
        }
    }
}
