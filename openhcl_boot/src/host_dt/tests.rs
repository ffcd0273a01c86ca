//! A tree like the host's, to be changed by each test.

use super::*;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

pub(crate) const MIB: u64 = 1 << 20;

/// The parts of a host's tree that tests vary.
#[derive(Debug, Clone)]
pub(crate) struct HostTree {
    pub(crate) boot_cpu: u32,
    /// (hardware id, vnode)
    pub(crate) cpus: Vec<(u32, u32)>,
    /// (base, length, vnode, IGVM type)
    pub(crate) memory: Vec<(u64, u64, u32, u16)>,
    pub(crate) mode: &'static str,
    pub(crate) memory_size: Option<u64>,
    pub(crate) mmio_size: Option<u64>,
    pub(crate) extras: bool,
    pub(crate) bootargs: &'static str,
    /// (VTL, MMIO)
    pub(crate) vmbus: Vec<(u32, &'static [(u64, u64)])>,
    pub(crate) com3: bool,
}

impl HostTree {
    /// 4 VPs with APIC ids 1 to 4, 1 GiB of RAM with VTL2 at 128 MiB, nothing optional.
    pub(crate) fn plain() -> Self {
        const PROTECTABLE: u16 = 3;
        Self {
            boot_cpu: 1,
            cpus: (1..=4).map(|id| (id, 0)).collect(),
            memory: [
                (0, 112 * MIB, 0, 0),
                (128 * MIB, 64 * MIB, 0, PROTECTABLE),
                (192 * MIB, 832 * MIB, 0, 0),
            ]
            .into(),
            mode: "host",
            memory_size: None,
            mmio_size: None,
            extras: false,
            bootargs: "",
            vmbus: Vec::new(),
            com3: false,
        }
    }

    /// The same with everything optional.
    pub(crate) fn full() -> Self {
        Self {
            extras: true,
            bootargs: "debug",
            com3: true,
            ..Self::plain()
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut fdt = FdtWriter::new().unwrap();
        self.write(&mut fdt).unwrap();
        fdt.finish().unwrap()
    }

    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        fdt.set_boot_cpuid_phys(self.boot_cpu);
        let root = fdt.begin_node("")?;
        fdt.property_u32("#address-cells", 2)?;
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        for (i, (id, vnode)) in self.cpus.iter().enumerate() {
            let cpu = fdt.begin_node(&alloc::format!("cpu@{i:x}"))?;
            fdt.property_string("status", "okay")?;
            fdt.property_u32("reg", *id)?;
            fdt.property_u32("numa-node-id", *vnode)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)?;
        for (base, length, vnode, igvm_type) in &self.memory {
            let memory = fdt.begin_node(&alloc::format!("memory@{base:x}"))?;
            fdt.property_array_u64("reg", &[*base, *length])?;
            fdt.property_u32("numa-node-id", *vnode)?;
            fdt.property_u32("microsoft,igvm-type", u32::from(*igvm_type))?;
            fdt.end_node(memory)?;
        }
        let openhcl = fdt.begin_node("openhcl")?;
        fdt.property_string("memory-allocation-mode", self.mode)?;
        if let Some(size) = self.memory_size {
            fdt.property_u64("memory-size", size)?;
        }
        if let Some(size) = self.mmio_size {
            fdt.property_u64("mmio-size", size)?;
        }
        let entropy_node = |fdt: &mut FdtWriter| {
            let entropy = fdt.begin_node("entropy")?;
            fdt.property("reg", &[0x5a; 300])?;
            fdt.end_node(entropy)
        };
        if self.extras {
            fdt.property_u64("vtl0-alias-map", 1 << 46)?;
            entropy_node(fdt)?;
            let keep = fdt.begin_node("keep-alive")?;
            fdt.property_string("device-types", "nvme")?;
            fdt.end_node(keep)?;
            let dma = fdt.begin_node("device-dma")?;
            fdt.property_u64("total-pages", 64)?;
            fdt.end_node(dma)?;
        }
        fdt.end_node(openhcl)?;
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.bootargs)?;
        fdt.end_node(chosen)?;
        if self.com3 {
            let pio = fdt.begin_node("pio")?;
            fdt.property_string("compatible", "x86-pio-bus")?;
            let serial = fdt.begin_node("serial@3e8")?;
            fdt.property_string("compatible", "ns16550")?;
            fdt.property_array_u64("reg", &[0x3e8, 8])?;
            fdt.property_u32("current-speed", 115_200)?;
            fdt.end_node(serial)?;
            fdt.end_node(pio)?;
        }
        if self.extras {
            let io_apic = fdt.begin_node("interrupt-controller@fec00000")?;
            fdt.property_string("compatible", "intel,ce4100-ioapic")?;
            fdt.property_array_u64("reg", &[0xfec0_0000, 0x1000])?;
            fdt.end_node(io_apic)?;
        }
        let bus = fdt.begin_node("bus")?;
        fdt.property_string("compatible", "simple-bus")?;
        fdt.property_null("ranges")?;
        for (i, (vtl, mmio)) in self.vmbus.iter().enumerate() {
            let vmbus = fdt.begin_node(&alloc::format!("vmbus@{i}"))?;
            fdt.property_string("compatible", "microsoft,vmbus")?;
            fdt.property_u32("microsoft,vtl", *vtl)?;
            fdt.property_u32("microsoft,message-connection-id", 0x800 + vtl)?;
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_u32("#size-cells", 2)?;
            let ranges: Vec<u64> = mmio.iter().flat_map(|(b, l)| [*b, *b, *l]).collect();
            fdt.property_array_u64("ranges", &ranges)?;
            fdt.end_node(vmbus)?;
        }
        fdt.end_node(bus)?;
        fdt.end_node(root)
    }
}

