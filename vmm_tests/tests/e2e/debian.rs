//! Debian's kernels as guests, unmodified, with our small initrd.

use boot_events::Event;
use boot_events::GUEST_STARTED;
use diag_client::Client;
use qemu::ByteCount;
use qemu::GuestConsole;
use qemu::GuestPort;
use qemu::Source;
use sha2::Digest;
use sha2::Sha256;
use std::time::Duration;
use std::time::SystemTime;
use vmm_tests::Image;
use vmm_tests::Scenario;
use vmm_tests::TestVm;
use vsm_host_defs::ExitReason;

/// When a line that does not come is a failure: a guest with four VPs on two processors
/// that others use as well.
const DEADLINE: Duration = Duration::from_secs(240);
/// Bytes that are sent to the guest.
const ECHOED: usize = 8 << 10;
/// Lines that the guest sends.
const LINES: usize = 250;

/// A running guest.
struct Guest {
    vm: TestVm,
    client: Client,
    console: GuestConsole,
}

impl Guest {
    /// A kernel of this suite with so many VPs runs this script (by the shell; without
    /// double quotes), then powers off.
    #[track_caller]
    fn start(suite: &str, vps: u32, script: &str) -> Self {
        let command_line = format!("console=ttyS0 quiet guest_script=\"{script}\"");
        Self::boot(&Image::with_debian_guest(suite, &command_line), vps)
    }

    #[track_caller]
    fn boot(image: &Image, vps: u32) -> Self {
        let mut vm = Scenario::image(image)
            .vps(vps)
            .memory(ByteCount::mib(512))
            .vsock()
            .start();
        let client = vm.diag();
        let console = match vm.vm().guest_console(GuestPort::Com1) {
            Ok(console) => console,
            Err(error) => panic!("the guest's console: {error}\n{}", vm.vm().report()),
        };
        Self {
            vm,
            client,
            console,
        }
    }

    /// Waits for a text; all that came up to it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        match self.console.wait_for_text(text, DEADLINE) {
            Ok(line) => line.text,
            Err(error) => panic!("{error}\n{}", self.vm.vm().report()),
        }
    }

    /// The rest of the line that begins so.
    #[track_caller]
    fn value(&mut self, start: &str) -> String {
        self.expect(start);
        self.expect("\n").trim().to_owned()
    }

    #[track_caller]
    fn expect_power_off(self) {
        let Self {
            mut vm,
            client,
            mut console,
        } = self;
        assert!(console.wait_end(DEADLINE), "{}", console.text());
        drop((client, console));
        vm.expect_exit(ExitReason::PowerOff);
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970.
fn time_of_day() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.expect("it is later than 1970").as_secs()
}

/// The kernel of this suite boots with so many VPs, sees them all, knows what time it is,
/// and powers off.
#[track_caller]
fn boots(suite: &str, vps: u32) {
    let script = "echo guest: has $(nproc) processors; echo guest: time $(date +%s)";
    let before = time_of_day();
    let mut guest = Guest::start(suite, vps, script);
    guest.expect(GUEST_STARTED);
    let processors = guest.value("guest: has ");
    assert_eq!(processors, format!("{vps} processors"));
    let time: u64 = guest.value("guest: time ").parse().expect("a number");
    // Two clocks tell whole seconds on the way.
    let possible = before - 2..=time_of_day() + 2;
    assert!(possible.contains(&time), "{time}, expected {possible:?}");
    guest.expect_power_off();
}

#[test]
fn debian_12_boots_with_one_vp() {
    boots("bookworm", 1);
}

#[test]
fn debian_12_boots_with_two_vps() {
    boots("bookworm", 2);
}

#[test]
fn debian_12_boots_with_four_vps() {
    boots("bookworm", 4);
}

#[test]
fn debian_13_boots_with_one_vp() {
    boots("trixie", 1);
}

#[test]
fn debian_13_boots_with_four_vps() {
    boots("trixie", 4);
}

