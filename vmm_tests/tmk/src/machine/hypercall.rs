//! Hypercalls.

use super::memory::ScratchPage;
use super::probe::{Fault, Registers, vmmcall};
use hv_defs::hypercall::{
    EnterSleepState, GetSetVpRegisters, HV_SLEEP_STATE_S5, HvInputVtl, HvStatus, HypercallCode,
    HypercallControl, HypercallResult,
};
use hv_defs::registers::HvRegisterName;
use hv_defs::{HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF};
use zerocopy::{Immutable, IntoBytes};

/// What a hypercall returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Status.
    pub status: HvStatus,
    /// Repetitions completed.
    pub reps: u16,
}

impl Outcome {
    fn new(rax: u64) -> Self {
        let result = HypercallResult::from_bits(rax);
        Self {
            status: HvStatus(result.status()),
            reps: result.reps_completed(),
        }
    }
}

/// Makes a hypercall with exactly these register values. A fault is returned as such.
pub fn raw(control: u64, input: u64, output: u64) -> Result<Outcome, Fault> {
    let r = vmmcall(Registers {
        rax: u64::MAX,
        rcx: control,
        rdx: input,
        r8: output,
        ..Default::default()
    })?;
    Ok(Outcome::new(r.rax))
}

/// Makes a hypercall with this input in the input page and the output page for output.
pub fn call<T: IntoBytes + Immutable + ?Sized>(
    control: HypercallControl,
    input: &T,
) -> Result<Outcome, Fault> {
    ScratchPage::INPUT.write_bytes(input.as_bytes());
    raw(
        control.into_bits(),
        ScratchPage::INPUT.address(),
        ScratchPage::OUTPUT.address(),
    )
}

/// A control word without repetitions.
pub fn simple(code: HypercallCode) -> HypercallControl {
    HypercallControl::new().with_code(code.0)
}

/// A control word with repetitions.
pub fn repeated(code: HypercallCode, count: u16) -> HypercallControl {
    simple(code).with_rep_count(count)
}

/// Header of the register hypercalls for this VP in its own VTL.
pub const OWN_REGISTERS: GetSetVpRegisters = GetSetVpRegisters {
    partition_id: HV_PARTITION_ID_SELF,
    vp_index: HV_VP_INDEX_SELF,
    target_vtl: HvInputVtl::new(),
    rsvd: [0; 3],
};

/// Input of `GET_VP_REGISTERS` with three names.
#[repr(C)]
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
pub struct GetThreeRegisters {
    /// Header.
    pub header: GetSetVpRegisters,
    /// Names.
    pub names: [u32; 3],
    /// Not read.
    pub padding: u32,
}

/// Reads up to three registers; the values are in the output page, 16 bytes each.
pub fn get_registers(names: [HvRegisterName; 3], count: u16) -> Result<Outcome, Fault> {
    call(
        repeated(HypercallCode::GET_VP_REGISTERS, count),
        &GetThreeRegisters {
            header: OWN_REGISTERS,
            names: names.map(|name| name.0),
            padding: 0,
        },
    )
}

/// Powers the machine off. Returns only if the host refuses.
pub fn power_off() -> Result<Outcome, Fault> {
    call(
        simple(HypercallCode::ENTER_SLEEP_STATE),
        &EnterSleepState {
            sleep_state: HV_SLEEP_STATE_S5,
        },
    )
}
