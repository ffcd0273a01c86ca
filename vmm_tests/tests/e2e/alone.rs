//! A guest without a paravisor: `vsm_host` starts Debian's kernel with the whole machine.

use boot_events::{GUEST_STARTED, HOST_ENTERS_GUEST};
use qemu::{Exit, Source};
use vmm_tests::Scenario;

/// The kernel of this suite boots, sees its processors, and switches the machine off.
#[track_caller]
fn boots(suite: &str, vps: u32) {
    const SCRIPT: &str = "echo guest: has $(nproc) processors; dmesg";
    let command_line = format!("console=ttyS0 quiet guest_script=\"{SCRIPT}\"");
    let mut vm = Scenario::without_paravisor(suite, &command_line, vps).start();

    vm.expect(Source::Host, HOST_ENTERS_GUEST);
    vm.expect(Source::Vtl2, GUEST_STARTED);
    vm.expect(Source::Vtl2, &format!("guest: has {vps} processors"));
    vm.expect_normal_end();
    // All that it uses of its hypervisor are clocks.
    let console = vm.console(Source::Vtl2);
    assert!(console.contains("Microsoft Hyper-V"), "{console}");
    assert!(!console.contains("VTL"), "{console}");
}

#[test]
fn debian_12_boots_alone_with_one_vp() {
    boots("bookworm", 1);
}

#[test]
fn debian_12_boots_alone_with_two_vps() {
    boots("bookworm", 2);
}

#[test]
fn the_newest_kernel_boots_alone_with_four_vps() {
    boots("trixie-backports", 4);
}

#[test]
fn guest_that_is_alone_resets_the_machine() {
    let command_line = "console=ttyS0 quiet guest_script=\"reboot -f\"";
    let mut vm = Scenario::without_paravisor("bookworm", command_line, 1).start();
    vm.expect(Source::Vtl2, GUEST_STARTED);
    // A reset of the machine ends QEMU.
    let end = vm.expect_normal_end();
    assert_eq!(end, Exit::Normal);
}
