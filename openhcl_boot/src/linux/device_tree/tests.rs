//! The tree is read back by an independent reader, as the kernel would see it.

use super::*;
use crate::host_dt::HostDeviceTree;
use crate::host_dt::tests::{HostTree, MIB};
use crate::isolation::{Isolation, Trust};
use crate::memory::map::partition_map;
use crate::memory::mmio::Mmio;
use crate::memory::space::TypedRange;
use alloc::string::String;
use fdt::Fdt;
use fdt::node::FdtNode;

fn range(start: u64, length: u64) -> GpaRange {
    GpaRange::new(start, length).unwrap()
}

fn tree(host: &HostTree, arch: Arch) -> Vec<u8> {
    let host = HostDeviceTree::parse(&host.build()).unwrap();
    let partition = PartitionInfo::new(host, Trust::new(Isolation::None, false)).unwrap();
    let vtl2 = range(128 * MIB, 64 * MIB);
    let [config, ram] = [range(128 * MIB, MIB), range(129 * MIB, 63 * MIB)];
    let typed = [
        (config, MemoryVtlType::VTL2_CONFIG),
        (ram, MemoryVtlType::VTL2_RAM),
    ]
    .map(|(range, purpose)| TypedRange {
        range,
        vnode: 0,
        purpose,
    });
    build(&Contents {
        arch,
        partition: &partition,
        vtl2_ram: &[NodeRange {
            range: vtl2,
            vnode: 0,
        }],
        map: &partition_map(&partition.memory, &typed, &Mmio::default()),
        imported: &[ImportedRegion {
            range: config,
            accepted: true,
        }],
        vtl2_mmio: &[range(0xf800_0000, MIB)],
        vtl0_alias_map: Some(1 << 46),
        reftime_start: Some(5),
        reftime_end: Some(9),
        tsc_end: Some(1 << 40),
        sidecar: None,
        command_line: "panic=-1",
        initrd: range(0x900_0000, 0x1234),
    })
    .unwrap()
}

fn text(node: FdtNode<'_, '_>, name: &str) -> String {
    node.property(name).unwrap().as_str().unwrap().into()
}

fn u64s(node: FdtNode<'_, '_>, name: &str) -> Vec<u64> {
    let value = node.property(name).unwrap().value;
    value
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&b| u64::from_be_bytes(b))
        .collect()
}

fn u32s(node: FdtNode<'_, '_>, name: &str) -> Vec<u32> {
    let value = node.property(name).unwrap().value;
    value
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| u32::from_be_bytes(b))
        .collect()
}

#[test]
fn x86_tree_has_cpus_memory_and_times() {
    let blob = tree(&HostTree::full(), Arch::X64);
    let fdt = Fdt::new(&blob).unwrap();
    let root = fdt.find_node("/").unwrap();
    assert_eq!(u64s(root, "reftime_boot_start"), [5]);
    assert_eq!(u64s(root, "reftime_boot_end"), [9]);
    assert_eq!(u64s(root, "openhcl,tsc-boot-end"), [1 << 40]);
    assert_eq!(
        text(fdt.find_node("/hypervisor").unwrap(), "compatible"),
        "microsoft,hyperv"
    );
    let cpus: Vec<_> = fdt.find_node("/cpus").unwrap().children().collect();
    assert_eq!(cpus.len(), 4);
    assert_eq!(cpus[3].name, "cpu@4");
    assert_eq!(u32s(cpus[3], "reg"), [4]);
    assert!(cpus.iter().all(|c| text(*c, "status") == "okay"));
    let memory = fdt.find_node("/memory@8000000").unwrap();
    assert_eq!(u64s(memory, "reg"), [128 * MIB, 64 * MIB]);
    let reserved: Vec<_> = fdt
        .memory_reservations()
        .map(|r| (r.address().addr() as u64, r.size() as u64))
        .collect();
    assert_eq!(reserved, [(128 * MIB, MIB)]);
}

