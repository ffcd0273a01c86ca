//! The tests, in the order in which they run. Bare-metal only.

mod apic;
mod bench;
mod breakpoints;
mod devices;
mod endings;
mod environment;
mod hypercalls;
mod instructions;
mod isolation;
mod mmio;
mod moves;
mod msrs;
mod ports;
mod serial;
mod smp;
mod synic;
mod timers;

use crate::acpi::{AcpiError, Tables};
use crate::boot_info::{BootInfo, BootInfoError, StartInfo};
use crate::machine::console::Console;
use crate::machine::entry::Start;
use crate::machine::memory::{self, Physical};
use crate::machine::ports::outb;
use crate::machine::{apic as apic_hw, hyperv, interrupts, power, vps};
use crate::options::Options;
use crate::report::{Failure, Reporter, TestResult};
use core::fmt::Write;
use loader_defs::linux::{BIOS_AREA_END, BIOS_AREA_START, BootParams};

/// What every test gets.
pub(crate) struct Machine<'a> {
    /// As the one who started the kernel says.
    boot: BootInfo,
    /// As ACPI says.
    tables: Tables,
    options: Options<'a>,
    /// There is a hypervisor that follows the TLFS.
    has_host: bool,
}

/// What a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Any PC.
    Nothing,
    /// Our host.
    Host,
    /// A second VP.
    Vps,
    /// Our host, and it ends the machine: runs only if it is named.
    Ending,
    /// A partner on the serial port: runs only if it is named.
    Partner,
}

/// A test.
struct Test {
    name: &'static str,
    needs: Needs,
    run: fn(&Machine<'_>) -> TestResult,
}

const fn test(name: &'static str, needs: Needs, run: fn(&Machine<'_>) -> TestResult) -> Test {
    Test { name, needs, run }
}

/// The suites in order.
const SUITES: &[&[Test]] = &[
    environment::TESTS,
    instructions::TESTS,
    msrs::TESTS,
    ports::TESTS,
    mmio::TESTS,
    apic::TESTS,
    timers::TESTS,
    devices::TESTS,
    smp::TESTS,
    hypercalls::TESTS,
    synic::TESTS,
    isolation::TESTS,
    breakpoints::TESTS,
    moves::TESTS,
    serial::TESTS,
    bench::TESTS,
    endings::TESTS,
];

impl Needs {
    fn must_be_named(self) -> bool {
        matches!(self, Self::Ending | Self::Partner)
    }
}

impl Machine<'_> {
    /// The VPs by number, with the ids of their APICs.
    fn vps(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.tables.processors.iter().copied().enumerate()
    }

    /// Starts those that do not run yet.
    fn start_all(&self) -> TestResult {
        for (vp, apic_id) in self.vps() {
            crate::ensure!(vps::start(vp, apic_id), "VP {vp} does not start");
        }
        Ok(())
    }

    /// The VPs without VP 0, all of them running.
    fn other_vps(&self) -> Result<impl Iterator<Item = (usize, u32)> + '_, Failure> {
        self.start_all()?;
        Ok(self.vps().skip(1))
    }

    fn unmet(&self, needs: Needs) -> Option<&'static str> {
        match needs {
            Needs::Host | Needs::Ending if !self.has_host => {
                Some("this is not a guest of the host under test")
            }
            Needs::Vps if self.tables.processors.len() < 2 => Some("there is one VP"),
            _ => None,
        }
    }
}

/// Runs what the command line asks for and powers off.
pub(crate) fn run(start: Start) -> ! {
    let boot = match read_boot_info(start) {
        Ok(boot) => boot,
        Err(error) => fatal(&error),
    };
    let tables = match read_tables(boot.rsdp) {
        Ok(tables) => tables,
        Err(error) => fatal(&error),
    };
    let command_line = memory::text(boot.command_line).unwrap_or("");
    let options = match Options::parse(command_line) {
        Ok(options) => options,
        Err(error) => fatal(&error),
    };
    let tests = SUITES.iter().copied().flatten();
    if let Some(name) = options.unknown(tests.clone().map(|test| test.name)) {
        fatal(&format_args!("there is no test {name:?}"));
    }
    // Where there are 8259s, their interrupts would look like exceptions.
    for port in [0x21, 0xa1] {
        outb(port, u8::MAX);
    }
    apic_hw::enable();
    let machine = Machine {
        boot,
        tables,
        options,
        has_host: hyperv::is_present(),
    };
    let selected = tests.filter(|test| options.selects(test.name, test.needs.must_be_named()));
    let mut reporter = Reporter::new(Console);
    reporter.line(format_args!("plan {}", selected.clone().count()));
    for test in selected {
        if test.needs == Needs::Ending && machine.has_host {
            reporter.line(format_args!("test {} ends the machine", test.name));
        }
        let result = match machine.unmet(test.needs) {
            Some(reason) => Err(Failure::Skipped(reason)),
            None => (test.run)(&machine),
        };
        for vector in 0..=u8::MAX {
            interrupts::set_action(vector, interrupts::Action::End);
        }
        x86_64::instructions::interrupts::disable();
        reporter.result(test.name, result);
    }
    reporter.done();
    power::off(&machine.tables)
}

fn fatal(error: &dyn core::fmt::Display) -> ! {
    let _ = writeln!(Console, "note {error}");
    power::stop("the kernel cannot start")
}

fn read_boot_info(start: Start) -> Result<BootInfo, BootInfoError> {
    use crate::acpi::Memory;
    match start {
        Start::ZeroPage(address) => {
            let mut page = [0; size_of::<BootParams>()];
            Physical.read(address, &mut page);
            BootInfo::from_zero_page(&page)
        }
        Start::StartInfo(address) => {
            let mut bytes = [0; size_of::<StartInfo>()];
            Physical.read(address, &mut bytes);
            let info = StartInfo::read(&bytes)?;
            let mut map = [0; 4096];
            let map = &mut map[..info.memory_map_size()];
            Physical.read(info.memory_map, map);
            BootInfo::from_start_info(&info, map)
        }
    }
}

/// From where we are told, or else from where the firmware of a PC would leave them.
fn read_tables(rsdp: u64) -> Result<Tables, AcpiError> {
    if rsdp != 0 {
        return Tables::read(&Physical, rsdp);
    }
    (BIOS_AREA_START..BIOS_AREA_END)
        .step_by(16)
        .find_map(|address| Tables::read(&Physical, address).ok())
        .ok_or(AcpiError::Missing("RSDP"))
}
