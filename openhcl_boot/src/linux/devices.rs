//! Device nodes: the little hardware that VTL2's kernel drives itself.

use alloc::format;
use alloc::vec::Vec;

use loader_defs::PAGE_SIZE;
use sidecar_defs::node_shared_size;
use vm_fdt::{Error, FdtWriter};

use super::device_tree::{Arch, Contents};
use crate::host_dt::{Gic, IoApic, SerialPort};
use crate::partition::PartitionInfo;
use crate::range::GpaRange;
use crate::sidecar::Sidecar;

/// The interrupt controller's phandle.
const PHANDLE_INTERRUPTS: u32 = 1;

/// Clock of a 16550, 16 times the highest baud rate.
const SERIAL_CLOCK: u32 = 1_843_200;
/// Ports of a 16550.
const SERIAL_PORTS: u32 = 8;
/// Sense of an ISA interrupt, in the cells of the kernel's I/O APIC binding.
const ISA_EDGE_RISING: u32 = 3;
/// Size of the I/O APIC's registers.
const IO_APIC_SIZE: u32 = 0x1000;

// Cells of a GIC interrupt.
const GIC_PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_LOW: u32 = 8;
/// Private interrupt of the virtual timer (INTID 20).
const TIMER_PPI: u32 = 4;
/// Private interrupt of VMBus.
const VMBUS_PPI: u32 = 2;
/// First INTID of private interrupts.
const PPI_BASE: u32 = 16;
/// The performance counters' interrupt when the host names none.
const DEFAULT_PMU_GSIV: u32 = 0x17;
/// Where the GIC is when the host does not say.
const DEFAULT_DISTRIBUTOR: u64 = 0xffff_0000;
const DEFAULT_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
const DEFAULT_REDISTRIBUTORS: u64 = 0xeffe_e000;
const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Size of an SBSA UART's registers.
const SBSA_UART_SIZE: u64 = 0x1000;

/// The pages of sidecar nodes by which the worker commands their processors.
pub(super) fn sidecar(fdt: &mut FdtWriter, sidecar: &Sidecar) -> Result<(), Error> {
    for node in &sidecar.nodes {
        let (base, count) = (node.memory_base, node.cpus.cpu_count);
        let shared = node_shared_size(count);
        let device = fdt.begin_node(&format!("sidecar@{base:x}"))?;
        fdt.property_string("compatible", "microsoft,openhcl-sidecar")?;
        fdt.property_array_u64(
            "reg",
            &[base, PAGE_SIZE, base + PAGE_SIZE, shared - PAGE_SIZE],
        )?;
        fdt.property_string_list("reg-names", ["ctrl".into(), "shmem".into()].into())?;
        fdt.property_u32("base-cpu", node.cpus.base_vp)?;
        fdt.property_u32("cpu-count", count)?;
        fdt.property_u32("numa-node-id", node.cpus.vnode)?;
        fdt.end_node(device)?;
    }
    Ok(())
}

/// I/O APIC and serial ports, if the host has said where they are. Without an I/O APIC a
/// port needs no node: the kernel knows the standard addresses, and prints by polling.
pub(super) fn x86_platform(fdt: &mut FdtWriter, partition: &PartitionInfo) -> Result<(), Error> {
    let Some(io_apic) = partition.io_apic else {
        return Ok(());
    };
    let soc = fdt.begin_node("soc")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 1)?;
    fdt.property_null("ranges")?;
    write_io_apic(fdt, io_apic)?;
    let isa = fdt.begin_node("isa")?;
    fdt.property_string("compatible", "isa")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 1)?;
    // Child <1 port> is port space; 64 KiB of it.
    fdt.property_array_u32("ranges", &[1, 0, 0, 0, 0x1_0000])?;
    for port in &partition.serial_ports {
        if let Some(interrupt) = port.interrupt.or_else(|| standard_interrupt(port.base)) {
            write_serial(fdt, port, interrupt)?;
        }
    }
    fdt.end_node(isa)?;
    fdt.end_node(soc)
}

fn write_io_apic(fdt: &mut FdtWriter, io_apic: IoApic) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", io_apic.base))?;
    // The only compatible text that the kernel's x86 device tree code takes for an I/O
    // APIC.
    fdt.property_string("compatible", "intel,ce4100-ioapic")?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_null("interrupt-controller")?;
    let [high, low] = [(io_apic.base >> 32) as u32, io_apic.base as u32];
    fdt.property_array_u32("reg", &[high, low, IO_APIC_SIZE])?;
    fdt.property_phandle(PHANDLE_INTERRUPTS)?;
    fdt.end_node(node)
}

// The host's schema has no interrupt for a port; on a PC the port number tells it.
fn standard_interrupt(base: u16) -> Option<[u32; 2]> {
    match base {
        0x3f8 | 0x3e8 => Some([4, ISA_EDGE_RISING]),
        0x2f8 | 0x2e8 => Some([3, ISA_EDGE_RISING]),
        _ => None,
    }
}