#[test]
fn the_newest_kernel_boots_with_one_vp() {
    boots("trixie-backports", 1);
}

#[test]
fn the_newest_kernel_boots_with_two_vps() {
    boots("trixie-backports", 2);
}

#[test]
fn the_newest_kernel_boots_with_four_vps() {
    boots("trixie-backports", 4);
}

#[test]
fn work_on_all_processors_gives_the_right_sums() {
    /// SHA-256 of 16 MiB of zeros.
    const ZEROS: &str = "080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e";
    let mut guest = Guest::start("trixie", 4, "guest cpu 16; guest memory 48");
    for cpu in 0..4 {
        assert_eq!(guest.value(&format!("guest: cpu {cpu} sha256 ")), ZEROS);
    }
    let memory = guest.value("guest: memory ");
    assert!(memory.ends_with("copy equal"), "{memory}");
    guest.expect_power_off();
}

#[test]
fn sleeps_are_as_long_as_the_guest_says() {
    let mut guest = Guest::start("bookworm", 2, "guest sleep 20 50");
    let text = guest.value("guest: slept 50 times 20 ms, uptime from ");
    let seconds = |text: &str| text.trim_end_matches(" s").parse::<f64>().ok();
    let (before, after) = text
        .split_once(" s to ")
        .and_then(|(before, after)| Some((seconds(before)?, seconds(after)?)))
        .unwrap_or_else(|| panic!("{text:?}"));
    // Never shorter; how much longer depends on the load of this machine.
    assert!(after - before >= 0.99, "{text}");
    guest.expect_power_off();
}

#[test]
fn nothing_that_the_guest_prints_is_lost() {
    let mut guest = Guest::start("bookworm", 1, &format!("guest flood {LINES}"));
    let flood = guest.expect("guest: flood ended");
    let start = flood.find("flood 00000001 ").expect("the first line");
    let mut lines = flood[start..].lines();
    for number in 1..=LINES {
        let expected = format!(
            "flood {number:08} 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        );
        assert_eq!(lines.next(), Some(&*expected));
    }
    guest.expect_power_off();
}

#[test]
fn nothing_that_is_typed_is_lost() {
    let typed: Vec<u8> = (0..ECHOED).map(|at| b'0' + (at * 7 % 61) as u8).collect();
    let mut guest = Guest::start("bookworm", 1, &format!("guest echo {ECHOED}"));
    guest.expect(&format!("guest: reading {ECHOED} bytes"));
    guest.console.send(&typed).unwrap();
    let found = guest.value(&format!("guest: read {ECHOED} bytes sha256 "));
    assert_eq!(found, sha256(&typed));
    guest.expect_power_off();
}

#[test]
fn a_guest_that_reboots_starts_again() {
    let mut guest = Guest::start("bookworm", 2, "reboot -f");
    let identity = |guest: &Guest| {
        ["control/pid", "vm/pid"].map(|path| guest.client.inspect(path, 0).unwrap().as_u64())
    };
    let before = identity(&guest);
    for _ in 0..4 {
        guest.expect(GUEST_STARTED);
    }
    assert_eq!(identity(&guest), before);
    guest.client.power_off().unwrap();
    guest.vm.expect_exit(ExitReason::PowerOff);
}

#[test]
fn a_kernel_that_panics_tells_the_paravisor() {
    let mut guest = Guest::start("trixie", 1, "echo c > /proc/sysrq-trigger");
    let cause = guest
        .vm
        .expect_event(Source::Vtl2, "crash of the guest", |event| match event {
            Event::GuestCrashed(cause) => Some(cause.to_owned()),
            _ => None,
        });
    assert!(cause.contains("VP 0: guest crash"), "{cause}");
    // What it says is the end of its own log.
    guest.vm.expect(Source::Vtl2, "Kernel Offset:");
    guest.client.ping().unwrap();
    guest.client.power_off().unwrap();
    guest.vm.expect_exit(ExitReason::PowerOff);
}
