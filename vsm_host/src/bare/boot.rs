//! The way from the entry to the first VMRUN.

#![expect(unsafe_code, reason = "called from assembly; ports")]

use super::console::log;
use super::entry::MAPPED_LIMIT;
use super::memory::Physical;
use super::{bios_area, clock, cpu, exit, heap, interrupts, lapic, memory, smp, timer};
use alloc::boxed::Box;
use alloc::vec::Vec;
use boot_events::{HOST_IMAGE_REFUSED_PREFIX, HOST_STARTED_SUFFIX};
use igvm_loader::{LoadPlan, MachineInfo, MemoryRange, Options};
use page_table::LeafSize;
use vsm_host::partition::apic::IO_APIC;
use vsm_host::partition::{Config, Partition};
use vsm_host::platform::Firmware;
use vsm_host::platform::pvh::StartInfo;
use vsm_host::svm::permissions::{IoPermissionMap, MsrPermissionMap};
use vsm_host::vtl::{Machine, Vtl, VtlSpace};
use vsm_host::{log_text, platform};
use vsm_host_defs::{
    DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT, DEBUG_EXIT_PORT_SIZE, ExitReason, HOST_MEMORY_BASE,
    HOST_MEMORY_SIZE,
};
use x86_64::instructions::port::{Port, PortWriteOnly};
use x86_64::instructions::random::RdRand;

/// Random bytes for the image.
const ENTROPY_BYTES: usize = 64;
/// An IPI in xAPIC mode reaches no other ids; the highest value means all CPUs.
const MAX_APIC_ID: u32 = 254;
/// A write there sends an SMI, to all CPUs if the chipset is told so.
const SMI_COMMAND_PORT: u16 = 0xb2;
/// VTL2's address space ends here at the latest, in bits: behind every device of QEMU.
const MAX_ADDRESS_BITS: u8 = 40;

/// Where the first CPU enters Rust, with the address of `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn bsp_main(start_info: u64) -> ! {
    interrupts::load();
    heap::init();
    clock::start();
    log!("{}{HOST_STARTED_SUFFIX}", env!("CARGO_PKG_VERSION"));
    mask_8259();
    let mut start_info = StartInfo::read(&Physical, start_info).unwrap_or_else(|e| panic!("{e}"));
    if bios_area::unlock() {
        platform::add_bios_area(&mut start_info.memory_map);
    }
    let options = Options::parse_bytes(&start_info.command_line).unwrap_or_else(|e| panic!("{e}"));
    let machine = discover(&start_info, options.park);
    // All but this one.
    let others = machine.vps.len() as u32 - u32::from(!options.park);
    smp::start(others);
    log!("{} CPUs run", others + 1);

    let image = start_info.modules.first();
    let image = image.copied().and_then(memory::file).unwrap_or_default();
    let plan = igvm_loader::plan(image, &machine, &options).unwrap_or_else(|error| {
        log!("{}{error}", log_text(HOST_IMAGE_REFUSED_PREFIX));
        exit::end(ExitReason::ImageRefused)
    });
    if Vtl::PARAVISOR.number() == plan.vtl() {
        bios_area::clear(&machine.ram_runs());
    }
    plan.execute(&mut Physical);
    log!(
        "image loaded: {} KiB, VTL2 memory {}, moved by {:#x}, entry {:#x}, parameters {} bytes",
        plan.loaded_bytes() >> 10,
        plan.vtl2_memory(),
        plan.relocation_offset(),
        plan.context().state().rip,
        plan.parameters()
            .iter()
            .map(|p| p.bytes.len())
            .sum::<usize>()
    );

    let bsp = lapic::id();
    let partition = smp::PARTITION.call_once(|| partition(&machine, &plan));
    cpu::enable_svm();
    start_vp_0(partition, &plan);
    // Without parking this CPU has a VP of its own.
    match partition.vp_index(Vtl::PARAVISOR, bsp) {
        Some(index) => cpu::run(partition, index),
        None => exit::stop(),
    }
}

/// Masks every line of the two interrupt controllers of old. The firmware leaves the
/// timer of old running into the first one; VTL2 does not know either of them, and would
/// take its interrupt for a double fault.
fn mask_8259() {
    for data_port in [0x21, 0xa1] {
        // SAFETY: writes the mask register of an interrupt controller, which nobody uses.
        unsafe { PortWriteOnly::<u8>::new(data_port).write(0xff) };
    }
}

