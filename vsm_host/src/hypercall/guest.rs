//! State of the guest that VTL2 reads and writes beside the processor's own: its events,
//! its interrupt controllers, the pages of the host in its memory.
//!
//! VTL2 resets the guest with these. A write does what it says whatever the guest has done
//! before: a locked page goes, and the APIC goes from any mode to any other.

use super::calls::Caller;
use crate::cpuid;
use crate::partition::guest::lapic;
use crate::partition::guest::registers::{interrupt_state, pending_interruption};
use crate::partition::{Processor, debug, synic};
use crate::svm::nmi::Nmis;
use crate::svm::vmcb::{Exception, SHADOW};
use crate::vtl::Vtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::registers::{
    DeliverabilityNotifications, HvRegisterName as Name, InternalActivity, InterruptState,
    InterruptionType, PENDING_EVENT_EXCEPTION, PENDING_EVENT_EXT_INT, PendingEvent,
    PendingInterruption,
};
use vapic::Apics;
use x86_defs::apic::ApicBase;
use x86_defs::msr::APIC_BASE;
use x86_defs::svm::{EventInjection, Vmcb};

const GUEST: usize = Vtl::GUEST.index();
/// CPUID leaf of extended state.
const XSAVE_LEAF: u32 = 0xd;
const EXCEPTIONS: u16 = 32;
const NMI_VECTOR: u16 = 2;
const PAGE_FAULT: u16 = 14;
/// Bit of `PendingEvent::vector_or_flags` of an exception.
const HAS_ERROR_CODE: u8 = 1;

/// Which of DR0 to DR3 a register is.
pub(super) fn debug_address(name: Name) -> Option<usize> {
    let number = name.0.checked_sub(Name::DR0.0)?;
    (name.0 <= Name::DR3.0).then_some(number as usize)
}

/// Whether a register is such state.
pub(super) fn is(name: Name) -> bool {
    ::synic::msr_of_register(name.0).is_some()
        || debug_address(name).is_some()
        || matches!(
            name,
            Name::APIC_BASE
                | Name::XFEM
                | Name::MTRR_DEF_TYPE
                | Name::INTERNAL_ACTIVITY_STATE
                | Name::PENDING_INTERRUPTION
                | Name::INTERRUPT_STATE
                | Name::PENDING_EVENT0
                | Name::PENDING_EVENT1
                | Name::DELIVERABILITY_NOTIFICATIONS
                | Name::GUEST_OS_ID
                | Name::HYPERCALL
                | Name::REFERENCE_TSC
                | Name::VP_ASSIST_PAGE
        )
}

/// Reads a register for which [`is`] is true.
pub(super) fn read<P: Processor>(caller: &mut Caller<'_, P>, name: Name) -> Result<u64, HvStatus> {
    let (partition, processor) = (caller.partition, caller.processor);
    let vp = &mut *caller.vp;
    if let Some(msr) = ::synic::msr_of_register(name.0) {
        return synic::read_msr(partition, vp, Vtl::GUEST, msr).map_err(bad_value);
    }
    if let Some(number) = debug_address(name) {
        return Ok(debug::addresses(vp, Vtl::GUEST, processor)[number]);
    }
    let vmcb = &vp.vtls[GUEST].vmcb;
    Ok(match name {
        Name::APIC_BASE => {
            lapic::read_msr(partition, vp, processor, APIC_BASE).map_err(bad_value)?
        }
        Name::XFEM => processor.xcr0(),
        Name::MTRR_DEF_TYPE => vp.mtrr_def_type(),
        Name::INTERNAL_ACTIVITY_STATE => InternalActivity::new()
            .with_startup_suspend(vp.lapic.waits_for_startup())
            .with_halt_suspend(vp.lapic.halted())
            .into(),
        Name::PENDING_INTERRUPTION => pending_interruption(vmcb.control.event_injection).into(),
        Name::INTERRUPT_STATE => interrupt_state(&vp.vtls[GUEST]).into(),
        Name::DELIVERABILITY_NOTIFICATIONS => DeliverabilityNotifications::new()
            .with_sints(synic::awaited(partition, vp))
            .into(),
        Name::GUEST_OS_ID => partition.guest_os_id(Vtl::GUEST),
        Name::HYPERCALL => partition.hypercall_page(Vtl::GUEST).into(),
        Name::REFERENCE_TSC => partition.reference_tsc(Vtl::GUEST).into(),
        Name::VP_ASSIST_PAGE => vp.vtls[GUEST].assist.into(),
        // Events become pending interruptions or requests of the APIC at once.
        _ => 0,
    })
}

