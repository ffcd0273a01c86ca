//! The suites, in the order in which they run. Bare-metal only.

mod endings;
mod fuzzing;
mod hypercalls;
mod instructions;
mod lower_registers;
mod msrs;
mod params;
mod ports;
mod protections;
mod signals;
mod smp;
mod stress;

use crate::abi::{ParameterKind, TMK_INFO_MAGIC, TmkInfo};
use crate::machine::console::Console;
use crate::machine::entry::{EntryState, report_crash};
use crate::machine::memory::{self, ScratchPage};
use crate::machine::probe::{Fault, rdmsr, wrmsr};
use crate::machine::{descriptors, hypercall};
use crate::options::{Options, Suite};
use crate::parameters::Parameters;
use crate::report::{Failure, Reporter};
use core::ops::Range;
use hv_defs::msr::{HV_X64_MSR_GUEST_OS_ID, HV_X64_MSR_HYPERCALL, OverlayPage};
use zerocopy::FromBytes;

/// What every suite gets.
pub(crate) struct Context<'a> {
    reporter: Reporter<Console>,
    options: Options<'a>,
    parameters: Parameters<'a>,
}

/// Identity of the payload: vendor 0xfe in the open-source form of the TLFS.
const GUEST_OS_ID: u64 = (1 << 63) | (0xfe << 48) | 1;

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::new(format_args!(
            "unexpected exception {} error {:#x}",
            fault.vector, fault.error
        ))
    }
}

/// Runs what the boot arguments ask for and powers off.
pub fn run(image_base: u64, state: &EntryState) -> ! {
    let found = params::entry_registers();
    descriptors::load();
    let mut reporter = Reporter::new(Console);
    reporter.note(format_args!("started, image base {image_base:#x}"));
    let Some(info) = read_info(image_base.wrapping_add(state.rsi)) else {
        reporter.note(format_args!(
            "fatal: no info page at image base {image_base:#x} + RSI {:#x}",
            state.rsi
        ));
        report_crash([0; 5], Some("no info page"));
    };
    let range_start = image_base.wrapping_sub(info.base_in_range);
    let image = range_start..range_start + info.range_size;
    let parameters = parameters(&info, image_base, &image);
    // The image's page tables are looked at before they are replaced.
    let mapped = params::check_page_tables(&info, image_base, &image);
    memory::load_identity_map();

    let text = parameters.command_line().unwrap_or("");
    let options = match Options::parse(text) {
        Ok(options) => options,
        Err(error) => {
            reporter.note(format_args!("fatal: {error}"));
            report_crash([0; 5], Some("bad options"));
        }
    };
    let mut context = Context {
        reporter,
        options,
        parameters,
    };
    for suite in Suite::ALL.iter().filter(|suite| options.selects(**suite)) {
        let c = &mut context;
        match suite {
            Suite::Params => params::run(c, &info, image_base, state, &found, &mapped),
            Suite::Cpuid => instructions::cpuid(c),
            Suite::Msrs => msrs::run(c),
            Suite::Instructions => instructions::run(c),
            Suite::Ports => ports::run(c),
            Suite::Hypercalls => hypercalls::run(c),
            Suite::Smp => smp::run(c),
            Suite::Fuzz => fuzzing::run(c),
            Suite::Stress => stress::run(c),
            Suite::Touch => endings::touch(c),
            Suite::Sipi => endings::sipi(c),
            Suite::CrashMessage => endings::crash_message(c),
            Suite::TripleFault => endings::triple_fault(c),
            Suite::ApTripleFault => endings::ap_triple_fault(c),
            Suite::Reset => endings::reset(c),
        }
    }
    context.reporter.done();
    let refusal = hypercall::power_off();
    context
        .reporter
        .note(format_args!("fatal: power-off was refused: {refusal:?}"));
    report_crash([0; 5], Some("power-off was refused"))
}

fn read_info(address: u64) -> Option<TmkInfo> {
    // SAFETY: the packer places the page in the image; the image's tables map it (if RSI
    // is wrong, the exception handler reports the fault).
    #[expect(unsafe_code, reason = "the first look at memory that the host placed")]
    let bytes = unsafe { memory::image_bytes(address, size_of::<TmkInfo>() as u64) };
    let info = TmkInfo::read_from_bytes(bytes).ok()?;
    (info.magic == TMK_INFO_MAGIC).then_some(info)
}

fn parameters<'a>(info: &TmkInfo, image_base: u64, image: &'a Range<u64>) -> Parameters<'a> {
    let area = |kind: ParameterKind| {
        let place = info.parameters[kind as usize];
        // SAFETY: the packer has reserved these bytes in the image; nobody writes them
        // after the load.
        #[expect(unsafe_code, reason = "parameter areas are where the packer says")]
        unsafe {
            memory::image_bytes(image_base + place.offset, place.size)
        }
    };
    Parameters {
        vp_count: area(ParameterKind::VpCount),
        srat: area(ParameterKind::Srat),
        madt: area(ParameterKind::Madt),
        slit: area(ParameterKind::Slit),
        pptt: area(ParameterKind::Pptt),
        mmio_ranges: area(ParameterKind::MmioRanges),
        memory_map: area(ParameterKind::MemoryMap),
        command_line: area(ParameterKind::CommandLine),
        device_tree: area(ParameterKind::DeviceTree),
        image,
    }
}

/// Makes the payload known to the host, so that it may place a hypercall page, and
/// places it.
fn enable_hypercall_page() -> Result<(), Failure> {
    wrmsr(HV_X64_MSR_GUEST_OS_ID, GUEST_OS_ID)?;
    let wanted = OverlayPage::new()
        .with_enabled(true)
        .with_page_number(ScratchPage::HYPERCALL.address() / crate::abi::PAGE_SIZE);
    wrmsr(HV_X64_MSR_HYPERCALL, wanted.into_bits())?;
    let found = rdmsr(HV_X64_MSR_HYPERCALL)?;
    crate::ensure!(
        found == wanted.into_bits(),
        "hypercall MSR is {found:#x}, expected {:#x}",
        wanted.into_bits()
    );
    Ok(())
}
