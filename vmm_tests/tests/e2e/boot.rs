//! Machines of many shapes boot, see what they were given, and end in order.

use boot_events::Event;
use boot_events::ParavisorExit;
use qemu::ByteCount;
use qemu::Source;
use qemu::StageName;
use qemu::Timeline;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vmm_tests::Topology;
use vsm_host_defs::ExitReason;
use vsm_host_defs::HOST_MEMORY_BASE;
use vsm_host_defs::HOST_MEMORY_SIZE;

/// What the firmware keeps of RAM: the legacy hole below 1 MiB and its tables at the top.
const FIRMWARE_MEMORY: u64 = 2 << 20;

/// VTL2 memory of the release image.
const RELEASE_VTL2_MEMORY: ByteCount = ByteCount::mib(64);

/// Boots and compares what the paravisor reports with what QEMU was given.
#[track_caller]
fn boots_with(vps: u32, memory: ByteCount) -> (TestVm, Topology) {
    let mut vm = Scenario::release()
        .vps(vps)
        .memory(memory)
        .power_off_after_boot()
        .start();

    let topology = vm.topology();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);

    // QEMU's vCPU 0 is parked, so VP n has APIC id n + 1.
    assert_eq!(topology.vps, (1..=vps).collect::<Vec<_>>());
    assert_eq!(
        topology.memory_bytes,
        topology.vtl0_memory_bytes + topology.vtl2_memory_bytes
    );
    let missing = memory.get() - topology.memory_bytes;
    assert!(
        (HOST_MEMORY_SIZE..=HOST_MEMORY_SIZE + FIRMWARE_MEMORY).contains(&missing),
        "{missing:#x} of {memory} bytes are not in {topology:?}"
    );
    assert_eq!(topology.vtl2_memory_bytes, RELEASE_VTL2_MEMORY.get());
    assert_eq!(topology.isolation, "none");
    (vm, topology)
}

#[test]
fn one_vp_with_512_mib_boots() {
    boots_with(1, ByteCount::mib(512));
}

#[test]
fn two_vps_boot() {
    boots_with(2, ByteCount::gib(1));
}

#[test]
fn four_vps_with_4_gib_boot() {
    // Part of the memory is above 4 GiB, behind the hole for devices.
    boots_with(4, ByteCount::gib(4));
}

#[test]
fn linux_boots_four_vps_without_the_sidecar() {
    let mut vm = Scenario::release()
        .vps(4)
        .bootargs("OPENHCL_SIDECAR=off")
        .power_off_after_boot()
        .start();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    assert!(console.contains("Brought up 1 node, 4 CPUs"), "{console}");
}

#[test]
fn sixteen_vps_boot() {
    boots_with(16, ByteCount::gib(1));
}

#[test]
fn vtl2_runs_in_the_64_mib_of_the_release_image() {
    let mut vm = Scenario::release().power_off_after_boot().start();
    let memory = vm.memory();
    vm.expect_exit(ExitReason::PowerOff);
    assert_eq!(memory.vtl2_bytes, RELEASE_VTL2_MEMORY.get());
    assert_eq!(
        memory.footprint_bytes,
        memory.vtl2_bytes - memory.free_bytes
    );
    assert!(memory.free_bytes > 0, "{memory:?}");
}

#[test]
fn every_stage_reports_itself_in_order() {
    let mut vm = Scenario::release().power_off_after_boot().start();
    vm.expect_exit(ExitReason::PowerOff);
    let timeline = Timeline::of(vm.vm());
    let names: Vec<_> = timeline.stages.iter().map(|stage| stage.name).collect();
    assert_eq!(names, StageName::ALL);
}

#[test]
fn vtl2_gets_the_memory_that_the_host_was_told_to_give() {
    let size = ByteCount::mib(160);
    let mut vm = Scenario::release()
        .with(|machine| machine.vtl2_memory(size))
        .power_off_after_boot()
        .start();
    assert_eq!(vm.topology().vtl2_memory_bytes, size.get());
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn the_memory_of_the_host_is_no_hole_for_the_kernel() {
    let mut vm = Scenario::release().power_off_after_boot().start();
    vm.expect_ready();
    let console = vm.console(Source::Vtl2);
    let gap = format!("[gap {HOST_MEMORY_BASE:#018x}");
    assert!(console.contains("BIOS-e820: [mem"), "{console}");
    assert!(!console.contains(&gap), "{console}");
}

#[test]
fn an_image_whose_place_is_taken_is_moved() {
    // RAM below 4 GiB ends inside of the place that the image was built for, so the only
    // RAM that is long enough begins at 4 GiB.
    let mut vm = Scenario::release()
        .memory(ByteCount::gib(1))
        .with(|machine| machine.extra(["-machine", "max-ram-below-4g=160M"]))
        .power_off_after_boot()
        .start();
    let topology = vm.topology();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
    assert_eq!(topology.vtl2_memory_bytes, RELEASE_VTL2_MEMORY.get());
}

#[test]
fn the_paravisor_ends_and_pid_1_powers_off_in_order() {
    let mut vm = Scenario::release().power_off_after_boot().start();

    vm.expect_ready();
    let exit = vm.expect_event(Source::Vtl2, "end of the paravisor", |event| match event {
        Event::ParavisorExited(exit) => Some(exit),
        _ => None,
    });
    vm.expect_event(Source::Vtl2, "power-off by PID 1", |event| {
        (event == Event::InitPoweringOff).then_some(())
    });
    vm.expect_event(Source::Host, "power-off in the host", |event| {
        (event == Event::HostPowerOff).then_some(())
    });
    vm.expect_exit(ExitReason::PowerOff);

    assert_eq!(exit, ParavisorExit::Code(0));
    let console = vm.console(Source::Vtl2);
    assert!(!console.contains("WARNING:"), "{console}");
}

#[test]
fn the_vtl_driver_is_loaded() {
    let mut vm = Scenario::release().power_off_after_boot().start();
    vm.expect(Source::Vtl2, "underhill_init: module mshv_vtl loaded");
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn the_vmbus_driver_connects_to_the_host_without_a_complaint() {
    let mut vm = Scenario::release()
        .vps(2)
        .bootargs("loglevel=8")
        .power_off_after_boot()
        .start();
    vm.expect(Source::Vtl2, "hv_vmbus: Vmbus version:6.0");
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    let complaints: Vec<&str> = console
        .lines()
        .filter(|line| line.contains("] hv_vmbus: ") || line.contains("WARNING:"))
        .filter(|line| !line.contains("Vmbus version:") && !line.contains("istering driver"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(
        !vm.console(Source::Host).contains("VMBus"),
        "{}",
        vm.console(Source::Host)
    );
}

#[test]
fn usermode_reads_the_log_that_the_boot_shim_left_in_memory() {
    let mut vm = Scenario::release()
        .bootargs("loglevel=8")
        .power_off_after_boot()
        .start();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    let repeated: Vec<&str> = console
        .lines()
        .filter_map(|line| line.split_once(boot_events::SHIM_LOG_PREFIX))
        .map(|(_, text)| text)
        .collect();
    for text in [boot_events::SHIM_STARTED, boot_events::SHIM_STARTS_KERNEL] {
        assert!(
            repeated.iter().any(|line| line.contains(text)),
            "{text:?} is not in {repeated:#?}"
        );
    }
}

#[test]
fn entropy_of_the_host_reaches_the_kernel() {
    let mut vm = Scenario::release().power_off_after_boot().start();
    vm.expect(Source::Vtl2, "bytes of entropy credited");
    vm.expect_exit(ExitReason::PowerOff);
}