fn parse(tree: &HostTree) -> Result<HostDeviceTree, HostDtError> {
    HostDeviceTree::parse(&tree.build())
}

// A tree with the given node under the root.
fn with_node(write: impl FnOnce(&mut FdtWriter)) -> Result<HostDeviceTree, HostDtError> {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    let openhcl = fdt.begin_node("openhcl").unwrap();
    fdt.property_string("memory-allocation-mode", "host")
        .unwrap();
    fdt.end_node(openhcl).unwrap();
    write(&mut fdt);
    fdt.end_node(root).unwrap();
    HostDeviceTree::parse(&fdt.finish().unwrap())
}

#[test]
fn a_full_tree_is_read() {
    let mut tree = HostTree::full();
    tree.vmbus
        .push((2, &[(0x1_0000_0000, MIB), (0xf800_0000, MIB)]));
    let host = parse(&tree).unwrap();

    assert_eq!(host.boot_cpu, 1);
    assert_eq!(host.cpus.len(), 4);
    assert_eq!(host.cpus[3].hardware_id, 4);
    assert_eq!(
        host.memory[1].igvm_type,
        MemoryMapEntryType::VTL2_PROTECTABLE
    );
    assert_eq!(host.entropy.len(), MAX_ENTROPY, "more is cut");
    assert_eq!(host.command_line, "debug");
    assert_eq!(
        host.serial_ports[0],
        SerialPort {
            base: 0x3e8,
            current_speed: 115_200,
            interrupt: None
        }
    );
    assert_eq!(host.io_apic, Some(IoApic { base: 0xfec0_0000 }));
    let vmbus = host.vmbus_vtl2.unwrap();
    assert_eq!(vmbus.connection_id, 0x802);
    assert_eq!(vmbus.mmio[0].start(), 0xf800_0000, "sorted");
}

#[test]
fn unavailable_processors_are_skipped() {
    let host = with_node(|fdt| {
        let cpus = fdt.begin_node("cpus").unwrap();
        fdt.property_u32("#address-cells", 2).unwrap();
        for (id, status) in [(5, "okay"), (6, "disabled"), (7, "okay")] {
            let cpu = fdt.begin_node(&alloc::format!("cpu@{id}")).unwrap();
            fdt.property_string("status", status).unwrap();
            fdt.property_u64("reg", id).unwrap();
            fdt.property_u32("numa-node-id", 0).unwrap();
            fdt.end_node(cpu).unwrap();
        }
        fdt.end_node(cpus).unwrap();
    })
    .unwrap();
    let ids: Vec<u64> = host.cpus.iter().map(|c| c.hardware_id).collect();
    assert_eq!(ids, [5, 7]);
}

