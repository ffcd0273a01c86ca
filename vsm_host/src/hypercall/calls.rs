//! The calls themselves. Their input has been copied and has the size of their form.

use super::{direct, ipi, registers, translate};
use crate::guest_memory::GuestMemory;
use crate::log_text;
use crate::nested::{Access, ProtectError};
use crate::partition::guest::protections::Change;
use crate::partition::{Partition, Processor, Vp};
use crate::vtl::Vtl;
use boot_events::HOST_POWER_OFF;
use hv_defs::hypercall::{
    EnableVpVtl, EnterSleepState, GetVpIndexFromApicId, HV_SLEEP_STATE_S5, HvInputVtl, HvStatus,
    HypercallCode, ModifyVtlProtectionMask,
};
use hv_defs::intercept::InstallIntercept;
use hv_defs::{HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF};
use igvm_loader::StartContext;
use vsm_host_defs::ExitReason;
use zerocopy::{FromBytes, IntoBytes};

/// Who makes a call.
pub(super) struct Caller<'a, P> {
    pub partition: &'a Partition,
    pub vp: &'a mut Vp,
    pub processor: &'a P,
    /// Set by a call that ends the machine.
    pub end: Option<ExitReason>,
    /// Set by a call of the guest that VTL2 answers.
    pub intercepted: bool,
    /// Set by a call that suspends the VP.
    pub suspended: bool,
}

impl<'a, P: Processor> Caller<'a, P> {
    /// The caller's memory.
    pub(super) fn memory(&self) -> GuestMemory<'a, P> {
        self.partition.memory(self.vp.vtl, self.processor)
    }

    /// The VTL that an input names: the caller's own or a lower one.
    pub(super) fn target_vtl(&self, input: HvInputVtl) -> Result<Vtl, HvStatus> {
        const RESERVED: u8 = 0xe0;
        if input.into_bits() & RESERVED != 0 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if !input.use_target_vtl() {
            // The number does not count then, but there must not be one.
            return if input.target_vtl() == 0 {
                Ok(self.vp.vtl)
            } else {
                Err(HvStatus::INVALID_PARAMETER)
            };
        }
        self.lower_or_own(input.target_vtl())
    }

    /// The VTL with this number, if the caller may name it.
    pub(super) fn lower_or_own(&self, number: u8) -> Result<Vtl, HvStatus> {
        let vtl = Vtl::new(number).ok_or(HvStatus::INVALID_PARAMETER)?;
        if vtl.number() > self.vp.vtl.number() {
            return Err(HvStatus::ACCESS_DENIED);
        }
        Ok(vtl)
    }

    /// The VP that an input names.
    pub(super) fn target_vp(&self, index: u32) -> Result<u32, HvStatus> {
        match index {
            HV_VP_INDEX_SELF => Ok(self.vp.index),
            index if index < self.partition.vp_count() => Ok(index),
            _ => Err(HvStatus::INVALID_VP_INDEX),
        }
    }
}

/// Only the caller's own partition can be named.
pub(super) fn check_partition(id: u64) -> Result<(), HvStatus> {
    if id == HV_PARTITION_ID_SELF {
        Ok(())
    } else {
        Err(HvStatus::INVALID_PARTITION_ID)
    }
}

pub(super) fn check_zero(reserved: &[u8]) -> Result<(), HvStatus> {
    if reserved.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(HvStatus::INVALID_PARAMETER)
    }
}

/// Reads a structure from the start of a parameter block.
pub(super) fn parse<T: FromBytes>(bytes: &[u8]) -> Result<T, HvStatus> {
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)
}

/// A call without repetitions; it fills `output`.
pub(super) fn simple<P: Processor>(
    caller: &mut Caller<'_, P>,
    code: HypercallCode,
    input: &[u8],
    output: &mut [u8],
) -> Result<(), HvStatus> {
    match code {
        HypercallCode::INSTALL_INTERCEPT => {
            let input = parse::<InstallIntercept>(input)?;
            check_partition(input.partition_id)?;
            caller.partition.intercepts().install(&input)
        }
        HypercallCode::TRANSLATE_VIRTUAL_ADDRESS => {
            let result = translate::translate(caller, &parse(input)?)?;
            result
                .write_to(output)
                .map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)
        }
        HypercallCode::ENABLE_VP_VTL => {
            let input = parse::<EnableVpVtl>(input)?;
            let (vp, vtl, _) = vp_and_context(caller, &input)?;
            caller.partition.enable_vp_vtl(vp, vtl)
        }
        HypercallCode::START_VIRTUAL_PROCESSOR => {
            let input = parse::<EnableVpVtl>(input)?;
            let (vp, vtl, context) = vp_and_context(caller, &input)?;
            let partition = caller.partition;
            partition.start_vp(vp, vtl, context, caller.processor)
        }
        HypercallCode::ENTER_SLEEP_STATE => {
            if parse::<EnterSleepState>(input)?.sleep_state != HV_SLEEP_STATE_S5 {
                return Err(HvStatus::INVALID_PARAMETER);
            }
            let text = format_args!("{}", log_text(HOST_POWER_OFF));
            caller.processor.log(text);
            caller.end = Some(ExitReason::PowerOff);
            Ok(())
        }
        HypercallCode::POST_MESSAGE => direct::post_message(caller, &parse(input)?),
        HypercallCode::SIGNAL_EVENT => direct::signal_event(caller, &parse(input)?),
        HypercallCode::POST_MESSAGE_DIRECT => direct::post_message_direct(caller, &parse(input)?),
        HypercallCode::SIGNAL_EVENT_DIRECT => {
            let result = direct::signal_event_direct(caller, &parse(input)?)?;
            result
                .write_to(output)
                .map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)
        }
        HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI => ipi::send(caller, input),
        HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX => ipi::send_ex(caller, input),
        HypercallCode::ASSERT_VIRTUAL_INTERRUPT => {
            direct::assert_virtual_interrupt(caller, &parse(input)?)
        }
        _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
    }
}

