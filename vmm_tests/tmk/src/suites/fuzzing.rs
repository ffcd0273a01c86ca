//! Random hypercalls and MSR accesses. That the host survives them is the check; what
//! it answers is counted and shown.

use super::{Context, enable_hypercall_page, smp};
use crate::ensure;
use crate::fuzz::{Arena, RandomMsr, is_destructive, random_call, random_msr};
use crate::machine::memory::{random_scratch, write_random_scratch};
use crate::machine::probe::{rdmsr, wrmsr};
use crate::machine::vps::Command;
use crate::machine::{hypercall, probe};
use crate::prng::Prng;
use hv_defs::cpuid::{HV_CPUID_VENDOR, HV_VENDOR};
use hv_defs::hypercall::HvStatus;
use hv_defs::msr::HV_X64_MSR_VP_INDEX;

/// Rounds between two lines of progress.
const NOTE_EVERY: u64 = 10_000;

pub(super) fn run(c: &mut Context<'_>) {
    let (count, seed) = (c.options.count, c.options.seed);
    let vps = c.parameters.vp_count().unwrap_or(1);
    let arena = Arena {
        scratch: random_scratch(),
        image: c.parameters.image.clone(),
    };
    let mut prng = Prng::new(seed);
    let (mut made, mut succeeded, mut faults) = (0u64, 0u64, 0u64);
    c.reporter
        .result("fuzz.hypercall_page", enable_hypercall_page());
    // All other VPs run, so that a random start cannot succeed, and make exits meanwhile.
    c.reporter
        .result("fuzz.other_vps_start", smp::start_all(vps));
    smp::command_all(vps, Command::Cpuid);
    for round in 0..count {
        if round % NOTE_EVERY == 0 {
            c.reporter
                .note(format_args!("fuzz: seed {seed} round {round}"));
        }
        if prng.one_in(2) {
            match random_msr(&mut prng, &arena) {
                RandomMsr::Read(msr) => faults += u64::from(rdmsr(msr).is_err()),
                RandomMsr::Write(msr, value) => faults += u64::from(wrmsr(msr, value).is_err()),
            }
            continue;
        }
        let call = random_call(&mut prng, &arena);
        if is_destructive(&call) {
            continue;
        }
        write_random_scratch(call.input, &call.words);
        made += 1;
        match hypercall::raw(call.control, call.input, call.output) {
            Ok(outcome) => succeeded += u64::from(outcome.status == HvStatus::SUCCESS),
            Err(_) => faults += 1,
        }
    }
    smp::command_all(vps, Command::Wait);
    c.reporter.note(format_args!(
        "fuzz: {made} hypercalls, {succeeded} of them obeyed, {faults} faults"
    ));
    c.reporter.check("fuzz.host_still_answers", || {
        let [_, vendor @ ..] = probe::cpuid_leaf(HV_CPUID_VENDOR)?;
        ensure!(vendor == HV_VENDOR, "vendor {vendor:x?}");
        let index = rdmsr(HV_X64_MSR_VP_INDEX)?;
        ensure!(index == 0, "VP index {index}");
        // Otherwise the first check would refuse them all and nothing behind it is tried.
        ensure!(
            succeeded > made / 100,
            "only {succeeded} of {made} hypercalls were obeyed"
        );
        Ok(())
    });
}