#[test]
fn arm_devices_are_read() {
    let host = with_node(|fdt| {
        let gic = fdt.begin_node("intc@ffff0000").unwrap();
        fdt.property_string("compatible", "arm,gic-v3").unwrap();
        fdt.property_u32("#redistributor-regions", 1).unwrap();
        fdt.property_u32("#address-cells", 2).unwrap();
        fdt.property_u32("#size-cells", 2).unwrap();
        fdt.property_u32("#interrupt-cells", 3).unwrap();
        fdt.property_u64("redistributor-stride", 0x2_0000).unwrap();
        fdt.property_array_u64("reg", &[0xffff_0000, 0x1_0000, 0xeffe_e000, 0x4_0000])
            .unwrap();
        fdt.end_node(gic).unwrap();
        let uart = fdt.begin_node("uart").unwrap();
        fdt.property_string("compatible", "arm,sbsa-uart").unwrap();
        fdt.property_u32("reg", 0xeffe_c000).unwrap();
        fdt.property_u32("interrupts", 1).unwrap();
        fdt.property_u32("current-speed", 115_200).unwrap();
        fdt.end_node(uart).unwrap();
        let pmu = fdt.begin_node("pmu").unwrap();
        fdt.property_string("compatible", "arm,armv8-pmuv3")
            .unwrap();
        fdt.property_array_u32("interrupts", &[1, 7, 4]).unwrap();
        fdt.end_node(pmu).unwrap();
    })
    .unwrap();
    assert_eq!(host.gic.unwrap().redistributors.start(), 0xeffe_e000);
    assert_eq!(host.sbsa_uart.unwrap().base, 0xeffe_c000);
    assert_eq!(host.pmu_gsiv, Some(0x17));
}

#[test]
fn errors_name_node_property_and_value() {
    let mut tree = HostTree::plain();
    tree.mode = "guess";
    assert_eq!(
        alloc::format!("{}", parse(&tree).unwrap_err()),
        "host device tree: node openhcl: memory-allocation-mode = \"guess\", expected \"host\" or \"vtl2\""
    );

    let mut tree = HostTree::plain();
    tree.memory[0].1 -= 1;
    assert!(matches!(
        parse(&tree),
        Err(HostDtError::Alignment { node, .. }) if node == "memory@0"
    ));

    let mut tree = HostTree::plain();
    tree.memory[0] = (!0xfff, 0x2000, 0, 0);
    assert!(matches!(parse(&tree), Err(HostDtError::Property { .. })));

    let mut tree = HostTree::plain();
    tree.vmbus = [(1, [].as_slice())].into();
    assert_eq!(
        alloc::format!("{}", parse(&tree).unwrap_err()),
        "host device tree: node vmbus@0: microsoft,vtl = <00000001> (4 bytes), expected VTL 0 or 2"
    );

    let mut tree = HostTree::plain();
    tree.vmbus = [(2, [].as_slice()), (2, &[])].into();
    assert_eq!(
        parse(&tree),
        Err(HostDtError::Duplicate {
            what: "VMBus of VTL2"
        })
    );

    let empty = FdtWriter::new().and_then(|mut fdt| {
        let root = fdt.begin_node("")?;
        fdt.end_node(root)?;
        fdt.finish()
    });
    assert_eq!(
        HostDeviceTree::parse(&empty.unwrap()),
        Err(HostDtError::MissingNode { node: "/openhcl" })
    );
}

#[test]
fn limits_are_exact() {
    let mut tree = HostTree::plain();
    tree.cpus = (0..MAX_CPUS as u32).map(|i| (i, 0)).collect();
    assert_eq!(parse(&tree).unwrap().cpus.len(), MAX_CPUS);
    tree.cpus.push((5000, 0));
    assert_eq!(
        parse(&tree),
        Err(HostDtError::TooMany {
            what: "processors",
            limit: MAX_CPUS
        })
    );

    let mut tree = HostTree::plain();
    tree.memory = (0..MAX_MEMORY_RANGES as u64)
        .map(|i| (i * MIB, 4096, 0, 0))
        .collect();
    assert_eq!(parse(&tree).unwrap().memory.len(), MAX_MEMORY_RANGES);
    tree.memory.push((1 << 40, 4096, 0, 0));
    assert!(matches!(parse(&tree), Err(HostDtError::TooMany { .. })));
}

proptest! {
    #[test]
    fn any_bytes_give_an_error_or_a_tree(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = HostDeviceTree::parse(&bytes);
    }

    #[test]
    fn mutated_trees_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut tree = HostTree::full();
        tree.vmbus.push((0, &[(0xf800_0000, MIB)]));
        let mut blob = tree.build();
        for (index, value) in changes {
            let i = index.index(blob.len());
            blob[i] = value;
        }
        if let Ok(host) = HostDeviceTree::parse(&blob) {
            prop_assert!(host.cpus.len() <= MAX_CPUS && host.memory.len() <= MAX_MEMORY_RANGES);
            let _ = crate::partition::PartitionInfo::new(
                host,
                crate::isolation::Trust::new(crate::isolation::Isolation::Vbs, false),
            );
        }
    }
}
