//! Messages, events and interrupts: to connections, and of VTL2 to VPs of a VTL.

use super::calls::{Caller, check_partition};
use crate::partition::guest::lapic;
use crate::partition::{Processor, synic, vmbus};
use crate::vtl::Vtl;
use ::synic::{
    Connection, Connections, DirectEvent, DirectMessage, MessageRoute, Port, PortKind, TargetVp,
};
use hv_defs::hypercall::{HvStatus, HypercallCode};
use hv_defs::synic::{
    AssertVirtualInterrupt, PostMessage, PostMessageDirect, SignalEvent, SignalEventDirect,
    SignalEventDirectOutput,
};
use vmbus_defs::{CONNECTION_ID, CONNECTION_ID_4, DEFAULT_SINT};

/// VTL2 can send messages to the host's end of its VMBus. The guest has no connection.
const CONNECTIONS: Connections<'_> = Connections(&[
    vmbus_connection(CONNECTION_ID),
    vmbus_connection(CONNECTION_ID_4),
]);

const fn vmbus_connection(id: u32) -> Connection {
    Connection {
        sender_vtl: Vtl::PARAVISOR.number(),
        first: id,
        last: id,
        // The host takes the messages itself, so where the port is does not matter.
        port: Port {
            id,
            vtl: Vtl::PARAVISOR.number(),
            vp: TargetVp::Any,
            sint: DEFAULT_SINT,
            kind: PortKind::Message,
        },
    }
}

pub(super) fn post_message<P: Processor>(
    caller: &mut Caller<'_, P>,
    input: &PostMessage,
) -> Result<(), HvStatus> {
    let vtl = caller.vp.vtl.number();
    let result = match CONNECTIONS.message(vtl, input) {
        Ok(MessageRoute {
            header: (message_type, _),
            payload,
            ..
        }) => vmbus::receive(caller.partition, caller.processor, message_type, payload),
        Err(status) => Err(status),
    };
    unknown_connection(caller, result)
}

pub(super) fn signal_event<P: Processor>(
    caller: &mut Caller<'_, P>,
    input: &SignalEvent,
) -> Result<(), HvStatus> {
    let vtl = caller.vp.vtl.number();
    let result = CONNECTIONS.event(vtl, input).map(|_| ());
    unknown_connection(caller, result)
}

/// Lets VTL2 look at what the guest sends to a connection that the host does not know.
fn unknown_connection<P: Processor>(
    caller: &mut Caller<'_, P>,
    result: Result<(), HvStatus>,
) -> Result<(), HvStatus> {
    caller.intercepted = result == Err(HvStatus::INVALID_CONNECTION_ID)
        && caller.vp.vtl == Vtl::GUEST
        && caller.partition.intercepts().unknown_connection();
    result
}

/// Lets VTL2 look at a call of the guest that the host does not know, if it wants to.
pub(super) fn unknown_call<P: Processor>(caller: &mut Caller<'_, P>, code: HypercallCode) {
    let intercepts = caller.partition.intercepts();
    let wanted = intercepts.hypercall()
        || code == HypercallCode::RETARGET_DEVICE_INTERRUPT && intercepts.retarget_interrupt();
    caller.intercepted = wanted && caller.vp.vtl == Vtl::GUEST;
}

pub(super) fn post_message_direct<P: Processor>(
    caller: &Caller<'_, P>,
    input: &PostMessageDirect,
) -> Result<(), HvStatus> {
    check_partition(input.partition_id)?;
    let direct = DirectMessage::new(input)?;
    let vtl = caller.lower_or_own(direct.vtl)?;
    let vp = caller.target_vp(direct.vp_index)?;
    synic::post_direct(caller.partition, caller.processor, (vp, vtl), &direct)
}

pub(super) fn signal_event_direct<P: Processor>(
    caller: &Caller<'_, P>,
    input: &SignalEventDirect,
) -> Result<SignalEventDirectOutput, HvStatus> {
    check_partition(input.partition_id)?;
    let direct = DirectEvent::new(input)?;
    let vtl = caller.lower_or_own(direct.vtl)?;
    let vp = caller.target_vp(direct.vp_index)?;
    let newly = synic::signal_direct(caller.partition, caller.processor, (vp, vtl), &direct)?;
    Ok(SignalEventDirectOutput {
        newly_signaled: newly.into(),
        rsvd: [0; 7],
    })
}

pub(super) fn assert_virtual_interrupt<P: Processor>(
    caller: &Caller<'_, P>,
    input: &AssertVirtualInterrupt,
) -> Result<(), HvStatus> {
    check_partition(input.partition_id)?;
    // VTL2 has a physical APIC, and sends its interrupts itself.
    if caller.lower_or_own(input.target_vtl)? != Vtl::GUEST {
        return Err(HvStatus::ACCESS_DENIED);
    }
    let apics = lapic::apics(caller.partition, caller.processor);
    vapic::assert_virtual_interrupt(&apics, input)
}
