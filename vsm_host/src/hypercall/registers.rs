//! `GET_VP_REGISTERS` and `SET_VP_REGISTERS`.

use super::calls::{Caller, check_partition, check_zero, parse};
use super::{guest, private};
use crate::partition::counters::Refused;
use crate::partition::guest::lapic;
use crate::partition::overlay::CODE_PAGE_OFFSETS;
use crate::partition::{Processor, crash, debug};
use crate::vtl::Vtl;
use hv_defs::hypercall::{GetSetVpRegisters, HvMapGpaFlags, HvStatus};
use hv_defs::msr::OverlayPage;
use hv_defs::registers::{HvRegisterAssoc, HvRegisterName as Name, InternalActivity};
use hv_defs::vsm::{VsmCapabilities, VsmPartitionConfig, VsmPartitionStatus, VsmVpStatus};

const CRASH_P0: u32 = Name::GUEST_CRASH_P0.0;
const CRASH_P4: u32 = CRASH_P0 + crash::PARAMETERS as u32 - 1;

/// What the guest reads of itself by hypercall.
const GUESTS_OWN: [Name; 4] = [
    Name::VP_INDEX,
    Name::TIME_REF_COUNT,
    Name::GUEST_OS_ID,
    Name::VSM_VP_STATUS,
];

/// Bits of the partition's VSM configuration that the TLFS defines.
const VSM_CONFIG_DEFINED: u64 = 0xffff;

pub(super) fn get<P: Processor>(
    caller: &mut Caller<'_, P>,
    header: &[u8],
    names: &[u8],
    values: &mut [u8],
    done: &mut usize,
) -> Result<(), HvStatus> {
    let (vp, vtl) = check_header(caller, header)?;
    sync(caller, vp, vtl);
    for (name, out) in names.chunks_exact(4).zip(values.chunks_exact_mut(16)) {
        let name = parse(name)?;
        let value = match of_lower(caller, vp, vtl, name)? {
            Place::Processor => private::read(caller.vp, vtl, Name(name)),
            Place::Host => Some(guest::read(caller, Name(name))?.into()),
            Place::Other => Some(read(caller, vp, vtl, name)?.into()),
        };
        let value = value.ok_or_else(|| unknown(caller, name))?;
        out.copy_from_slice(&value.to_le_bytes());
        *done += 1;
    }
    Ok(())
}