/// A call with repetitions: works on `list` one by one, fills `output` and tells how many
/// it has done.
pub(super) fn repeated<P: Processor>(
    caller: &mut Caller<'_, P>,
    code: HypercallCode,
    header: &[u8],
    list: &[u8],
    output: &mut [u8],
) -> (Result<(), HvStatus>, usize) {
    let mut done = 0;
    let result = match code {
        HypercallCode::GET_VP_REGISTERS => registers::get(caller, header, list, output, &mut done),
        HypercallCode::SET_VP_REGISTERS => registers::set(caller, header, list, &mut done),
        HypercallCode::GET_VP_INDEX_FROM_APIC_ID => {
            vp_indices(caller, header, list, output, &mut done)
        }
        HypercallCode::MODIFY_VTL_PROTECTION_MASK => {
            modify_protection(caller, header, list, &mut done)
        }
        _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
    };
    (result, done)
}

/// Checks the common input of enabling a VTL on a VP and starting it.
fn vp_and_context<P: Processor>(
    caller: &mut Caller<'_, P>,
    input: &EnableVpVtl,
) -> Result<(u32, Vtl, StartContext), HvStatus> {
    check_partition(input.partition_id)?;
    check_zero(&input.rsvd)?;
    let vp = caller.target_vp(input.vp_index)?;
    let vtl = caller.lower_or_own(input.target_vtl)?;
    if vtl != caller.vp.vtl {
        // Lower VTLs are not enabled in the partition yet.
        return Err(HvStatus::INVALID_PARTITION_STATE);
    }
    let context = StartContext::new(input.vp_context).map_err(|error| {
        if caller.partition.may_report(caller.vp) {
            let text = format_args!("context for VP {vp} refused: {error}");
            caller.processor.log(text);
        }
        HvStatus::INVALID_REGISTER_VALUE
    })?;
    Ok((vp, vtl, context))
}

fn vp_indices<P: Processor>(
    caller: &Caller<'_, P>,
    header: &[u8],
    list: &[u8],
    output: &mut [u8],
    done: &mut usize,
) -> Result<(), HvStatus> {
    let header = parse::<GetVpIndexFromApicId>(header)?;
    check_partition(header.partition_id)?;
    check_zero(&header.rsvd)?;
    caller.target_vtl(header.target_vtl)?;
    // VTL2 asks for ids of the machine's firmware, whichever VTL it names.
    let vtl = caller.vp.vtl;
    for (apic_id, out) in list.chunks_exact(4).zip(output.chunks_exact_mut(4)) {
        let apic_id = parse::<u32>(apic_id)?;
        let index = caller.partition.vp_index(vtl, apic_id);
        let index = index.ok_or(HvStatus::INVALID_PARAMETER)?;
        out.copy_from_slice(&index.to_le_bytes());
        *done += 1;
    }
    Ok(())
}

fn modify_protection<P: Processor>(
    caller: &Caller<'_, P>,
    header: &[u8],
    list: &[u8],
    done: &mut usize,
) -> Result<(), HvStatus> {
    let header = parse::<ModifyVtlProtectionMask>(header)?;
    check_partition(header.partition_id)?;
    check_zero(&header.rsvd)?;
    let access = Access::new(header.map_flags).ok_or(HvStatus::INVALID_PARAMETER)?;
    let target = caller.target_vtl(header.target_vtl)?;
    if target == caller.vp.vtl {
        // A VTL protects itself from lower ones, not from itself.
        return Err(HvStatus::INVALID_PARAMETER);
    }
    if !caller.partition.vsm_config().enable_vtl_protection() {
        return Err(HvStatus::INVALID_PARTITION_STATE);
    }
    let change = Change::begin(caller.partition, caller.processor, caller.vp.index);
    for page in list.chunks_exact(size_of::<u64>()) {
        protect(caller, &change, target, parse(page)?, access)?;
        *done += 1;
    }
    Ok(())
}

/// Restricts what a lower VTL may do with one page of its RAM. RAM of the caller, which
/// the lower VTL does not have, may be taken from it once more but not given to it.
fn protect<P: Processor>(
    caller: &Caller<'_, P>,
    change: &Change<'_, P>,
    target: Vtl,
    page: u64,
    access: Access,
) -> Result<(), HvStatus> {
    let lower = caller.partition.memory(target, caller.processor);
    let Ok(address) = lower.check_page(page) else {
        let own = caller.memory().check_page(page);
        return match own {
            Ok(_) if access == Access::NONE => Ok(()),
            Ok(_) => Err(HvStatus::ACCESS_DENIED),
            Err(_) => Err(HvStatus::INVALID_PARAMETER),
        };
    };
    change
        .protect(address, access)
        .map_err(|error| match error {
            ProtectError::NotMapped => HvStatus::INVALID_PARAMETER,
            ProtectError::OutOfTables => HvStatus::INSUFFICIENT_MEMORY,
        })
}
