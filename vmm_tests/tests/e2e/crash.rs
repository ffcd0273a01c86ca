//! What fails in VTL2 is reported with its cause, and told apart from everything else.

use boot_events::Event;
use boot_events::ParavisorExit;
use qemu::Source;
use vmm_tests::Image;
use vmm_tests::Scenario;
use vmm_tests::initrd;
use vsm_host_defs::ExitReason;

#[test]
fn a_kernel_panic_is_reported_with_its_cause() {
    let mut vm = Scenario::release().bootargs("OPENHCL_CRASH=panic").start();

    let cause = vm.expect_crash();

    assert!(cause.contains(boot_events::KERNEL_PANIC), "{cause}");
    let host = vm.console(Source::Host);
    assert!(host.contains("OPENHCL_CRASH asks for"), "no log in: {host}");
    assert!(host.contains("rip 0x"), "no registers in: {host}");
}

#[test]
fn a_damaged_initrd_stops_the_boot_shim_with_its_cause() {
    // Page data is not covered by the file's checksum: only the shim can notice.
    let page: Vec<u8> = initrd()[4096..8192].to_vec();
    let mut vm = Scenario::image(&Image::release().flip_bit_in_page(&page)).start();

    let cause = vm.expect_crash();

    let host = vm.console(Source::Host);
    assert!(
        host.contains("initrd") && host.contains("CRC"),
        "the shim's words are not in: {cause}\n{host}"
    );
    let vtl2 = vm.console(Source::Vtl2);
    assert!(!vtl2.contains(boot_events::KERNEL_STARTED), "{vtl2}");
}

#[test]
fn a_killed_paravisor_is_reported_and_is_no_power_off() {
    let mut vm = Scenario::dev().bootargs("OPENHCL_SHELL=1").start();
    vm.expect_ready();

    vm.type_line(
        "for p in /proc/[0-9]*; do grep -q ^/bin/openvmm_hcl $p/cmdline && kill -9 ${p#/proc/}; done",
    );

    let exit = vm.expect_event(Source::Vtl2, "end of the paravisor", |event| match event {
        Event::ParavisorExited(exit) => Some(exit),
        _ => None,
    });
    assert_eq!(exit, ParavisorExit::Signal(9));
    // PID 1 ends with 128 + 9, which the kernel shows in its own form.
    let cause = vm.expect_crash();
    assert!(cause.contains("exitcode=0x00008900"), "{cause}");
    let host = vm.console(Source::Host);
    assert!(
        host.contains("paravisor exited: signal 9"),
        "no log in: {host}"
    );
}

#[test]
fn a_host_option_that_does_not_exist_is_an_error_of_the_host() {
    let mut vm = Scenario::release()
        .with(|machine| machine.host_option("vtl2_memroy=1G"))
        .start();
    vm.expect_exit(ExitReason::HostError);
    vm.expect(Source::Host, "vtl2_memroy=1G");
}
