//! Runs the kernel `guest_tests` as the guest of a machine and reads what it reports.

use crate::Image;
use crate::Scenario;
use crate::TestVm;
use crate::artifacts::artifacts;
use crate::artifacts::read;
use crate::artifacts::sidecar_kernel;
use boot_events::Event;
use boot_events::GUEST_CRASHED_PREFIX;
use boot_events::GUEST_STOPPED_PREFIX;
use diag_client::Client;
use qemu::ByteCount;
use qemu::GuestConsole;
use qemu::GuestConsoleError;
use qemu::GuestPort;
use qemu::Source;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use vsm_host_defs::ExitReason;
use vsm_host_defs::HOST_MEMORY_BASE;
use vsm_host_defs::HOST_MEMORY_SIZE;

/// When a line that does not come is a failure.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long to wait before looking whether the guest lives.
const STEP: Duration = Duration::from_secs(5);
/// VTL2's memory as images ask for it: it begins where the host's ends.
const VTL2_MEMORY: u64 = 64 << 20;
/// Registers of the machine that the guest must not see: PCI's configuration space, and the
/// host's timers.
const MACHINES_REGISTERS: [Range<u64>; 2] = [0xb000_0000..0xb010_0000, 0xfed0_0000..0xfed0_0400];

/// A result of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestResult {
    /// As it should be.
    Ok,
    /// Not possible on this machine.
    Skipped(String),
    /// Not as it should be.
    Failed(String),
}

/// A machine whose guest is the test kernel.
pub struct GuestTests {
    vm: TestVm,
    console: GuestConsole,
    client: Client,
}

/// All that a run has said.
#[derive(Debug, Default)]
pub struct GuestReport {
    /// Results by name.
    pub results: BTreeMap<String, GuestResult>,
    /// Figures by name: count and ticks.
    pub figures: BTreeMap<String, (u64, u64)>,
    planned: Option<usize>,
    done: bool,
}

/// The physical ranges that are not the guest's, as `guest_tests` takes them.
fn forbidden() -> Vec<Range<u64>> {
    let host = HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
    let vtl2 = host.end..host.end + VTL2_MEMORY;
    [host, vtl2].into_iter().chain(MACHINES_REGISTERS).collect()
}

impl Scenario {
    /// The stack with the test kernel as guest; `arguments` are its command line.
    #[track_caller]
    pub fn guest_tests(vps: u32, arguments: &str) -> Self {
        Self::guest_tests_beside(&sidecar_kernel(), vps, arguments)
    }

    /// The same with another sidecar kernel.
    #[track_caller]
    pub fn guest_tests_beside(sidecar: &[u8], vps: u32, arguments: &str) -> Self {
        let ranges: Vec<_> = forbidden()
            .iter()
            .map(|range| format!("{:#x}-{:#x}", range.start, range.end))
            .collect();
        let command_line = format!("vps={vps} forbidden={} {arguments}", ranges.join(","));
        let kernel = read(&artifacts().guest_tests);
        Self::image(&Image::with_guest_beside(
            sidecar,
            &kernel,
            None,
            &command_line,
        ))
        .vps(vps)
        .memory(ByteCount::mib(512))
        .vsock()
    }
}

/// QEMU itself with the test kernel, and the file that gets its report.
#[track_caller]
pub fn plain_guest_tests(vps: u32, arguments: &str) -> (Scenario, PathBuf) {
    let (scenario, log) = Scenario::plain(&artifacts().guest_tests, arguments);
    (scenario.vps(vps), log)
}

impl GuestTests {
    /// Starts the machine and connects to its guest's console.
    #[track_caller]
    pub fn start(scenario: Scenario) -> Self {
        let mut vm = scenario.start();
        vm.expect_ready();
        // At once: a short guest is gone soon, and its last words are not kept for long.
        let console = connect(&mut vm);
        let client = vm.diag_of_ready();
        Self {
            vm,
            console,
            client,
        }
    }

    /// Connects to the guest's console again, after the worker that had it has ended.
    #[track_caller]
    pub fn reconnect(&mut self) {
        self.console = connect(&mut self.vm);
    }

