//! The host device tree: the contract's schema (CPUs in VP order, memory with its IGVM
//! type, `/openhcl`, entropy, boot arguments, VTL2's VMBus, COM3), and the IOAPICs.
//!
//! The IOAPICs are not part of that schema, whose readers skip nodes that they do not
//! know. They are `/interrupt-controller@ADDRESS`, compatible "intel,ce4100-ioapic", with
//! one `reg` of two address and two size cells and the first GSI in `interrupt-base`.

use super::Parameters;
use alloc::format;
use alloc::vec::Vec;
use igvm_defs::dt::{IGVM_DT_IGVM_TYPE_PROPERTY, IGVM_DT_VTL_PROPERTY};
use vm_fdt::FdtWriter;
use vmbus_defs::CONNECTION_ID_4;

/// Size of an IOAPIC's register page.
const IO_APIC_SIZE: u64 = 0x1000;
const COM3_PORT: u64 = 0x3e8;
const COM3_PORT_COUNT: u64 = 8;
const VTL2: u32 = 2;
const COM3_SPEED: u32 = 115_200;

impl Parameters<'_> {
    /// The tree as a blob, or what cannot be written.
    pub(crate) fn device_tree(&self) -> Result<Vec<u8>, &'static str> {
        self.write().map_err(|error| match error {
            // The only content that is not the host's own.
            vm_fdt::Error::InvalidString => "a zero byte in the boot arguments",
            vm_fdt::Error::TotalSizeTooLarge => "more than 4 GiB",
            _ => "a tree that its writer refuses",
        })
    }

    fn write(&self) -> vm_fdt::FdtWriterResult<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        if let Some(first) = self.machine.vps.first() {
            fdt.set_boot_cpuid_phys(first.apic_id);
        }
        let root = fdt.begin_node("")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        self.cpus(&mut fdt)?;
        for (ram, memory_type) in self.memory() {
            let range = ram.range;
            let node = fdt.begin_node(&format!("memory@{:x}", range.start()))?;
            fdt.property_string("device_type", "memory")?;
            fdt.property_array_u64("reg", &[range.start(), range.size()])?;
            fdt.property_u32("numa-node-id", ram.node)?;
            fdt.property_u32(IGVM_DT_IGVM_TYPE_PROPERTY, memory_type.0.into())?;
            fdt.end_node(node)?;
        }
        self.openhcl(&mut fdt)?;
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.bootargs)?;
        fdt.end_node(chosen)?;
        for io_apic in &self.machine.io_apics {
            let node = fdt.begin_node(&format!("interrupt-controller@{:x}", io_apic.address))?;
            fdt.property_string("compatible", "intel,ce4100-ioapic")?;
            fdt.property_null("interrupt-controller")?;
            fdt.property_u32("#interrupt-cells", 2)?;
            fdt.property_array_u64("reg", &[io_apic.address.into(), IO_APIC_SIZE])?;
            fdt.property_u32("interrupt-base", io_apic.gsi_base)?;
            fdt.end_node(node)?;
        }
        vmbus(&mut fdt)?;
        if self.machine.com3 {
            com3(&mut fdt)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        for cpu in &self.machine.vps {
            let node = fdt.begin_node(&format!("cpu@{:x}", cpu.apic_id))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_u32("reg", cpu.apic_id)?;
            fdt.property_u32("numa-node-id", cpu.node)?;
            fdt.property_string("status", "okay")?;
            fdt.end_node(node)?;
        }
        fdt.end_node(cpus)
    }

    fn openhcl(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let openhcl = fdt.begin_node("openhcl")?;
        // The host says where VTL2's memory is; the image does not have to choose.
        fdt.property_string("memory-allocation-mode", "host")?;
        if !self.machine.entropy.is_empty() {
            let entropy = fdt.begin_node("entropy")?;
            fdt.property("reg", &self.machine.entropy)?;
            fdt.end_node(entropy)?;
        }
        fdt.end_node(openhcl)
    }
}

/// VTL2's VMBus. It has no MMIO: without channels nobody needs any.
fn vmbus(fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
    let bus = fdt.begin_node("bus")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let vmbus = fdt.begin_node("vmbus")?;
    fdt.property_string("compatible", "microsoft,vmbus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32(IGVM_DT_VTL_PROPERTY, VTL2)?;
    fdt.property_u32("microsoft,message-connection-id", CONNECTION_ID_4)?;
    fdt.end_node(vmbus)?;
    fdt.end_node(bus)
}

fn com3(fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
    let bus = fdt.begin_node("pio-bus")?;
    fdt.property_string("compatible", "x86-pio-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let serial = fdt.begin_node(&format!("serial@{COM3_PORT:x}"))?;
    fdt.property_string("compatible", "ns16550")?;
    fdt.property_array_u64("reg", &[COM3_PORT, COM3_PORT_COUNT])?;
    fdt.property_u32("current-speed", COM3_SPEED)?;
    fdt.property_u32("clock-frequency", 0)?;
    fdt.end_node(serial)?;
    fdt.end_node(bus)
}