fn write_serial(fdt: &mut FdtWriter, port: &SerialPort, interrupt: [u32; 2]) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("serial@{:x}", port.base))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u32("reg", &[1, u32::from(port.base), SERIAL_PORTS])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
    fdt.property_u32("current-speed", port.current_speed)?;
    fdt.property_u32("interrupt-parent", PHANDLE_INTERRUPTS)?;
    fdt.property_array_u32("interrupts", &interrupt)?;
    fdt.end_node(node)
}

/// PSCI, interrupt controller, timer, counters, console and `/chosen`.
pub(super) fn arm_platform(fdt: &mut FdtWriter, contents: &Contents<'_>) -> Result<(), Error> {
    let partition = contents.partition;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string("compatible", "arm,psci-0.2")?;
    fdt.property_string("method", "hvc")?;
    fdt.property_u32("cpu_off", 1)?;
    fdt.property_u32("cpu_on", 2)?;
    fdt.end_node(psci)?;

    let gic = partition
        .gic
        .unwrap_or_else(|| default_gic(partition.cpus.len() as u64));
    write_gic(fdt, &gic)?;

    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_u32("interrupt-parent", PHANDLE_INTERRUPTS)?;
    fdt.property_string("interrupt-names", "virt")?;
    fdt.property_array_u32("interrupts", &[GIC_PPI, TIMER_PPI, LEVEL_LOW])?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)?;

    let pmu = fdt.begin_node("pmu")?;
    let gsiv = partition.pmu_gsiv.unwrap_or(DEFAULT_PMU_GSIV);
    fdt.property_string("compatible", "arm,armv8-pmuv3")?;
    fdt.property_u32("interrupt-parent", PHANDLE_INTERRUPTS)?;
    fdt.property_array_u32("interrupts", &[GIC_PPI, gsiv - PPI_BASE, LEVEL_LOW])?;
    fdt.end_node(pmu)?;

    if let Some(uart) = partition.sbsa_uart {
        let node = fdt.begin_node(&format!("serial@{:x}", uart.base))?;
        fdt.property_string("compatible", "arm,sbsa-uart")?;
        fdt.property_array_u64("reg", &[u64::from(uart.base), SBSA_UART_SIZE])?;
        fdt.property_u32("interrupt-parent", PHANDLE_INTERRUPTS)?;
        fdt.property_array_u32("interrupts", &[0, uart.interrupt, EDGE_RISING])?;
        fdt.property_u32("current-speed", uart.current_speed)?;
        fdt.end_node(node)?;
    }

    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", contents.command_line)?;
    fdt.property_u64("linux,initrd-start", contents.initrd.start())?;
    fdt.property_u64("linux,initrd-end", contents.initrd.end())?;
    fdt.end_node(chosen)
}

fn default_gic(cpus: u64) -> Gic {
    let range = |start, length| GpaRange::new(start, length).unwrap_or(GpaRange::EMPTY);
    Gic {
        distributor: range(DEFAULT_DISTRIBUTOR, DEFAULT_DISTRIBUTOR_SIZE),
        redistributors: range(DEFAULT_REDISTRIBUTORS, REDISTRIBUTOR_SIZE * cpus),
        redistributor_stride: REDISTRIBUTOR_SIZE,
    }
}

fn write_gic(fdt: &mut FdtWriter, gic: &Gic) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{:x}", gic.distributor.start()))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#redistributor-regions", 1)?;
    fdt.property_u64("redistributor-stride", gic.redistributor_stride)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u64(
        "reg",
        &[
            gic.distributor.start(),
            gic.distributor.len(),
            gic.redistributors.start(),
            gic.redistributors.len(),
        ],
    )?;
    fdt.property_phandle(PHANDLE_INTERRUPTS)?;
    fdt.end_node(node)
}

/// VTL2's VMBus, if the host has one for it. The kernel's VMBus driver must not see a
/// node without a SynIC below it.
pub(super) fn vmbus(fdt: &mut FdtWriter, contents: &Contents<'_>) -> Result<(), Error> {
    let Some(vmbus) = &contents.partition.vmbus_vtl2 else {
        return Ok(());
    };
    let bus = fdt.begin_node("bus")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let node = fdt.begin_node("vmbus")?;
    fdt.property_string("compatible", "microsoft,vmbus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("microsoft,vtl", 2)?;
    fdt.property_u32("microsoft,message-connection-id", vmbus.connection_id)?;
    fdt.property_null("dma-coherent")?;
    let ranges: Vec<u64> = contents
        .vtl2_mmio
        .iter()
        .flat_map(|r| [r.start(), r.start(), r.len()])
        .collect();
    fdt.property_array_u64("ranges", &ranges)?;
    if contents.arch == Arch::Arm64 {
        fdt.property_u32("interrupt-parent", PHANDLE_INTERRUPTS)?;
        fdt.property_array_u32("interrupts", &[GIC_PPI, VMBUS_PPI, EDGE_RISING])?;
    }
    fdt.end_node(node)?;
    fdt.end_node(bus)
}
