//! What the host may say to VTL2, and who gets a shell.

use qemu::Source;
use vmm_tests::Image;
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

/// As the release image's, but the host may add nothing.
const STATIC_MANIFEST: &str = r#"
arch = "x64"
isolation = "none"
svn = 1
resources = ["kernel", "shim", "initrd"]
memory.size = "64 MiB"
command_line = { text = "OPENHCL_EXIT_AFTER_BOOT=1 measured.word=1", policy = "static" }
vtl0.image = "none"
"#;

#[test]
fn an_image_with_static_command_line_ignores_the_words_of_the_host() {
    let mut vm = Scenario::image(&Image::with_manifest(STATIC_MANIFEST))
        .bootargs("OPENHCL_TEST_WORD=hello")
        .start();

    let command_line = vm.topology().command_line;

    assert!(command_line.ends_with("measured.word=1"), "{command_line}");
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    assert!(!console.contains("OPENHCL_TEST_WORD"), "{console}");
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
