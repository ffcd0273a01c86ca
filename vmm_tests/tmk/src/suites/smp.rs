//! Starting the other VPs.

use super::Context;
use crate::ensure;
use crate::machine::hypercall::Outcome;
use crate::machine::probe::Fault;
use crate::machine::vps::{self, Command, OWN_VTL, Slot, context, slot, vp_call};
use crate::report::{CheckResult, Failure};
use hv_defs::hypercall::{HvStatus, HypercallCode};
use hv_defs::vp_context::HvInitialVpContext;

const ENABLE: HypercallCode = HypercallCode::ENABLE_VP_VTL;
const START: HypercallCode = HypercallCode::START_VIRTUAL_PROCESSOR;

pub(super) fn run(c: &mut Context<'_>) {
    let ids = c.parameters.apic_ids().unwrap_or_default();
    let count = ids.len();
    let last = count.saturating_sub(1);
    let r = &mut c.reporter;
    r.check("smp.vp_that_does_not_exist_is_refused", || {
        for index in [count as u32, 0x1000, 0x7fff_ffff, u32::MAX] {
            for code in [ENABLE, START] {
                is(
                    vp_call(code, index, OWN_VTL, context(0)),
                    HvStatus::INVALID_VP_INDEX,
                )?;
            }
        }
        Ok(())
    });
    r.check("smp.own_vp_cannot_be_enabled_or_started_again", || {
        is(
            vp_call(ENABLE, 0, OWN_VTL, context(0)),
            HvStatus::VTL_ALREADY_ENABLED,
        )?;
        is(
            vp_call(START, 0, OWN_VTL, context(0)),
            HvStatus::INVALID_VP_STATE,
        )
    });
    if count > 1 {
        r.check("smp.vtl_that_does_not_exist_is_refused", || {
            for vtl in [1, 3, 0x12, 0xff] {
                for code in [ENABLE, START] {
                    let outcome = vp_call(code, last as u32, vtl, context(last))?;
                    ensure!(
                        outcome.status != HvStatus::SUCCESS,
                        "{code:?} of VTL {vtl}: {outcome:?}"
                    );
                }
            }
            Ok(())
        });
        r.check("smp.impossible_contexts_are_refused", || {
            impossible_contexts(last)
        });
        if slot(last).is_some_and(|slot| !slot.has_reported()) {
            r.check("smp.vp_starts_only_after_its_vtl_is_enabled", || {
                is(
                    vp_call(START, last as u32, OWN_VTL, context(last)),
                    HvStatus::INVALID_VP_STATE,
                )
            });
        }
    }
    r.check("smp.all_vps_start", || start_all(count));
    r.check("smp.each_vp_knows_its_number_and_apic_id", || {
        for (index, id) in ids.iter().enumerate().skip(1) {
            let Some(slot) = slot(index) else { continue };
            let found = slot.identity();
            let expected = (index as u32, *id, *id);
            ensure!(
                found == expected,
                "VP {index}: index and APIC ids {found:?}, expected {expected:?}"
            );
        }
        Ok(())
    });
    if count > 1 {
        r.check("smp.running_vp_cannot_be_started_again", || {
            is(
                vp_call(ENABLE, last as u32, OWN_VTL, context(last)),
                HvStatus::VTL_ALREADY_ENABLED,
            )?;
            is(
                vp_call(START, last as u32, OWN_VTL, context(last)),
                HvStatus::INVALID_VP_STATE,
            )
        });
        r.check("smp.all_vps_exit_at_once", || exit_together(count));
        super::signals::run(r, last);
    }
}

/// Enables and starts every VP that does not run yet, and waits for each.
pub(super) fn start_all(count: usize) -> CheckResult {
    for index in 1..count {
        let Some(slot) = slot(index) else { break };
        if slot.has_reported() {
            continue;
        }
        let outcome = vp_call(ENABLE, index as u32, OWN_VTL, context(index))?;
        ensure!(
            matches!(
                outcome.status,
                HvStatus::SUCCESS | HvStatus::VTL_ALREADY_ENABLED
            ),
            "enable VP {index}: {outcome:?}"
        );
        is(
            vp_call(START, index as u32, OWN_VTL, context(index)),
            HvStatus::SUCCESS,
        )
        .map_err(|e| Failure::new(format_args!("start VP {index}: {}", e.0)))?;
        ensure!(slot.wait(Slot::has_reported), "VP {index} does not report");
    }
    Ok(())
}

/// Tells all VPs but the first what to do.
pub(super) fn command_all(count: usize, command: Command) {
    for slot in (1..count).filter_map(slot) {
        slot.command(command);
    }
}

/// All VPs make exits at the same time; each must get on.
fn exit_together(count: usize) -> CheckResult {
    const ROUNDS: u64 = 200;
    command_all(count, Command::Cpuid);
    let mut result = Ok(());
    for index in 1..count {
        let Some(slot) = slot(index) else { break };
        let start = slot.rounds.load(core::sync::atomic::Ordering::Relaxed);
        let done = slot
            .wait(|slot| slot.rounds.load(core::sync::atomic::Ordering::Relaxed) - start >= ROUNDS);
        if !done {
            result = Err(Failure::new(format_args!("VP {index} hangs")));
        }
    }
    command_all(count, Command::Wait);
    result
}

/// Contexts with which a processor cannot run, or which reach for the host's rights.
fn impossible_contexts(index: usize) -> CheckResult {
    let good = context(index);
    let cases: [(&str, HvInitialVpContext); 6] = [
        ("SVM enabled", with(good, |c| c.efer |= 1 << 12)),
        ("paging without protection", with(good, |c| c.cr0 &= !1)),
        ("reserved CR0 bits", with(good, |c| c.cr0 |= 1 << 40)),
        ("reserved CR4 bits", with(good, |c| c.cr4 |= 1 << 40)),
        ("reserved EFER bits", with(good, |c| c.efer |= 1 << 40)),
        ("long mode without PAE", with(good, |c| c.cr4 &= !(1 << 5))),
    ];
    for (what, bad) in cases {
        let outcome = vp_call(ENABLE, index as u32, vps::OWN_VTL, bad)?;
        ensure!(outcome.status != HvStatus::SUCCESS, "{what}: {outcome:?}");
    }
    Ok(())
}

fn with(
    mut context: HvInitialVpContext,
    change: impl FnOnce(&mut HvInitialVpContext),
) -> HvInitialVpContext {
    change(&mut context);
    context
}

fn is(outcome: Result<Outcome, Fault>, status: HvStatus) -> CheckResult {
    let outcome = outcome?;
    ensure!(outcome.status == status, "{outcome:?}, expected {status:?}");
    Ok(())
}
