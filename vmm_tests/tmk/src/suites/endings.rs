//! What ends the machine otherwise than by power-off. Each prints last words; if a line
//! of failure follows, the host did not end it.

use super::{Context, smp};
use crate::abi::CRASH_TEXT;
use crate::machine::entry::report_crash;
use crate::machine::memory;
use crate::machine::probe::wrmsr;
use crate::machine::real_mode;
use crate::machine::vps::{Command, slot};
use crate::report::CheckResult;
use crate::{ensure, fail};
use hv_defs::msr::HV_X64_MSR_RESET;

/// P0 to P2 of the crash report.
const CRASH_PARAMETERS: [u64; 5] = [0x1111_2222_3333_4444, 0x5555, 0x6666, 0, 0];

pub(super) fn touch(c: &mut Context<'_>) {
    let (gpa, access) = (c.options.gpa, c.options.access);
    c.reporter.last_words("touch.forbidden_memory");
    let value = memory::touch(gpa, access);
    c.reporter.result(
        "touch.forbidden_memory",
        survived(format_args!(
            "{access:?} of {gpa:#x} was allowed, value {value:#x}"
        )),
    );
}

/// Tries to get code of its own onto a CPU outside of any VTL. The host may end the
/// machine or ignore the attempt.
pub(super) fn sipi(c: &mut Context<'_>) {
    let apic_id = c.options.apic as u8;
    c.reporter
        .last_words("sipi.runs_nothing_outside_of_the_vtl");
    let escaped = real_mode::start(apic_id);
    c.reporter
        .check("sipi.runs_nothing_outside_of_the_vtl", || {
            ensure!(
                !escaped,
                "own code ran in real mode on the CPU with APIC id {apic_id}"
            );
            ensure!(
                !real_mode::init_by_device(),
                "an entry of the IOAPIC sends INIT"
            );
            Ok(())
        });
}

pub(super) fn crash_message(c: &mut Context<'_>) {
    c.reporter.last_words("crash_message.is_reported");
    report_crash(CRASH_PARAMETERS, Some(CRASH_TEXT))
}

pub(super) fn triple_fault(c: &mut Context<'_>) {
    c.reporter.last_words("triple_fault.is_reported");
    memory::triple_fault()
}

pub(super) fn ap_triple_fault(c: &mut Context<'_>) {
    let vps = c.parameters.vp_count().unwrap_or(0);
    c.reporter
        .result("ap_triple_fault.vps_start", smp::start_all(vps));
    c.reporter.last_words("ap_triple_fault.is_reported");
    if let Some(slot) = slot(vps.saturating_sub(1)) {
        slot.command(Command::TripleFault);
        // The host ends the machine; if it does not, this tells.
        slot.wait(|_| false);
    }
    c.reporter.result(
        "ap_triple_fault.is_reported",
        survived(format_args!("the machine goes on")),
    );
}

pub(super) fn reset(c: &mut Context<'_>) {
    c.reporter.last_words("reset.ends_the_machine");
    let written = wrmsr(HV_X64_MSR_RESET, 1);
    c.reporter.result(
        "reset.ends_the_machine",
        survived(format_args!("the machine goes on: {written:?}")),
    );
}

fn survived(what: core::fmt::Arguments<'_>) -> CheckResult {
    fail!("{what}")
}