/// Learns the machine, or ends it: without CPUs and memory there is nothing to do.
fn discover(start_info: &StartInfo, park: bool) -> MachineInfo {
    let own = [MemoryRange::new(
        HOST_MEMORY_BASE,
        HOST_MEMORY_BASE + HOST_MEMORY_SIZE,
    )];
    let firmware = Firmware {
        memory_map: &start_info.memory_map,
        rsdp: start_info.rsdp,
        own: &own,
        busy: &start_info.modules,
        bsp_apic_id: lapic::id(),
        park,
        physical_address_bits: physical_address_bits(),
        entropy: &entropy(),
        com3: com3_answers(),
    };
    let machine = platform::discover(&Physical, &firmware).unwrap_or_else(|e| panic!("{e}"));
    for ram in machine.ram_runs() {
        assert!(
            ram.end() <= MAPPED_LIMIT,
            "RAM {ram}, expected none above {MAPPED_LIMIT:#x}"
        );
    }
    for cpu in &machine.vps {
        assert!(
            cpu.apic_id <= MAX_APIC_ID,
            "CPU with APIC id {}, expected at most {MAX_APIC_ID}",
            cpu.apic_id
        );
    }
    for io_apic in &machine.io_apics {
        assert!(
            u64::from(io_apic.address) == IO_APIC,
            "IOAPIC at {:#x}, expected one at {IO_APIC:#x}",
            io_apic.address
        );
    }
    machine
}

/// Builds what the VPs need.
fn partition(machine: &MachineInfo, plan: &LoadPlan<'_>) -> Partition {
    let frequencies = clock::calibrate();
    log!(
        "TSC {} kHz, APIC timer {} kHz",
        frequencies.tsc_hz / 1000,
        frequencies.lapic_hz / 1000
    );
    let ram = machine.ram_runs();
    let gib_pages = cpu::cpuid(0x8000_0001, 0)[3] & (1 << 26) != 0;
    let view = Machine {
        ram: &ram,
        vtl2_ram: plan.vtl2_memory(),
        address_limit: 1 << physical_address_bits().min(MAX_ADDRESS_BITS),
        max_leaf: if gib_pages {
            LeafSize::Size1G
        } else {
            LeafSize::Size2M
        },
    };
    let spaces = VtlSpace::all(&view, |tables| tables.as_ptr() as u64)
        .unwrap_or_else(|error| panic!("nested page tables: {error}"));
    let iopm = IoPermissionMap::new(
        (DEBUG_EXIT_PORT..DEBUG_EXIT_PORT + DEBUG_EXIT_PORT_SIZE)
            .chain([DEBUG_CONSOLE_PORT, SMI_COMMAND_PORT]),
    );
    let apic_ids: Vec<u32> = machine.vps.iter().map(|cpu| cpu.apic_id).collect();
    let timers = timer::start(&apic_ids, frequencies.tsc_hz);
    log!("{timers} HPET comparators for {} VPs", apic_ids.len());
    let (used, free) = heap::usage();
    log!("heap: {} KiB used, {} KiB free", used >> 10, free >> 10);
    // The partition lives as long as the machine, and so do its maps.
    Partition::new(Config {
        apic_ids,
        spaces,
        frequencies,
        start_tsc: clock::start_tsc(),
        iopms: [
            &raw const *Box::leak(IoPermissionMap::all()) as u64,
            0,
            &raw const *Box::leak(iopm) as u64,
        ],
        msrpm: &raw const *Box::leak(MsrPermissionMap::new()) as u64,
        alone: plan.vtl() == 0,
    })
}

/// Starts VP 0 as the image says.
fn start_vp_0(partition: &Partition, plan: &LoadPlan<'_>) {
    partition
        .enable_first_vtl()
        .and_then(|()| partition.start_vp(0, Vtl::PARAVISOR, plan.context().clone(), &Physical))
        .unwrap_or_else(|error| panic!("VP 0: {error:?}"));
}

/// CPUID 0x80000008.
fn physical_address_bits() -> u8 {
    cpu::cpuid(0x8000_0008, 0)[0] as u8
}

/// Random bytes from the processor.
fn entropy() -> Vec<u8> {
    let generator = RdRand::new().expect("this CPU has no RDRAND, which the image's entropy needs");
    let mut bytes = Vec::with_capacity(ENTROPY_BYTES);
    while bytes.len() < ENTROPY_BYTES {
        // It may be exhausted for a moment.
        if let Some(word) = generator.get_u64() {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

/// Whether a 16550 is at COM3: its scratch register keeps what is written there.
fn com3_answers() -> bool {
    const SCRATCH: u16 = 0x3ef;
    const PATTERN: u8 = 0x5a;
    let mut port = Port::<u8>::new(SCRATCH);
    // SAFETY: the register has no function; without a device nothing happens.
    unsafe {
        port.write(PATTERN);
        port.read() == PATTERN
    }
}