    /// Kills the VM worker, waits for the next one and connects to the guest's console there.
    #[track_caller]
    pub fn crash_worker(&mut self) {
        let pid = match self.client.inspect("vm/pid", 0) {
            Ok(node) => node.as_u64(),
            Err(error) => panic!("vm/pid: {error}"),
        };
        let Some(worker) = pid.and_then(|pid| i32::try_from(pid).ok()) else {
            panic!("vm/pid is {pid:?}, expected a process");
        };
        if let Err(error) = self.client.crash(worker) {
            panic!("crash of process {worker}: {error}");
        }
        self.vm
            .expect_event(Source::Vtl2, "next worker", |event| match event {
                Event::WorkerReady(pid) => pid.parse().ok().filter(|pid: &i32| *pid > worker),
                _ => None,
            });
        self.reconnect();
    }

    /// The machine.
    pub fn vm(&mut self) -> &mut TestVm {
        &mut self.vm
    }

    /// What VTL2's console has said.
    pub fn vtl2_console(&self) -> String {
        self.vm.console(Source::Vtl2)
    }

    /// A client of the paravisor's diagnostics.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The guest's console.
    pub fn console(&mut self) -> &mut GuestConsole {
        &mut self.console
    }

    /// The next line of the guest.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut waited = Duration::ZERO;
        loop {
            match self.console.wait_for_text("\n", STEP) {
                Ok(line) => return line.text.trim_end().to_owned(),
                // A guest that has stopped says nothing any more.
                Err(GuestConsoleError::Deadline { .. })
                    if waited < DEADLINE && !self.has_stopped() =>
                {
                    waited += STEP;
                }
                Err(error) => {
                    let state = match self.client.inspect("vm/guest", 8) {
                        Ok(node) => node.to_string(),
                        Err(error) => error.to_string(),
                    };
                    panic!("{error}\nvm/guest is {state}\n{}", self.vm.vm().report())
                }
            }
        }
    }

    fn has_stopped(&self) -> bool {
        let console = self.vm.console(Source::Vtl2);
        [GUEST_CRASHED_PREFIX, GUEST_STOPPED_PREFIX]
            .iter()
            .any(|prefix| console.contains(prefix))
    }

    /// Reads lines up to one that begins so; that one.
    #[track_caller]
    pub fn expect_line(&mut self, start: &str) -> String {
        loop {
            let line = self.line();
            assert!(!line.starts_with("fatal:"), "{line}");
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Reads everything up to the end of the tests. After each of them the paravisor must
    /// answer.
    #[track_caller]
    pub fn report(&mut self) -> GuestReport {
        let mut report = GuestReport::default();
        while !report.done {
            let line = self.line();
            assert!(
                !line.starts_with("fatal:"),
                "{line}\n{}",
                self.console.text()
            );
            if report.take(&line)
                && let Err(error) = self.client.ping()
            {
                panic!("after {line:?} the paravisor does not answer: {error}");
            }
        }
        report
    }

    /// What VTL2 has is what the guest was told to be forbidden.
    #[track_caller]
    pub fn check_forbidden(&self) {
        let ranges = match self.client.inspect("memory/ranges", 2) {
            Ok(ranges) => ranges,
            Err(error) => panic!("memory/ranges: {error}"),
        };
        for entry in ranges.entries() {
            let text = |name: &str| entry.node.get(name).and_then(|node| node.as_str());
            let number = |name: &str| entry.node.get(name).and_then(|node| node.as_u64());
            let (Some(kind), Some(start), Some(size)) =
                (text("type"), number("start"), number("size"))
            else {
                panic!("memory/ranges/{}: {:?}", entry.name, entry.node);
            };
            let is_told = forbidden()
                .iter()
                .any(|range| range.start <= start && start + size <= range.end);
            let is_mmio = kind.contains("mmio");
            assert!(
                kind == "vtl0" || is_mmio || is_told,
                "{kind} at {start:#x} is not among the ranges that the guest tries: {:x?}",
                forbidden()
            );
        }
    }

    /// The guest powers off, and the machine with it.
    #[track_caller]
    pub fn expect_power_off(self) -> TestVm {
        let Self {
            mut vm,
            mut console,
            client,
        } = self;
        let ended = console.wait_end(DEADLINE);
        assert!(ended, "the console stays open: {}", console.text());
        drop((console, client));
        vm.expect_exit(ExitReason::PowerOff);
        vm
    }
}

/// Connects to the guest's console.
#[track_caller]
fn connect(vm: &mut TestVm) -> GuestConsole {
    match vm.vm().guest_console(GuestPort::Com1) {
        Ok(console) => console,
        Err(error) => panic!("the guest's console: {error}\n{}", vm.vm().report()),
    }
}

impl GuestReport {
    /// Reads all lines of a run that has ended.
    pub fn read(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            report.take(line.trim_end());
        }
        report
    }

    /// Takes a line; true if it is a test's result.
    fn take(&mut self, line: &str) -> bool {
        match line.split_once(' ') {
            Some(("plan", count)) => self.planned = count.parse().ok(),
            Some(("done", _)) => self.done = true,
            Some(("bench", rest)) => self.take_figure(rest),
            Some(("test", rest)) => return self.take_result(rest),
            _ => {}
        }
        false
    }

    fn take_result(&mut self, text: &str) -> bool {
        let (name, result) = text.split_once(' ').unwrap_or((text, ""));
        let result = match result.split_once(": ") {
            None if result == "ok" => GuestResult::Ok,
            Some(("skipped", reason)) => GuestResult::Skipped(reason.to_owned()),
            Some(("failed", reason)) => GuestResult::Failed(reason.to_owned()),
            _ => return false,
        };
        self.results.insert(name.to_owned(), result);
        true
    }

    fn take_figure(&mut self, text: &str) {
        let mut words = text.split(' ');
        let name = words.next().unwrap_or("");
        let mut values: BTreeMap<_, _> = words.filter_map(|word| word.split_once('=')).collect();
        let mut number = |name| values.remove(name)?.parse().ok();
        if let (Some(count), Some(ticks)) = (number("count"), number("ticks")) {
            self.figures.insert(name.to_owned(), (count, ticks));
        }
    }

    /// Every planned test has a result, none has failed, and those that were skipped are
    /// named in `skipped` (by the begin of their names).
    #[track_caller]
    pub fn assert_passed(&self, skipped: &[&str]) {
        assert!(self.done, "the run did not come to its end: {self:#?}");
        assert_eq!(self.planned, Some(self.results.len()), "{self:#?}");
        let wrong: Vec<_> = self
            .results
            .iter()
            .filter(|(name, result)| match result {
                GuestResult::Ok => false,
                GuestResult::Skipped(_) => !skipped.iter().any(|start| name.starts_with(start)),
                GuestResult::Failed(_) => true,
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_report() {
        let report = GuestReport::read(
            "plan 2\r\ntest a.b ok\r\nbench x count=10 ticks=55 hz=0\r\n\
             test a.c skipped: no host\r\nnoise\r\ndone 1 ok, 0 failed, 1 skipped\r\n",
        );
        report.assert_passed(&["a.c"]);
        assert_eq!(report.figures["x"], (10, 55));
        assert_eq!(
            report.results["a.c"],
            GuestResult::Skipped("no host".to_owned())
        );
    }

    #[test]
    #[should_panic(expected = "it is red")]
    fn a_failure_fails() {
        GuestReport::read("plan 1\ntest a.b failed: it is red\ndone 0 ok").assert_passed(&[]);
    }

    #[test]
    #[should_panic(expected = "Some(\n        2,\n    )")]
    fn a_result_that_is_missing_fails() {
        GuestReport::read("plan 2\ntest a.b ok\ndone 1 ok").assert_passed(&[]);
    }

    #[test]
    #[should_panic(expected = "did not come to its end")]
    fn a_run_without_an_end_fails() {
        GuestReport::read("plan 1\ntest a.b ok\n").assert_passed(&[]);
    }
}
