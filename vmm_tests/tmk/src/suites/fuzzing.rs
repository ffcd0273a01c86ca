//! Random hypercalls and MSR accesses. That the host survives them is the check; what
//! it answers is counted and shown.

use super::{Context, enable_hypercall_page};
use crate::ensure;
use crate::fuzz::{INPUT_WORDS, RandomMsr, is_destructive, random_call, random_input, random_msr};
use crate::machine::memory::{random_scratch, write_random_scratch};
use crate::machine::probe::{rdmsr, wrmsr};
use crate::machine::{hypercall, probe};
use crate::prng::Prng;
use hv_defs::cpuid::{HV_CPUID_VENDOR, HV_VENDOR};
use hv_defs::hypercall::HvStatus;
use hv_defs::msr::HV_X64_MSR_VP_INDEX;

/// Rounds between two lines of progress.
const NOTE_EVERY: u64 = 10_000;

pub(super) fn run(c: &mut Context<'_>) {
    let (count, seed) = (c.options.count, c.options.seed);
    let scratch = random_scratch();
    let mut prng = Prng::new(seed);
    let mut words = [0; INPUT_WORDS];
    let (mut made, mut succeeded, mut faults) = (0u64, 0u64, 0u64);
    c.reporter
        .result("fuzz.hypercall_page", enable_hypercall_page());
    for round in 0..count {
        if round % NOTE_EVERY == 0 {
            c.reporter
                .note(format_args!("fuzz: seed {seed} round {round}"));
        }
        if prng.one_in(2) {
            match random_msr(&mut prng, &scratch) {
                RandomMsr::Read(msr) => faults += u64::from(rdmsr(msr).is_err()),
                RandomMsr::Write(msr, value) => faults += u64::from(wrmsr(msr, value).is_err()),
            }
            continue;
        }
        let call = random_call(&mut prng, &scratch);
        random_input(&mut prng, &mut words);
        write_random_scratch(call.input, &words);
        // What the host will see is what lies there now, perhaps from an earlier round.
        if is_destructive(&call, &[words[0], words[1]]) || !scratch_or_foreign(call.input) {
            continue;
        }
        made += 1;
        match hypercall::raw(call.control, call.input, call.output) {
            Ok(outcome) => succeeded += u64::from(outcome.status == HvStatus::SUCCESS),
            Err(_) => faults += 1,
        }
    }
    c.reporter.note(format_args!(
        "fuzz: {made} hypercalls, {succeeded} of them obeyed, {faults} faults"
    ));
    c.reporter.check("fuzz.host_still_answers", || {
        let [_, vendor @ ..] = probe::cpuid_leaf(HV_CPUID_VENDOR)?;
        ensure!(vendor == HV_VENDOR, "vendor {vendor:x?}");
        let index = rdmsr(HV_X64_MSR_VP_INDEX)?;
        ensure!(index == 0, "VP index {index}");
        ensure!(made > count / 4, "only {made} hypercalls in {count} rounds");
        Ok(())
    });
}

/// False for an address whose first words are not the ones just written although the
/// host would read them: close to the end of the scratch pages.
fn scratch_or_foreign(address: u64) -> bool {
    let scratch = random_scratch();
    !scratch.contains(&address) || scratch.contains(&(address + 16))
}