pub(super) fn set<P: Processor>(
    caller: &mut Caller<'_, P>,
    header: &[u8],
    list: &[u8],
    done: &mut usize,
) -> Result<(), HvStatus> {
    let (vp, vtl) = check_header(caller, header)?;
    sync(caller, vp, vtl);
    for element in list.chunks_exact(size_of::<HvRegisterAssoc>()) {
        let assoc = parse::<HvRegisterAssoc>(element)?;
        if assoc.pad != [0; 3] {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if vtl != caller.vp.vtl {
            write_lower(caller, vp, vtl, &assoc)?;
        } else if let [value, 0] = assoc.value {
            write(caller, vp, assoc.name, value)?;
        } else {
            return Err(HvStatus::INVALID_REGISTER_VALUE);
        }
        *done += 1;
        if caller.suspended {
            // Nobody is there any more to write the others for.
            break;
        }
    }
    Ok(())
}

/// Checks what comes before the list and yields the VP and the VTL that are meant.
fn check_header<P: Processor>(
    caller: &Caller<'_, P>,
    header: &[u8],
) -> Result<(u32, Vtl), HvStatus> {
    let header = parse::<GetSetVpRegisters>(header)?;
    check_partition(header.partition_id)?;
    check_zero(&header.rsvd)?;
    let vtl = caller.target_vtl(header.target_vtl)?;
    Ok((caller.target_vp(header.vp_index)?, vtl))
}

/// Where a register of a lower VTL is; those of the caller's own VTL are in the processor,
/// where the caller has them.
enum Place {
    /// State of the processor.
    Processor,
    /// State that the host keeps for the guest.
    Host,
    /// Neither.
    Other,
}

fn of_lower<P: Processor>(
    caller: &Caller<'_, P>,
    vp: u32,
    vtl: Vtl,
    name: u32,
) -> Result<Place, HvStatus> {
    if vtl == caller.vp.vtl {
        return Ok(Place::Other);
    }
    let place = if private::is(Name(name)) {
        Place::Processor
    } else if guest::is(Name(name)) {
        Place::Host
    } else {
        return Ok(Place::Other);
    };
    check_self(caller, vp)?;
    Ok(place)
}

/// Lets what has been sent to the guest come before what VTL2 does to its registers.
fn sync<P: Processor>(caller: &mut Caller<'_, P>, vp: u32, vtl: Vtl) {
    if vtl != caller.vp.vtl && vp == caller.vp.index {
        lapic::sync_registers(caller.partition, caller.vp, caller.processor);
    }
}

/// Writes a register of a lower VTL.
fn write_lower<P: Processor>(
    caller: &mut Caller<'_, P>,
    vp: u32,
    vtl: Vtl,
    assoc: &HvRegisterAssoc,
) -> Result<(), HvStatus> {
    let name = Name(assoc.name);
    match of_lower(caller, vp, vtl, assoc.name)? {
        Place::Processor => private::write(caller.vp, vtl, name, assoc.value)
            .unwrap_or_else(|| Err(unknown(caller, assoc.name))),
        Place::Host => guest::write(caller, name, assoc.value),
        Place::Other => Err(unknown(caller, assoc.name)),
    }
}

/// Fails unless the caller itself is meant: the registers of a VP that runs are in the
/// hands of its CPU.
pub(super) fn check_self<P: Processor>(caller: &Caller<'_, P>, vp: u32) -> Result<(), HvStatus> {
    if vp == caller.vp.index {
        Ok(())
    } else {
        Err(HvStatus::INVALID_VP_STATE)
    }
}

fn read<P: Processor>(
    caller: &Caller<'_, P>,
    vp: u32,
    vtl: Vtl,
    name: u32,
) -> Result<u64, HvStatus> {
    let partition = caller.partition;
    let own = &caller.vp.vtls[vtl.index()];
    if caller.vp.vtl == Vtl::GUEST && !GUESTS_OWN.contains(&Name(name)) {
        return Err(HvStatus::ACCESS_DENIED);
    }
    Ok(match Name(name) {
        Name::VP_INDEX => vp.into(),
        Name::VSM_VP_STATUS => {
            check_self(caller, vp)?;
            VsmVpStatus::new()
                .with_active_vtl(caller.vp.vtl.number())
                .with_enabled_vtl_set(partition.enabled_vtls(vp))
                .into()
        }
        Name::VSM_CODE_PAGE_OFFSETS => CODE_PAGE_OFFSETS.into(),
        Name::VSM_PARTITION_STATUS => VsmPartitionStatus::new()
            .with_enabled_vtl_set(1 << Vtl::PARAVISOR.number())
            .with_maximum_vtl(Vtl::PARAVISOR.number())
            .into(),
        // Linux crashes at the first intercept if there is no intercept page.
        Name::VSM_CAPABILITIES => VsmCapabilities::new()
            .with_intercept_page_available(true)
            .into(),
        Name::VSM_PARTITION_CONFIG => partition.vsm_config().into(),
        Name::GUEST_OS_ID => partition.guest_os_id(vtl),
        Name::TIME_REF_COUNT => partition.reference_time(caller.processor),
        Name::VP_ASSIST_PAGE => {
            check_self(caller, vp)?;
            own.assist.into()
        }
        Name::REG_PAGE => {
            check_self(caller, vp)?;
            own.register_page.into()
        }
        name if let Some(number) = guest::debug_address(name) => {
            check_self(caller, vp)?;
            debug::addresses(caller.vp, vtl, caller.processor)[number]
        }
        // Who asks is active.
        Name::INTERNAL_ACTIVITY_STATE => {
            check_self(caller, vp)?;
            InternalActivity::new().into()
        }
        Name(CRASH_P0..=CRASH_P4) => partition.crash_parameter(vtl, (name - CRASH_P0) as usize),
        Name::GUEST_CRASH_CTL => crash::SUPPORTED.into(),
        _ => return Err(unknown(caller, name)),
    })
}

fn write<P: Processor>(
    caller: &mut Caller<'_, P>,
    vp: u32,
    name: u32,
    value: u64,
) -> Result<(), HvStatus> {
    let partition = caller.partition;
    let vtl = caller.vp.vtl;
    let bad_value = |_| HvStatus::INVALID_REGISTER_VALUE;
    match Name(name) {
        Name::VSM_PARTITION_CONFIG => partition.set_vsm_config(value.into())?,
        Name::GUEST_OS_ID => partition
            .set_guest_os_id(vtl, &caller.memory(), value)
            .map_err(bad_value)?,
        Name::VP_ASSIST_PAGE => {
            check_self(caller, vp)?;
            partition
                .set_assist_page(caller.vp, caller.processor, value.into())
                .map_err(bad_value)?;
        }
        Name::REG_PAGE => {
            check_self(caller, vp)?;
            let register = OverlayPage::from(value);
            if register.enabled() {
                caller
                    .memory()
                    .check_page(register.page_number())
                    .map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
            }
            caller
                .partition
                .take_register_page(caller.vp, caller.processor);
            caller.vp.vtls[vtl.index()].register_page = register;
        }
        name if let Some(number) = guest::debug_address(name) => {
            check_self(caller, vp)?;
            debug::set_address(caller.vp, vtl, caller.processor, number, value);
        }
        Name::INTERNAL_ACTIVITY_STATE => {
            check_self(caller, vp)?;
            let state = InternalActivity::from_bits(value);
            if state != InternalActivity::new().with_startup_suspend(state.startup_suspend()) {
                return Err(HvStatus::INVALID_REGISTER_VALUE);
            }
            caller.suspended = state.startup_suspend();
        }
        Name(CRASH_P0..=CRASH_P4) => {
            partition.set_crash_parameter(vtl, (name - CRASH_P0) as usize, value);
        }
        Name::GUEST_CRASH_CTL => {
            partition.report_crash(caller.vp, vtl, caller.processor, value.into());
        }
        // These are known, but nobody sets them.
        Name::VP_INDEX
        | Name::VSM_VP_STATUS
        | Name::VSM_CODE_PAGE_OFFSETS
        | Name::VSM_PARTITION_STATUS
        | Name::VSM_CAPABILITIES
        | Name::TIME_REF_COUNT => return Err(HvStatus::ACCESS_DENIED),
        _ => return Err(unknown(caller, name)),
    }
    Ok(())
}

fn unknown<P: Processor>(caller: &Caller<'_, P>, name: u32) -> HvStatus {
    caller.partition.counters.count(Refused::Register(name));
    HvStatus::INVALID_PARAMETER
}

/// Checks a change of the partition's VSM configuration. Pages are protected one by one,
/// not by default.
pub(crate) fn check_vsm_config(
    old: VsmPartitionConfig,
    new: VsmPartitionConfig,
) -> Result<(), HvStatus> {
    let all = u32::from(HvMapGpaFlags::ALL) as u8;
    let other_default = new.enable_vtl_protection() && new.default_vtl_protection_mask() != all;
    let protection_taken_back = old.enable_vtl_protection() && !new.enable_vtl_protection();
    if new.into_bits() & !VSM_CONFIG_DEFINED != 0 || protection_taken_back || other_default {
        return Err(HvStatus::INVALID_REGISTER_VALUE);
    }
    Ok(())
}