#[test]
fn x86_tree_passes_the_hosts_interrupt_hardware_on() {
    let blob = tree(&HostTree::full(), Arch::X64);
    let fdt = Fdt::new(&blob).unwrap();
    let io_apic = fdt.find_node("/soc/interrupt-controller@fec00000").unwrap();
    assert_eq!(text(io_apic, "compatible"), "intel,ce4100-ioapic");
    assert_eq!(u32s(io_apic, "reg"), [0, 0xfec0_0000, 0x1000]);
    let com3 = fdt.find_node("/soc/isa/serial@3e8").unwrap();
    assert_eq!(u32s(com3, "reg"), [1, 0x3e8, 8]);
    assert_eq!(u32s(com3, "interrupts"), [4, 3]);

    let blob = tree(&HostTree::plain(), Arch::X64);
    assert!(Fdt::new(&blob).unwrap().find_node("/soc").is_none());
}

#[test]
fn openhcl_nodes_describe_all_memory() {
    let blob = tree(&HostTree::full(), Arch::X64);
    let fdt = Fdt::new(&blob).unwrap();
    let openhcl = fdt.find_node("/openhcl").unwrap();
    assert_eq!(text(openhcl, "isolation-type"), "none");
    assert_eq!(text(openhcl, "memory-allocation-mode"), "host");
    assert_eq!(u64s(openhcl, "vtl0-alias-map"), [1 << 46]);
    let ranges: Vec<_> = openhcl
        .children()
        .filter(|n| n.name.starts_with("memory@"))
        .map(|n| {
            assert_eq!(text(n, "device_type"), "memory-openhcl");
            let reg = u64s(n, "reg");
            (reg[0] / MIB, reg[1] / MIB, u32s(n, MEMORY_TYPE_PROPERTY)[0])
        })
        .collect();
    assert_eq!(
        ranges,
        [(0, 112, 0), (128, 1, 2), (129, 63, 1), (192, 832, 0)]
    );
    assert!(fdt.find_node("/openhcl/accepted-memory@8000000").is_some());
    let entropy = fdt.find_node("/openhcl/entropy").unwrap();
    assert_eq!(entropy.property("reg").unwrap().value.len(), 256);
}

#[test]
fn vmbus_appears_only_when_the_host_has_one() {
    let mut host = HostTree::plain();
    let blob = tree(&host, Arch::X64);
    assert!(Fdt::new(&blob).unwrap().find_node("/bus/vmbus").is_none());

    host.vmbus.push((2, &[]));
    let blob = tree(&host, Arch::X64);
    let fdt = Fdt::new(&blob).unwrap();
    let vmbus = fdt.find_node("/bus/vmbus").unwrap();
    assert_eq!(u32s(vmbus, "microsoft,vtl"), [2]);
    assert_eq!(u32s(vmbus, "microsoft,message-connection-id"), [0x802]);
    assert_eq!(u64s(vmbus, "ranges"), [0xf800_0000, 0xf800_0000, MIB]);
}

#[test]
fn arm_tree_has_what_the_kernel_starts_with() {
    let blob = tree(&HostTree::plain(), Arch::Arm64);
    let fdt = Fdt::new(&blob).unwrap();
    let cpus: Vec<_> = fdt.find_node("/cpus").unwrap().children().collect();
    assert_eq!(text(cpus[0], "status"), "okay");
    assert_eq!(text(cpus[1], "status"), "disabled");
    assert_eq!(text(cpus[1], "enable-method"), "psci");
    assert_eq!(u64s(cpus[1], "reg"), [2]);
    assert_eq!(text(fdt.find_node("/psci").unwrap(), "method"), "hvc");
    let gic = fdt.find_node("/intc@ffff0000").unwrap();
    assert_eq!(
        u64s(gic, "reg"),
        [0xffff_0000, 0x1_0000, 0xeffe_e000, 0x8_0000]
    );
    let timer = fdt.find_node("/timer").unwrap();
    assert_eq!(u32s(timer, "interrupts"), [1, 4, 8]);
    let pmu = fdt.find_node("/pmu").unwrap();
    assert_eq!(u32s(pmu, "interrupts"), [1, 7, 8]);
    let chosen = fdt.find_node("/chosen").unwrap();
    assert_eq!(text(chosen, "bootargs"), "panic=-1");
    assert_eq!(u64s(chosen, "linux,initrd-end"), [0x900_0000 + 0x1234]);
    assert!(fdt.find_node("/soc").is_none());
}
