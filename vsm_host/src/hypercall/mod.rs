//! Hypercalls (TLFS chapter 3): the checks that all calls share, and the table of calls.
//!
//! Everything in the control word and the parameter blocks comes from a VTL. A call that
//! is wrong in any way is answered with a status; what stands in memory is copied out
//! once, before it is looked at.

mod calls;
mod direct;
mod guest;
mod ipi;
mod private;
mod registers;
mod translate;

use crate::partition::counters::Refused;
use crate::partition::{Next, Partition, Processor, Vp, gpr};
use crate::svm::vmcb::{self, Exception};
use crate::vtl::Vtl;
use calls::Caller;
use hv_defs::HV_PAGE_SIZE;
use hv_defs::hypercall::{
    EnableVpVtl, EnterSleepState, GetSetVpRegisters, GetVpIndexFromApicId, HvStatus,
    HypercallCode as Code, HypercallControl, HypercallResult, ModifyVtlProtectionMask,
    SendClusterIpi, SendClusterIpiEx, TranslateVirtualAddress, TranslateVirtualAddressOutput,
};
use hv_defs::intercept::InstallIntercept;
use hv_defs::registers::HvRegisterAssoc;
use hv_defs::synic::{
    AssertVirtualInterrupt, PostMessage, PostMessageDirect, SignalEvent, SignalEventDirect,
    SignalEventDirectOutput,
};
pub(crate) use registers::check_vsm_config;
use vsm_host_defs::ExitReason;

const PAGE: usize = HV_PAGE_SIZE as usize;

/// Bytes of input that fit into the registers of a fast call (RDX and R8).
const FAST_INPUT: usize = 16;

/// Unit of a variable header.
const WORD: usize = size_of::<u64>();

/// What a hypercall leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is over; this goes to RAX.
    Done(HypercallResult),
    /// The instruction faults.
    Fault(Exception),
    /// VTL2 answers the guest's call.
    Intercepted,
    /// The VP has left the caller's VTL.
    Switched(Next),
    /// The machine ends.
    End(ExitReason),
}

/// How a call ends: well (with this many repetitions done), or not.
type CallResult = Result<u16, Failure>;

/// A call that failed.
struct Failure {
    status: HvStatus,
    /// Repetitions that had been done before.
    done: u16,
}

impl From<HvStatus> for Failure {
    fn from(status: HvStatus) -> Self {
        Self { status, done: 0 }
    }
}

/// The form of a call.
struct Form {
    code: Code,
    /// Bytes of fixed input.
    header: usize,
    /// Bytes of output of a simple call.
    output: usize,
    /// Bytes of input and output per repetition; `None`: a simple call.
    repetition: Option<(usize, usize)>,
    /// Words may follow the fixed input, as many as the control word says.
    variable: bool,
    /// Input may come in registers.
    fast: bool,
    /// The guest may make it.
    guest: bool,
}

impl Form {
    /// A simple call without output, for VTL2.
    const fn new<T>(code: Code) -> Self {
        Self {
            code,
            header: size_of::<T>(),
            output: 0,
            repetition: None,
            variable: false,
            fast: false,
            guest: false,
        }
    }

    const fn output<T>(mut self) -> Self {
        self.output = size_of::<T>();
        self
    }

    const fn repeated(mut self, input: usize, output: usize) -> Self {
        self.repetition = Some((input, output));
        self
    }

    const fn variable(mut self) -> Self {
        self.variable = true;
        self
    }

    const fn fast(mut self) -> Self {
        self.fast = true;
        self
    }

    const fn guest(mut self) -> Self {
        self.guest = true;
        self
    }
}

const NAME: usize = size_of::<u32>();
const VALUE: usize = size_of::<u128>();
const ASSOC: usize = size_of::<HvRegisterAssoc>();

/// The calls that exist.
const FORMS: [Form; 16] = [
    Form::new::<SendClusterIpi>(Code::SEND_SYNTHETIC_CLUSTER_IPI).fast(),
    Form::new::<ModifyVtlProtectionMask>(Code::MODIFY_VTL_PROTECTION_MASK).repeated(8, 0),
    Form::new::<EnableVpVtl>(Code::ENABLE_VP_VTL),
    Form::new::<SendClusterIpiEx>(Code::SEND_SYNTHETIC_CLUSTER_IPI_EX).variable(),
    Form::new::<InstallIntercept>(Code::INSTALL_INTERCEPT),
    Form::new::<GetSetVpRegisters>(Code::GET_VP_REGISTERS)
        .repeated(NAME, VALUE)
        .guest(),
    Form::new::<GetSetVpRegisters>(Code::SET_VP_REGISTERS).repeated(ASSOC, 0),
    Form::new::<TranslateVirtualAddress>(Code::TRANSLATE_VIRTUAL_ADDRESS)
        .output::<TranslateVirtualAddressOutput>(),
    Form::new::<PostMessage>(Code::POST_MESSAGE).guest(),
    Form::new::<SignalEvent>(Code::SIGNAL_EVENT).fast().guest(),
    Form::new::<AssertVirtualInterrupt>(Code::ASSERT_VIRTUAL_INTERRUPT),
    Form::new::<SignalEventDirect>(Code::SIGNAL_EVENT_DIRECT).output::<SignalEventDirectOutput>(),
    Form::new::<PostMessageDirect>(Code::POST_MESSAGE_DIRECT),
    Form::new::<EnterSleepState>(Code::ENTER_SLEEP_STATE).fast(),
    Form::new::<EnableVpVtl>(Code::START_VIRTUAL_PROCESSOR),
    Form::new::<GetVpIndexFromApicId>(Code::GET_VP_INDEX_FROM_APIC_ID)
        .repeated(4, 4)
        .guest(),
];

