//! Images with a sidecar kernel.

use boot_events::SHIM_LOG_PREFIX;
use qemu::Source;
use vmm_tests::Image;
use vmm_tests::Scenario;
use vsm_host_defs::ExitReason;

const MANIFEST: &str = r#"
arch = "x64"
isolation = "none"
svn = 1
resources = ["kernel", "shim", "initrd", "sidecar"]
memory.size = "64 MiB"
command_line = { text = "", policy = "append-chosen" }
vtl0.image = "none"
"#;

/// Boots with such NUMA nodes: what the shim says of the sidecar, and the log of VTL2.
#[track_caller]
fn boot(nodes: &str, option: &str) -> (String, String) {
    let nodes = nodes.parse().expect("a list of VPs");
    let mut vm = Scenario::image(&Image::with_manifest(MANIFEST))
        .with(|machine| machine.numa(nodes))
        .bootargs("loglevel=8")
        .bootargs(option)
        .power_off_after_boot()
        .start();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    let said = console
        .lines()
        .filter_map(|line| line.split_once(SHIM_LOG_PREFIX)?.1.split_once("sidecar "))
        .map(|(_, text)| text.to_owned())
        .next();
    (said.unwrap_or_default(), console)
}

#[test]
fn who_does_not_want_the_sidecar_has_all_processors_in_linux() {
    let (said, console) = boot("2,2", "OPENHCL_SIDECAR=off");
    assert_eq!(said, "off: OPENHCL_SIDECAR says so");
    assert!(console.contains("Brought up 1 node, 4 CPUs"), "{console}");
}

#[test]
fn processors_that_are_alone_on_their_nodes_are_linux() {
    let (said, console) = boot("1,0,1", "");
    assert_eq!(said, "off: no two VPs in sequence are on one NUMA node");
    assert!(console.contains("Brought up 1 node, 2 CPUs"), "{console}");
}
