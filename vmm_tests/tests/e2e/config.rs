//! What the host configures counts; what it configures wrongly ends the boot with the
//! place, the value and the expectation.

use boot_events::Event;
use boot_events::ParavisorExit;
use qemu::Source;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vsm_host_defs::ExitReason;

/// The paravisor refuses the machine's configuration with this message.
#[track_caller]
fn refuses(scenario: Scenario, message: &str) {
    let mut vm = scenario.start();
    vm.expect(Source::Vtl2, &format!("openvmm_hcl: {message}"));
    let exit = paravisor_exit(&mut vm);
    assert_eq!(exit, ParavisorExit::Code(1));
    let cause = vm.expect_crash();
    assert!(cause.contains("exitcode=0x00000100"), "{cause}");
    // The report of the crash says why, also on a host that keeps no console.
    let host = vm.console(Source::Host);
    assert!(host.contains(message), "{message:?} is not in {host}");
    assert!(!vm.console(Source::Vtl2).contains(boot_events::READY));
}

#[track_caller]
fn paravisor_exit(vm: &mut TestVm) -> ParavisorExit {
    vm.expect_event(Source::Vtl2, "end of the paravisor", |event| match event {
        Event::ParavisorExited(exit) => Some(exit),
        _ => None,
    })
}

#[test]
fn values_of_the_hosts_file_count_and_options_override_them() {
    let config = r#"{"version":1,"name":"db","worker":{"max_restarts":2,"on_crash":"restart"}}"#;
    let mut vm = Scenario::release()
        .config(config)
        .bootargs("OPENHCL_ON_CRASH=stop")
        .power_off_after_boot()
        .start();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    for line in [
        "configured: name = db (host)",
        "configured: worker.max_restarts = 2 (host)",
        "configured: worker.on_crash = stop (option OPENHCL_ON_CRASH)",
    ] {
        assert!(console.contains(line), "{line:?} is not in {console}");
    }
    assert!(!console.contains("configured: worker.start "), "{console}");
}

#[test]
fn a_large_file_arrives_whole() {
    // Longer than a page, with an error at the very end.
    let config = format!(r#"{{"version":1,{}"nmae":1}}"#, " ".repeat(9000));
    refuses(
        Scenario::release().config(&config),
        "configuration: nmae: unknown field `nmae`, expected one of `version`, `name`",
    );
}

#[test]
fn an_unknown_field_is_refused() {
    refuses(
        Scenario::release().config(r#"{"version":1,"wroker":{}}"#),
        "configuration: wroker: unknown field `wroker`, expected one of `version`, `name`, `log`",
    );
}

#[test]
fn a_value_out_of_range_is_refused() {
    refuses(
        Scenario::release().config(r#"{"version":1,"worker":{"watchdog":{"deadline_ms":5}}}"#),
        "configuration: worker.watchdog.deadline_ms: is 5, expected 10 to 3600000",
    );
}

#[test]
fn another_version_is_refused() {
    refuses(
        Scenario::release().config(r#"{"version":7}"#),
        "configuration: version: is 7, expected 1",
    );
}

#[test]
fn what_is_not_json_is_refused() {
    refuses(
        Scenario::release().config("name: db"),
        "configuration is not JSON: expected ident at line 1 column 2",
    );
}

#[test]
fn a_wrong_option_is_refused() {
    refuses(
        Scenario::release().bootargs("OPENHCL_DIAG=maybe"),
        "option OPENHCL_DIAG: is \"maybe\", expected 1, true, 0 or false",
    );
}

#[test]
fn a_release_image_refuses_test_hooks() {
    refuses(
        Scenario::release().config(r#"{"version":1,"test_hooks":true}"#),
        "configuration: test_hooks: is true, expected false: this image was not built for development",
    );
}

#[test]
fn the_log_shows_what_its_filter_lets_through() {
    let config = r#"{"version":1,"log":{"filter":"error"}}"#;
    let mut vm = Scenario::release()
        .config(config)
        .power_off_after_boot()
        .start();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
    let console = vm.console(Source::Vtl2);
    assert!(!console.contains("openvmm_hcl: configured: "), "{console}");
}
