//! What an image reads in its parameters.

use super::*;
use fdt::Fdt;
use std::vec;
use zerocopy::FromBytes;

const MIB: u64 = 1 << 20;

fn machine() -> MachineInfo {
    let mut machine = crate::tests::image::small_machine();
    machine.ram = [(0, 1, 0), (1, 112, 0), (128, 150, 0), (150, 512, 1)]
        .map(|(start, end, node)| RamRange {
            range: MemoryRange::new(start * MIB, end * MIB),
            node,
        })
        .to_vec();
    machine
}

fn with_parameters<T>(bootargs: &str, check: impl FnOnce(&Parameters<'_>) -> T) -> T {
    let machine = machine();
    check(&Parameters {
        machine: &machine,
        vtl2_memory: MemoryRange::new(128 * MIB, 192 * MIB),
        bootargs,
    })
}

fn tree(bootargs: &str) -> Vec<u8> {
    with_parameters(bootargs, |p| p.device_tree().unwrap())
}

/// Big-endian numbers of a property.
fn numbers(node: fdt::node::FdtNode<'_, '_>, name: &str) -> Vec<u64> {
    let value = node.property(name).unwrap().value;
    value
        .chunks(8)
        .map(|b| u64::from_be_bytes(b.try_into().unwrap()))
        .collect()
}

fn number(node: fdt::node::FdtNode<'_, '_>, name: &str) -> usize {
    node.property(name).and_then(|p| p.as_usize()).unwrap()
}

#[test]
fn cpus_are_listed_in_vp_order_by_apic_id() {
    let blob = tree("");
    let tree = Fdt::new(&blob).unwrap();
    let cpus = tree.find_node("/cpus").unwrap();
    assert_eq!(
        (number(cpus, "#address-cells"), number(cpus, "#size-cells")),
        (1, 0)
    );
    let list: Vec<_> = cpus
        .children()
        .map(|cpu| {
            assert_eq!(cpu.property("status").unwrap().as_str(), Some("okay"));
            assert_eq!(cpu.property("device_type").unwrap().as_str(), Some("cpu"));
            (number(cpu, "reg"), number(cpu, "numa-node-id"))
        })
        .collect();
    assert_eq!(list, [(1, 0), (2, 0), (3, 1), (4, 1)]);
    // `boot_cpuid_phys` of the header: VP 0.
    assert_eq!(blob[28..32], [0, 0, 0, 1]);
}

#[test]
fn memory_nodes_tell_vtl2s_part_the_hosts_and_the_node() {
    let blob = tree("");
    let tree = Fdt::new(&blob).unwrap();
    let memory: Vec<_> = tree
        .find_node("/")
        .unwrap()
        .children()
        .filter(|node| node.name.starts_with("memory@"))
        .map(|node| {
            let reg = numbers(node, "reg");
            assert_eq!(node.name, std::format!("memory@{:x}", reg[0]));
            let node_id = number(node, "numa-node-id");
            (
                reg[0] / MIB,
                reg[1] / MIB,
                node_id,
                number(node, "microsoft,igvm-type"),
            )
        })
        .collect();
    assert_eq!(
        memory,
        [
            (0, 1, 0, 0),
            (1, 111, 0, 0),
            (112, 16, 0, 1),
            (128, 22, 0, 3),
            (150, 42, 1, 3),
            (192, 320, 1, 0)
        ]
    );
}

#[test]
fn the_openhcl_node_follows_the_contract() {
    let blob = tree("OPENHCL_A=1 quiet");
    let tree = Fdt::new(&blob).unwrap();
    let openhcl = tree.find_node("/openhcl").unwrap();
    assert_eq!(
        openhcl.property("memory-allocation-mode").unwrap().as_str(),
        Some("host")
    );
    let entropy = tree
        .find_node("/openhcl/entropy")
        .unwrap()
        .property("reg")
        .unwrap();
    assert_eq!(entropy.value, machine().entropy);
    assert_eq!(tree.chosen().bootargs(), Some("OPENHCL_A=1 quiet"));
}

#[test]
fn com3_and_the_ioapic_are_described() {
    let blob = tree("");
    let tree = Fdt::new(&blob).unwrap();
    let com3 = tree.find_node("/pio-bus/serial@3e8").unwrap();
    assert_eq!(numbers(com3, "reg"), [0x3e8, 8]);
    assert_eq!(number(com3, "current-speed"), 115_200);
    assert_eq!(
        com3.property("compatible").unwrap().as_str(),
        Some("ns16550")
    );
    let io_apic = tree.find_node("/interrupt-controller@fec00000").unwrap();
    assert_eq!(numbers(io_apic, "reg"), [0xfec0_0000, 0x1000]);
    assert_eq!(number(io_apic, "interrupt-base"), 0);
    assert!(io_apic.property("interrupt-controller").is_some());
}

#[test]
fn the_vmbus_of_vtl2_has_no_mmio() {
    let blob = tree("");
    let tree = Fdt::new(&blob).unwrap();
    let bus = tree.find_node("/bus").unwrap();
    assert_eq!(
        bus.property("compatible").unwrap().as_str(),
        Some("simple-bus")
    );
    assert!(bus.property("ranges").unwrap().value.is_empty());
    let vmbus = tree.find_node("/bus/vmbus").unwrap();
    assert_eq!(
        vmbus.property("compatible").unwrap().as_str(),
        Some("microsoft,vmbus")
    );
    assert_eq!(number(vmbus, "microsoft,vtl"), 2);
    assert_eq!(number(vmbus, "microsoft,message-connection-id"), 4);
    assert!(vmbus.property("ranges").is_none());
}

#[test]
fn a_machine_without_com3_has_no_serial_node() {
    let mut machine = machine();
    machine.com3 = false;
    machine.entropy.clear();
    let blob = Parameters {
        machine: &machine,
        vtl2_memory: MemoryRange::new(0, 0),
        bootargs: "",
    }
    .device_tree()
    .unwrap();
    let tree = Fdt::new(&blob).unwrap();
    assert!(tree.find_node("/pio-bus").is_none());
    assert!(tree.find_node("/openhcl/entropy").is_none());
}

#[test]
fn a_zero_byte_in_the_bootargs_is_refused() {
    let error = with_parameters("a\0b", |p| p.device_tree().unwrap_err());
    assert_eq!(error, "a zero byte in the boot arguments");
}

#[test]
fn the_memory_map_is_sorted_typed_and_ended() {
    let bytes = with_parameters("", |p| p.memory_map());
    let entries: Vec<_> = bytes
        .chunks(size_of::<IGVM_VHS_MEMORY_MAP_ENTRY>())
        .map(|bytes| IGVM_VHS_MEMORY_MAP_ENTRY::read_from_bytes(bytes).unwrap())
        .map(|e| {
            (
                e.starting_gpa_page_number,
                e.number_of_pages,
                e.entry_type.0,
            )
        })
        .collect();
    let pages = |mib: u64| mib * 256;
    assert_eq!(
        entries,
        [
            (0, pages(1), 0),
            (pages(1), pages(111), 0),
            (pages(112), pages(16), 1),
            (pages(128), pages(22), 3),
            (pages(150), pages(42), 3),
            (pages(192), pages(320), 0),
            (0, 0, 0),
        ]
    );
}

#[test]
fn small_parameters_have_their_layout() {
    with_parameters("text", |p| {
        assert_eq!(p.vp_count(), [4, 0, 0, 0]);
        assert_eq!(p.environment_info(), [0; 4]);
        assert_eq!(p.command_line(), b"text\0");
        assert_eq!(p.madt(), b"MADT-content");
        assert_eq!(p.srat(), vec![0; 0]);
        assert_eq!(p.slit(), b"SLIT-content");
        assert_eq!(p.pptt(), b"PPTT-content");
        let mmio = p.mmio_ranges();
        let words: Vec<_> = mmio
            .chunks(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0x8_0000, 0x4_0000, 0x40_0000, 0xfc0_0000]);
    });
}
