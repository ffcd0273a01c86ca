//! The way from the host's programs to the machine's, and the defects of its helper that
//! `support/qemu/src/vsock.rs` lists.

use qemu::Source;
use qemu::VsockAddress;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vsm_host_defs::ExitReason;
use vsock_peer::Check;
use vsock_peer::ECHO_PORT;
use vsock_peer::LISTENING;
use vsock_peer::Pattern;
use vsock_peer::SINK_PORT;
use vsock_peer::SOURCE_PORT;
use vsock_peer::SourceRequest;

/// The most that programs in the machine write at once.
const WRITE: usize = 16 << 10;

const MIB: u64 = 1 << 20;

/// A machine in which the services of `vsock_peer` run.
#[track_caller]
fn peer() -> TestVm {
    let mut vm = Scenario::test()
        .bootargs("OPENHCL_SHELL=1")
        .vps(2)
        .vsock()
        .start();
    vm.expect_ready();
    vm.type_line("/bin/vsock_peer &");
    vm.expect(Source::Vtl2, LISTENING);
    vm
}

/// A connection that has been asked to send so much.
#[track_caller]
fn source(vm: &TestVm, bytes: u64) -> File {
    let mut stream = vm.connect(SOURCE_PORT);
    let request = SourceRequest {
        bytes,
        write: WRITE,
    };
    stream.write_all(request.to_line().as_bytes()).unwrap();
    stream
}

#[test]
fn a_machine_with_vsock_has_the_device_and_leaves_nothing_behind() {
    let mut vm = Scenario::dev().bootargs("OPENHCL_SHELL=1").vsock().start();
    vm.expect_ready();
    let address = vm.vsock();

    // virtio device id 19 is vsock's.
    vm.type_line("cat /sys/bus/virtio/devices/*/device");
    vm.expect(Source::Vtl2, "0x0013");

    drop(vm);
    if let VsockAddress::Hybrid(path) = address {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

#[test]
fn a_machine_with_vsock_ends_in_order() {
    let mut vm = Scenario::release().vsock().power_off_after_boot().start();
    vm.expect_ready();
    vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_port_that_nobody_listens_on_is_closed_and_others_work_on() {
    let vm = peer();
    for port in [7, 4242, u32::MAX - 1] {
        vm.vsock().connect(port).unwrap_err();
    }
    let mut stream = vm.connect(ECHO_PORT);
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn all_bytes_of_the_machine_arrive_at_a_reader_that_is_slow() {
    const BYTES: u64 = 64 * MIB;
    let vm = peer();
    let mut slow = source(&vm, BYTES);

    // Slow without a clock: after every step it waits for a whole round trip, through the
    // same helper, of a connection that has nothing to do with this one. The machine is
    // ahead all the time, and every buffer in between is full.
    let mut other = vm.connect(ECHO_PORT);
    let mut check = Check::default();
    let mut bytes = vec![0; 300_000];
    while check.right() < BYTES {
        let count = slow.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "ended after {} bytes", check.right());
        check.feed(&bytes[..count]).unwrap();
        other.write_all(&[1; 64]).unwrap();
        other.read_exact(&mut [0; 64]).unwrap();
    }
}

#[test]
fn a_reader_that_never_reads_stops_only_itself() {
    let vm = peer();
    let _stuck = source(&vm, 64 * MIB);

    let mut reader = source(&vm, 8 * MIB);
    let mut check = Check::default();
    let mut bytes = vec![0; 1 << 16];
    while check.right() < 8 * MIB {
        let count = reader.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "ended after {} bytes", check.right());
        check.feed(&bytes[..count]).unwrap();
    }
}

#[test]
fn all_bytes_of_the_host_arrive_in_the_machine() {
    const BYTES: u64 = 64 * MIB;
    let vm = peer();
    let mut stream = vm.connect(SINK_PORT);
    stream.write_all(format!("{BYTES}\n").as_bytes()).unwrap();
    let mut pattern = Pattern::default();
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..BYTES / MIB {
        pattern.fill(&mut bytes);
        stream.write_all(&bytes).unwrap();
    }
    let mut verdict = String::new();
    BufReader::new(stream).read_line(&mut verdict).unwrap();
    assert_eq!(verdict, "ok\n");
}

#[test]
fn many_connections_at_once_are_all_served() {
    let vm = peer();
    let mut streams: Vec<File> = (0..100).map(|_| vm.connect(ECHO_PORT)).collect();
    for (number, stream) in (0u32..).zip(&mut streams) {
        stream.write_all(&number.to_le_bytes()).unwrap();
    }
    for (number, stream) in (0u32..).zip(&mut streams) {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_le_bytes(answer), number);
    }
}