/// Writes a register for which [`is`] is true.
pub(super) fn write<P: Processor>(
    caller: &mut Caller<'_, P>,
    name: Name,
    [value, high]: [u64; 2],
) -> Result<(), HvStatus> {
    let (partition, processor) = (caller.partition, caller.processor);
    let vp = &mut *caller.vp;
    if name == Name::PENDING_EVENT0 {
        return set_event(caller, value.into(), high);
    }
    if high != 0 {
        return Err(HvStatus::INVALID_REGISTER_VALUE);
    }
    if let Some(msr) = ::synic::msr_of_register(name.0) {
        return synic::write_msr(partition, vp, Vtl::GUEST, processor, (msr, value))
            .map_err(bad_value);
    }
    if let Some(number) = debug_address(name) {
        debug::set_address(vp, Vtl::GUEST, processor, number, value);
        return Ok(());
    }
    // VTL2 may change what it protects from the guest.
    let memory = partition.all_memory(Vtl::GUEST, processor);
    match name {
        Name::APIC_BASE => set_apic_base(caller, value)?,
        Name::XFEM => {
            let [offered, ..] = processor.cpuid(XSAVE_LEAF, 0);
            must(cpuid::is_valid_xcr0(offered, value))?;
            processor.set_xcr0(value);
        }
        Name::MTRR_DEF_TYPE => must(vp.set_mtrr_def_type(value))?,
        Name::INTERNAL_ACTIVITY_STATE => {
            let state = InternalActivity::from_bits(value);
            must(state.reserved_bits_are_zero() && !state.idle_suspend())?;
            vp.lapic.set_waits_for_startup(state.startup_suspend());
            vp.lapic.set_halted(state.halt_suspend());
        }
        Name::PENDING_INTERRUPTION => {
            let state = &mut vp.vtls[GUEST];
            set_interruption(&mut state.vmcb, &mut state.nmis, value.into())?;
        }
        Name::INTERRUPT_STATE => {
            let interrupts = InterruptState::from_bits(value);
            must(interrupts.reserved_bits_are_zero())?;
            let state = &mut vp.vtls[GUEST];
            state.vmcb.control.interrupt_shadow = state.vmcb.control.interrupt_shadow & !SHADOW
                | u64::from(interrupts.interrupt_shadow());
            state
                .nmis
                .set_handled(&mut state.vmcb, interrupts.nmi_masked());
        }
        Name::DELIVERABILITY_NOTIFICATIONS => {
            let wanted = DeliverabilityNotifications::from_bits(value);
            // Interrupts wait in the APIC until they can be delivered.
            must(wanted.reserved_bits_are_zero() && !wanted.nmi() && !wanted.interrupt())?;
            synic::await_ready(partition, vp, wanted.sints());
        }
        Name::GUEST_OS_ID => partition
            .set_guest_os_id(Vtl::GUEST, &memory, value)
            .map_err(bad_value)?,
        Name::HYPERCALL => partition
            .set_hypercall_page(Vtl::GUEST, &memory, value.into())
            .map_err(bad_value)?,
        Name::REFERENCE_TSC => partition
            .set_reference_tsc(Vtl::GUEST, &memory, value.into())
            .map_err(bad_value)?,
        Name::VP_ASSIST_PAGE => partition
            .set_assist_page_of(vp, Vtl::GUEST, processor, value.into())
            .map_err(bad_value)?,
        // There is nothing that could be pending here.
        _ => must(value == 0)?,
    }
    Ok(())
}

fn bad_value(_: Exception) -> HvStatus {
    HvStatus::INVALID_REGISTER_VALUE
}

fn must(condition: bool) -> Result<(), HvStatus> {
    if condition {
        Ok(())
    } else {
        Err(HvStatus::INVALID_REGISTER_VALUE)
    }
}

