//! What VPs of VTL2 send each other, and how one leaves and begins anew: what the sidecar
//! is driven by.

use crate::ensure;
use crate::machine::console::Console;
use crate::machine::hypercall::{OWN_REGISTERS, Outcome, call, simple};
use crate::machine::memory::ScratchPage;
use crate::machine::probe::Fault;
use crate::machine::vps::{
    Command, EVENT_SINT, EVENT_VECTOR, OWN_VTL, Slot, context, slot, vp_call,
};
use crate::report::{CheckResult, Failure, Reporter};
use crate::suites::hypercalls::SetRegister;
use core::sync::atomic::Ordering;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::hypercall::{
    HV_VP_SET_SPARSE, HvInputVtl, HvStatus, HypercallCode, SendClusterIpi, SendClusterIpiEx,
};
use hv_defs::registers::{HvRegisterAssoc, HvRegisterName, InternalActivity};
use hv_defs::synic::SignalEventDirect;
use zerocopy::{Immutable, IntoBytes};

/// Vectors that are sent: by mask, by bank.
const VECTORS: [u8; 2] = [0x43, 0x44];
/// First vector of those that a VP reports.
const FIRST_REPORTED: u8 = 64;
/// An event flag.
const FLAG: u16 = 70;
/// How often a VP leaves.
const ROUNDS: usize = 50;

/// Input of the Ex form with one bank.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct OneBank {
    header: SendClusterIpiEx,
    bank: u64,
}

/// Tests with VP `other`, which runs.
pub(super) fn run(r: &mut Reporter<Console>, other: usize) {
    let Some(slot) = slot(other) else { return };
    // The set names one VP of the first bank.
    if other >= 64 {
        return;
    }
    r.check("smp.apic_that_is_off_takes_no_interrupt", || {
        send(other)?;
        report(slot)?;
        ensure!(!has(slot, VECTORS[0]), "vector {:#x} came", VECTORS[0]);
        Ok(())
    });
    r.check("smp.interrupt_reaches_the_vps_of_a_set", || {
        ScratchPage::EVENTS.fill(u64::MAX);
        ensure!(slot.once(Command::Listen), "VP {other} does not answer");
        send(other)?;
        report(slot)?;
        for vector in VECTORS {
            ensure!(has(slot, vector), "vector {vector:#x} did not come");
        }
        ensure!(!has(slot, EVENT_VECTOR), "an event came");
        Ok(())
    });
    r.check("smp.event_interrupts_another_vp", || {
        let word = usize::from(EVENT_SINT) * 32 + usize::from(FLAG / 64);
        ensure!(ScratchPage::EVENTS.read(word) == 0, "flags are not cleared");
        for newly in [1, 0] {
            is(signal(other, EVENT_SINT), HvStatus::SUCCESS)?;
            let found = ScratchPage::OUTPUT.read(0);
            ensure!(found == newly, "newly signaled {found:#x}");
        }
        let flags = ScratchPage::EVENTS.read(word);
        ensure!(flags == 1 << (FLAG % 64), "flags {flags:#x}");
        report(slot)?;
        ensure!(has(slot, EVENT_VECTOR), "no interrupt came");
        Ok(())
    });
    r.check("smp.event_for_a_masked_source_is_refused", || {
        is(signal(other, 0), HvStatus::INVALID_SYNIC_STATE)?;
        is(signal(0, EVENT_SINT), HvStatus::INVALID_SYNIC_STATE)
    });
    r.check("smp.vp_that_leaves_can_be_started_again", || {
        ScratchPage::SUSPEND.write_bytes(suspension().as_bytes());
        for round in 0..ROUNDS {
            restart(other, slot).map_err(|e| Failure::new(format_args!("{round}: {}", e.0)))?;
        }
        report(slot)?;
        let page = slot.interrupts.load(Ordering::Relaxed) >> 32;
        ensure!(page == 0, "event flags of the VP before are at {page:#x}");
        is(signal(other, EVENT_SINT), HvStatus::INVALID_SYNIC_STATE)
    });
}

/// The VP turns its APIC off and suspends itself; it is started whether it has come so far
/// or not.
fn restart(other: usize, slot: &Slot) -> CheckResult {
    let code = HypercallCode::START_VIRTUAL_PROCESSOR;
    let start = || vp_call(code, other as u32, OWN_VTL, context(other));
    is(start(), HvStatus::INVALID_VP_STATE)?;
    slot.forget();
    ensure!(slot.once(Command::Leave), "VP {other} does not leave");
    is(start(), HvStatus::SUCCESS)?;
    ensure!(slot.wait(Slot::has_reported), "VP {other} does not report");
    let (index, ..) = slot.identity();
    ensure!(index == other as u32, "VP {index}, expected {other}");
    Ok(())
}

fn suspension() -> SetRegister {
    let state = InternalActivity::new().with_startup_suspend(true);
    SetRegister {
        header: OWN_REGISTERS,
        assoc: HvRegisterAssoc {
            name: HvRegisterName::INTERNAL_ACTIVITY_STATE.0,
            pad: [0; 3],
            value: [state.into_bits(), 0],
        },
    }
}

/// Sends both vectors, each by another call.
fn send(other: usize) -> CheckResult {
    let mask = 1 << other;
    let [by_mask, by_bank] = VECTORS.map(u32::from);
    let input = SendClusterIpi {
        vector: by_mask,
        target_vtl: HvInputVtl::new(),
        rsvd: [0; 3],
        processors: mask,
    };
    let code = simple(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI);
    is(call(code, &input), HvStatus::SUCCESS)?;
    let input = OneBank {
        header: SendClusterIpiEx {
            vector: by_bank,
            target_vtl: HvInputVtl::new(),
            rsvd: [0; 3],
            format: HV_VP_SET_SPARSE,
            valid_banks: 1,
        },
        bank: mask,
    };
    let code = simple(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX);
    is(
        call(code.with_variable_header_size(1), &input),
        HvStatus::SUCCESS,
    )
}

fn signal(vp: usize, sint: u8) -> Result<Outcome, Fault> {
    let input = SignalEventDirect {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: vp as u32,
        vtl: OWN_VTL,
        sint,
        flag_number: FLAG,
    };
    call(simple(HypercallCode::SIGNAL_EVENT_DIRECT), &input)
}

fn report(slot: &Slot) -> CheckResult {
    ensure!(slot.once(Command::Report), "the VP does not report");
    Ok(())
}

/// Whether the VP has reported this vector.
fn has(slot: &Slot, vector: u8) -> bool {
    slot.interrupts.load(Ordering::Relaxed) & 1 << (vector - FIRST_REPORTED) != 0
}

fn is(outcome: Result<Outcome, Fault>, status: HvStatus) -> CheckResult {
    super::hypercalls::expect(outcome, status)
}
