//! NUMA nodes of the machine reach VTL2, whatever their shape.

use boot_events::SHIM_LOG_PREFIX;
use qemu::Source;
use vmm_tests::Scenario;
use vmm_tests::Topology;
use vsm_host_defs::ExitReason;

/// What the shim says of the nodes.
const NODES: &str = "NUMA nodes (VPs, MiB):";

/// Boots with such nodes; what VTL2 was given, and for each node, its VPs.
#[track_caller]
fn boot(nodes: &str, more: &[&str]) -> (Topology, Vec<u32>) {
    let nodes = nodes.parse().expect("a list of VPs");
    let mut vm = Scenario::release()
        .with(|machine| machine.numa(nodes).extra(more.iter().copied()))
        .bootargs("loglevel=8")
        .power_off_after_boot()
        .start();
    let topology = vm.topology();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    let said = console
        .lines()
        .filter_map(|line| line.split_once(SHIM_LOG_PREFIX)?.1.split_once(NODES))
        .map(|(_, nodes)| nodes)
        .next()
        .unwrap_or_default();
    // " 0 (2, 300) 1 (0, 341)"
    let vps = said.split('(').skip(1).map(|node| {
        let number = node.split(',').next().unwrap_or_default();
        number
            .parse()
            .unwrap_or_else(|error| panic!("{said:?}: {error}"))
    });
    (topology, vps.collect())
}

#[test]
fn a_machine_with_two_nodes_boots() {
    let (topology, nodes) = boot("2,2", &[]);
    assert_eq!(topology.vps, [1, 2, 3, 4]);
    assert_eq!(nodes, [2, 2]);
}

#[test]
fn nodes_without_vps_may_be_anywhere() {
    let (topology, nodes) = boot("0,1,0,2,0", &[]);
    assert_eq!(topology.vps, [1, 2, 3]);
    assert_eq!(nodes, [0, 1, 0, 2, 0]);
}

#[test]
fn apic_ids_may_have_holes() {
    // A socket of three cores takes four ids.
    let (topology, nodes) = boot("2,3", &["-smp", "6,sockets=2,cores=3,threads=1"]);
    assert_eq!(topology.vps, [1, 2, 4, 5, 6]);
    assert_eq!(nodes, [2, 3]);
}
