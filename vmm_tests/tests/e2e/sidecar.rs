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

/// `mov eax, 1; ret`: a sidecar kernel that does nothing and says that all is well.
const SATISFIED: &[u8] = &[0xb8, 1, 0, 0, 0, 0xc3];

/// `mov dword ptr [rsi + 0x100], 1; mov word ptr [rsi], 0x2101; xor eax, eax; ret`: one that
/// has started a CPU before it fails with the text "!".
const BROKEN: &[u8] = &[
    0xc7, 0x86, 0, 1, 0, 0, 1, 0, 0, 0, 0x66, 0xc7, 0x06, 1, 0x21, 0x31, 0xc0, 0xc3,
];

/// Boots with such NUMA nodes: what the shim says of the sidecar, and the log of VTL2.
#[track_caller]
fn boot(image: &Image, nodes: &str, option: &str) -> (String, String) {
    let nodes = nodes.parse().expect("a list of VPs");
    let mut vm = Scenario::image(image)
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
    let (said, console) = boot(
        &Image::with_manifest(MANIFEST),
        "2,2",
        "OPENHCL_SIDECAR=off",
    );
    assert_eq!(said, "off: OPENHCL_SIDECAR says so");
    assert!(console.contains("Brought up 1 node, 4 CPUs"), "{console}");
}

#[test]
fn processors_that_are_alone_on_their_nodes_are_linux() {
    let (said, console) = boot(&Image::with_manifest(MANIFEST), "1,0,1", "");
    assert_eq!(said, "off: no two VPs in sequence are on one NUMA node");
    assert!(console.contains("Brought up 1 node, 2 CPUs"), "{console}");
}

#[test]
fn linux_boots_on_one_processor_and_pid_1_brings_up_its_others() {
    let image = Image::with_sidecar(MANIFEST, SATISFIED);
    let (said, console) = boot(&image, "3,0,2,1", "");
    assert!(said.starts_with("on: 0 of 6 VPs in 2 nodes"), "{said}");
    assert!(console.contains("Brought up 1 node, 1 CPU"), "{console}");
    let init = "underhill_init: 2 of 2 more CPUs brought up";
    assert!(console.contains(init), "{console}");
}

#[test]
fn where_all_but_one_are_the_sidecars_linux_has_that_one() {
    let image = Image::with_sidecar(MANIFEST, SATISFIED);
    let (_, console) = boot(&image, "4", "");
    let init = "underhill_init: Linux has no CPU beside the first";
    assert!(console.contains(init), "{console}");
}

#[test]
fn of_sixty_four_processors_linux_boots_two() {
    let image = Image::with_sidecar(MANIFEST, SATISFIED);
    let (said, console) = boot(&image, "64", "");
    assert!(said.starts_with("on: 0 of 64 VPs in 2 nodes"), "{said}");
    let init = "underhill_init: 1 of 1 more CPUs brought up";
    assert!(console.contains(init), "{console}");
}

#[test]
fn a_sidecar_that_fails_half_way_ends_the_boot() {
    let mut vm = Scenario::image(&Image::with_sidecar(MANIFEST, BROKEN))
        .vps(2)
        .start();
    let cause = vm.expect_crash();
    let expected = "sidecar: its kernel does not start: !; 1 CPUs run it already";
    assert!(cause.contains(expected), "{cause}");
}