/// The APIC goes to another mode by way of being off, as software would have it go.
fn set_apic_base<P: Processor>(caller: &mut Caller<'_, P>, value: u64) -> Result<(), HvStatus> {
    let (partition, processor) = (caller.partition, caller.processor);
    let base = ApicBase::from_bits(value);
    let old = lapic::read_msr(partition, caller.vp, processor, APIC_BASE).map_err(bad_value)?;
    must(base.enabled() || !base.x2apic())?;
    if (old ^ value) & MODE == 0 {
        return set_apic_mode(caller, base);
    }
    set_apic_mode(caller, base.with_enabled(false).with_x2apic(false))?;
    if base.enabled() {
        set_apic_mode(caller, base.with_x2apic(false))?;
    }
    set_apic_mode(caller, base)
}

/// Bits of the base that are the mode.
const MODE: u64 = ApicBase::new()
    .with_enabled(true)
    .with_x2apic(true)
    .into_bits();

fn set_apic_mode<P: Processor>(caller: &mut Caller<'_, P>, base: ApicBase) -> Result<(), HvStatus> {
    let (partition, processor) = (caller.partition, caller.processor);
    lapic::write_msr(partition, caller.vp, processor, APIC_BASE, base.into_bits())
        .map(|_| ())
        .map_err(bad_value)
}

/// What the guest takes when it runs next.
fn set_interruption(
    vmcb: &mut Vmcb,
    nmis: &mut Nmis,
    interruption: PendingInterruption,
) -> Result<(), HvStatus> {
    must(interruption.reserved_bits_are_zero() && !interruption.nested())?;
    if !interruption.pending() {
        vmcb.control.event_injection = EventInjection::new();
        return Ok(());
    }
    let kind = InterruptionType(interruption.kind());
    let vector = u8::try_from(interruption.vector());
    let vector = vector.map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
    let mut event = EventInjection::new().with_valid(true).with_vector(vector);
    match kind {
        InterruptionType::INTERRUPT | InterruptionType::SOFTWARE_INTERRUPT => {
            must(!interruption.deliver_error_code())?;
        }
        InterruptionType::NMI => {
            must(interruption.vector() == NMI_VECTOR && !interruption.deliver_error_code())?;
            nmis.inject(vmcb);
            return Ok(());
        }
        InterruptionType::EXCEPTION => {
            must(interruption.vector() < EXCEPTIONS && interruption.vector() != NMI_VECTOR)?;
            event = event
                .with_has_error_code(interruption.deliver_error_code())
                .with_error_code(interruption.error_code());
        }
        _ => return Err(HvStatus::INVALID_REGISTER_VALUE),
    }
    vmcb.control.event_injection = event.with_kind(kind.0);
    Ok(())
}

/// An event that VTL2 has made up.
fn set_event<P: Processor>(
    caller: &mut Caller<'_, P>,
    event: PendingEvent,
    parameter: u64,
) -> Result<(), HvStatus> {
    if !event.pending() {
        return must(parameter == 0);
    }
    match event.kind() {
        PENDING_EVENT_EXT_INT => {
            must(parameter == 0)?;
            // It waits for the guest's IF in the APIC.
            let apics = lapic::apics(caller.partition, caller.processor);
            let vp = caller.vp.index;
            if apics.shared(vp).post_extint(event.vector_or_flags()) {
                apics.kick(vp);
            }
            Ok(())
        }
        PENDING_EVENT_EXCEPTION => {
            let interruption = PendingInterruption::new()
                .with_pending(true)
                .with_kind(InterruptionType::EXCEPTION.0)
                .with_deliver_error_code(event.vector_or_flags() & HAS_ERROR_CODE != 0)
                .with_vector(event.exception_vector())
                .with_error_code(event.error_code());
            let state = &mut caller.vp.vtls[GUEST];
            set_interruption(&mut state.vmcb, &mut state.nmis, interruption)?;
            if event.exception_vector() == PAGE_FAULT {
                // Shared by the VTLs of a VP.
                caller.vp.vmcb_mut().save.cr2 = parameter;
            }
            Ok(())
        }
        _ => Err(HvStatus::INVALID_REGISTER_VALUE),
    }
}
