//! What the host may say to VTL2, and who gets a shell.

use qemu::Source;
use vmm_tests::Scenario;
use vsm_host_defs::ExitReason;

#[test]
fn boot_arguments_of_the_host_reach_kernel_and_usermode() {
    let mut vm = Scenario::release()
        .bootargs("loglevel=8 OPENHCL_TEST_WORD=hello")
        .power_off_after_boot()
        .start();

    let command_line = vm.topology().command_line;

    let words: Vec<&str> = command_line.split(' ').collect();
    assert!(words.contains(&"OPENHCL_TEST_WORD=hello"), "{command_line}");
    // The host's words come last, so that they win.
    let levels: Vec<&&str> = words
        .iter()
        .filter(|word| word.starts_with("loglevel="))
        .collect();
    assert_eq!(levels.last(), Some(&&"loglevel=8"), "{command_line}");
    // That this machine ends shows that usermode got its option.
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn the_dev_image_has_a_shell() {
    let mut vm = Scenario::dev().bootargs("OPENHCL_SHELL=1").start();
    vm.expect_ready();
    vm.type_line("echo sum is $((40 + 2))");
    vm.expect(Source::Vtl2, "sum is 42");
}

#[test]
fn the_release_image_has_no_shell() {
    let mut vm = Scenario::release()
        .bootargs("OPENHCL_SHELL=1")
        .power_off_after_boot()
        .start();
    vm.type_line("echo sum is $((40 + 2))");
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    assert!(!console.contains("sum is 42"), "{console}");
}