/// Handles the VMMCALL at which the VP stands.
pub fn handle(partition: &Partition, vp: &mut Vp, processor: &impl Processor) -> Outcome {
    let save = &vp.vmcb().save;
    // Only 64-bit code at the highest privilege makes hypercalls here.
    if save.cpl != 0 || !vmcb::is_64_bit(save) {
        return Outcome::Fault(Exception::InvalidOpcode);
    }
    let control = HypercallControl::from(vp.gprs[gpr::RCX]);
    let code = Code(control.code());
    match code {
        Code::VTL_RETURN => {
            return match partition.vtl_return(vp, processor) {
                Ok(next) => Outcome::Switched(next),
                Err(exception) => Outcome::Fault(exception),
            };
        }
        // No VTL takes calls.
        Code::VTL_CALL => return Outcome::Fault(Exception::InvalidOpcode),
        _ => {}
    }
    let mut caller = Caller {
        partition,
        vp,
        processor,
        end: None,
        intercepted: false,
        suspended: false,
    };
    let result = call(&mut caller, control);
    let Caller {
        end,
        intercepted,
        suspended,
        ..
    } = caller;
    if let Some(reason) = end {
        return Outcome::End(reason);
    }
    if intercepted {
        return Outcome::Intercepted;
    }
    if suspended {
        return Outcome::Switched(Next::Suspend);
    }
    Outcome::Done(match result {
        Ok(done) => HypercallResult::new().with_reps_completed(done),
        Err(Failure { status, done }) => {
            if status == HvStatus::INVALID_HYPERCALL_CODE {
                partition.counters.count(Refused::Hypercall(code.0));
            }
            HypercallResult::new()
                .with_status(status.0)
                .with_reps_completed(done)
        }
    })
}

fn call<P: Processor>(caller: &mut Caller<'_, P>, control: HypercallControl) -> CallResult {
    let form = FORMS.iter().find(|form| form.code.0 == control.code());
    let Some(form) = form else {
        direct::unknown_call(caller, Code(control.code()));
        return Err(HvStatus::INVALID_HYPERCALL_CODE.into());
    };
    if !form.guest && caller.vp.vtl == Vtl::GUEST {
        return Err(HvStatus::ACCESS_DENIED.into());
    }
    check_control(form, control)?;
    let repetitions = usize::from(control.rep_count());
    let (input_each, output_each) = form.repetition.unwrap_or((0, 0));
    let header_size = form.header + usize::from(control.variable_header_size()) * WORD;
    let input_size = header_size + repetitions * input_each;
    let output_size = form.output + repetitions * output_each;
    let input_address = caller.vp.gprs[gpr::RDX];
    let output_address = caller.vp.gprs[gpr::R8];

    let mut input = [0; PAGE];
    if control.fast() {
        input[..8].copy_from_slice(&input_address.to_le_bytes());
        input[8..FAST_INPUT].copy_from_slice(&output_address.to_le_bytes());
    } else {
        check_block(input_address, input_size)?;
        check_block(output_address, output_size)?;
        let memory = caller.memory();
        if output_size != 0 {
            memory
                .check_writable(output_address, output_size as u64)
                .map_err(|_| HvStatus::INVALID_PARAMETER)?;
        }
        memory
            .read(input_address, &mut input[..input_size])
            .map_err(|_| HvStatus::INVALID_PARAMETER)?;
    }
    let (header, list) = input[..input_size].split_at(header_size);
    let mut output = [0; PAGE];
    if form.repetition.is_none() {
        let results = &mut output[..output_size];
        calls::simple(caller, form.code, header, results)?;
        write_output(caller, output_address, results)?;
        return Ok(0);
    }

    let start = usize::from(control.rep_start());
    let list = &list[start * input_each..];
    let results = &mut output[start * output_each..output_size];
    let (result, done) = calls::repeated(caller, form.code, header, list, results);
    let produced = &results[..done * output_each];
    let offset = (start * output_each) as u64;
    write_output(caller, output_address.wrapping_add(offset), produced)?;
    // Both are below 4096, the number of repetitions that a control word can name.
    let done = (start + done) as u16;
    result
        .map(|()| done)
        .map_err(|status| Failure { status, done })
}

/// Writes the output of a call, if it has one.
fn write_output<P: Processor>(
    caller: &Caller<'_, P>,
    address: u64,
    output: &[u8],
) -> Result<(), HvStatus> {
    if output.is_empty() {
        return Ok(());
    }
    caller
        .memory()
        .write(address, output)
        .map_err(|_| HvStatus::INVALID_PARAMETER)
}

/// Checks the control word against the form of its call.
fn check_control(form: &Form, control: HypercallControl) -> Result<(), HvStatus> {
    let (count, start) = (control.rep_count(), control.rep_start());
    let repetitions_fit = match form.repetition {
        Some(_) => start < count,
        None => count == 0 && start == 0,
    };
    let right = control.reserved_bits_are_zero()
        && !control.nested()
        && (form.variable || control.variable_header_size() == 0)
        && repetitions_fit
        && (form.fast || !control.fast());
    if right {
        Ok(())
    } else {
        Err(HvStatus::INVALID_HYPERCALL_INPUT)
    }
}

/// Checks that a parameter block is aligned and within one page. A block of no bytes may
/// be anywhere.
fn check_block(address: u64, size: usize) -> Result<(), HvStatus> {
    let offset = address % HV_PAGE_SIZE;
    if size == 0 || (address.is_multiple_of(8) && offset + size as u64 <= HV_PAGE_SIZE) {
        Ok(())
    } else {
        Err(HvStatus::INVALID_ALIGNMENT)
    }
}

#[cfg(test)]
mod tests;
