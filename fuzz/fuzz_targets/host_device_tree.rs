//! The host's device tree, as the boot shim reads it: any bytes give a typed error or a
//! tree within the documented limits, never a panic.
//!
//! An input that begins with an odd byte is not a tree but a list of edits (two bytes of
//! offset, one of value) to a good one, so that the fuzzer gets past the structure at
//! once.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use openhcl_boot::host_dt::{HostDeviceTree, MAX_CPUS, MAX_ENTROPY, MAX_MEMORY_RANGES};
use openhcl_boot::isolation::{Isolation, Trust};
use openhcl_boot::memory::{mmio, select};
use openhcl_boot::partition::PartitionInfo;
use openhcl_boot::range::GpaRange;
use vm_fdt::FdtWriter;

const IMAGE: GpaRange = match GpaRange::new(128 << 20, 64 << 20) {
    Some(range) => range,
    None => GpaRange::EMPTY,
};

static GOOD_TREE: LazyLock<Vec<u8>> = LazyLock::new(|| good_tree().expect("a valid tree"));

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((first, edits)) if first % 2 == 1 => {
            let mut tree = GOOD_TREE.clone();
            for edit in edits.chunks_exact(3) {
                let offset = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
                let length = tree.len();
                tree[offset % length] = edit[2];
            }
            read(&tree);
        }
        _ => read(data),
    }
});

fn read(bytes: &[u8]) {
    let Ok(tree) = HostDeviceTree::parse(bytes) else {
        return;
    };
    assert!(tree.cpus.len() <= MAX_CPUS);
    assert!(tree.memory.len() <= MAX_MEMORY_RANGES);
    assert!(tree.entropy.len() <= MAX_ENTROPY);
    for isolation in [Isolation::None, Isolation::Vbs] {
        let trust = Trust::new(isolation, false);
        let Ok(partition) = PartitionInfo::new(tree.clone(), trust) else {
            continue;
        };
        if !trust.host_is_trusted() {
            assert!(partition.command_line.is_empty() && partition.com3().is_none());
        }
        // Errors are answers too; what is accepted must hold the image.
        let _ = mmio::select(&partition);
        if let Ok(ram) = select::select(&partition, IMAGE, Some(&[IMAGE])) {
            let held: u64 = ram.iter().map(|r| r.range.intersection(&IMAGE).len()).sum();
            assert_eq!(held, IMAGE.len());
        }
    }
}

fn good_tree() -> Result<Vec<u8>, vm_fdt::Error> {
    let mut fdt = FdtWriter::new()?;
    fdt.set_boot_cpuid_phys(1);
    let root = fdt.begin_node("")?;
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    for id in 1..=3 {
        let cpu = fdt.begin_node(&format!("cpu@{id}"))?;
        fdt.property_string("status", "okay")?;
        fdt.property_u32("reg", id)?;
        fdt.property_u32("numa-node-id", 0)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;
    for (base, length, igvm_type) in [(0, 112 << 20, 0), (128 << 20, 64 << 20, 3)] {
        let memory = fdt.begin_node(&format!("memory@{base:x}"))?;
        fdt.property_array_u64("reg", &[base, length])?;
        fdt.property_u32("numa-node-id", 0)?;
        fdt.property_u32("microsoft,igvm-type", igvm_type)?;
        fdt.end_node(memory)?;
    }
    let openhcl = fdt.begin_node("openhcl")?;
    fdt.property_string("memory-allocation-mode", "host")?;
    fdt.property_u64("memory-size", 96 << 20)?;
    let entropy = fdt.begin_node("entropy")?;
    fdt.property("reg", &[7; 64])?;
    fdt.end_node(entropy)?;
    fdt.end_node(openhcl)?;
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", "debug")?;
    fdt.end_node(chosen)?;
    let pio = fdt.begin_node("pio")?;
    fdt.property_string("compatible", "x86-pio-bus")?;
    let serial = fdt.begin_node("serial@3e8")?;
    fdt.property_string("compatible", "ns16550")?;
    fdt.property_array_u64("reg", &[0x3e8, 8])?;
    fdt.property_u32("current-speed", 115_200)?;
    fdt.end_node(serial)?;
    fdt.end_node(pio)?;
    let io_apic = fdt.begin_node("interrupt-controller@fec00000")?;
    fdt.property_string("compatible", "intel,ce4100-ioapic")?;
    fdt.property_array_u64("reg", &[0xfec0_0000, 0x1000])?;
    fdt.end_node(io_apic)?;
    let bus = fdt.begin_node("bus")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_null("ranges")?;
    let vmbus = fdt.begin_node("vmbus")?;
    fdt.property_string("compatible", "microsoft,vmbus")?;
    fdt.property_u32("microsoft,vtl", 2)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_array_u64("ranges", &[0xf800_0000, 0xf800_0000, 1 << 20])?;
    fdt.property_u32("microsoft,message-connection-id", 4)?;
    fdt.end_node(vmbus)?;
    fdt.end_node(bus)?;
    fdt.end_node(root)?;
    fdt.finish()
}
