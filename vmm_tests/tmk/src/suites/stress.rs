//! CPUID exits on VP 0 while all other VPs restore floating-point state.
//!
//! QEMU's multi-threaded emulation has a race: FXRSTOR on any vCPU modifies flags of
//! vCPU 0 without a lock, and a #VMEXIT there at the same moment is half undone. That is
//! why the host parks vCPU 0; with the host option `park=off` this suite shows it.

use super::{Context, smp};
use crate::ensure;
use crate::machine::memory::{self, ScratchPage};
use crate::machine::probe::cpuid_leaf;
use crate::machine::vps::{Command, slot};
use core::sync::atomic::Ordering;
use hv_defs::cpuid::HV_CPUID_VENDOR;

/// Exits between two lines of progress: a run that dies shows how far it came.
const NOTE_EVERY: u64 = 20_000;

pub(super) fn run(c: &mut Context<'_>) {
    let vps = c.parameters.vp_count().unwrap_or(0);
    let exits = c.options.count;
    c.reporter.check("stress.other_vps_start", || {
        ensure!(vps > 1, "{vps} VPs, at least 2 are needed");
        smp::start_all(vps)
    });
    memory::fxsave(ScratchPage::FLOATING_POINT);
    let others = || (1..vps).filter_map(slot);
    smp::command_all(vps, Command::Fxrstor);
    for slot in others() {
        slot.wait(|slot| slot.rounds.load(Ordering::Relaxed) > 0);
    }
    let expected = cpuid_leaf(HV_CPUID_VENDOR);
    let mut wrong = 0u64;
    for exit in 0..exits {
        if exit % NOTE_EVERY == 0 {
            c.reporter.note(format_args!("stress: {exit} exits"));
        }
        wrong += u64::from(cpuid_leaf(HV_CPUID_VENDOR) != expected);
    }
    let restores: u64 = others()
        .map(|slot| slot.rounds.load(Ordering::Relaxed))
        .sum();
    smp::command_all(vps, Command::Halt);
    c.reporter.note(format_args!(
        "stress: {exits} exits beside {restores} restores"
    ));
    c.reporter.check("stress.exits_are_undisturbed", || {
        ensure!(wrong == 0, "{wrong} of {exits} answers were wrong");
        ensure!(restores > exits / 10, "only {restores} restores");
        Ok(())
    });
}
