//! The way from the host's programs to the machine's.

use qemu::Source;
use qemu::VsockAddress;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use vmm_tests::Scenario;
use vsm_host_defs::ExitReason;

#[test]
fn a_machine_with_vsock_has_the_device_and_leaves_nothing_behind() {
    let mut vm = Scenario::dev().bootargs("OPENHCL_SHELL=1").vsock().start();
    vm.expect_ready();
    let address = vm.vsock();

    // virtio device id 19 is vsock's.
    vm.type_line("cat /sys/bus/virtio/devices/*/device");
    vm.expect(Source::Vtl2, "0x0013");

    vm.vm().report();
    drop(vm);
    if let VsockAddress::Hybrid(path) = address {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

#[test]
fn a_port_that_nobody_listens_on_is_closed() {
    let mut vm = Scenario::release().vsock().start();
    vm.expect_ready();
    if let VsockAddress::Hybrid(path) = vm.vsock() {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"CONNECT 4242\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "");
    }
}

#[test]
fn a_machine_with_vsock_ends_in_order() {
    let mut vm = Scenario::release().vsock().power_off_after_boot().start();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
}
