//! The hypercalls of VTL2 that need no connection: their inputs, checked.

use hv_defs::hypercall::HvStatus;
use hv_defs::synic::{
    HV_EVENT_FLAGS_COUNT, HV_SYNIC_SINT_COUNT, HvMessage, HvMessageType, PostMessageDirect,
    SignalEventDirect,
};
use zerocopy::FromBytes;

/// HvCallPostMessageDirect: give it to [`crate::Synic::post_direct`] of the VP and VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectMessage {
    /// VP; may be `HV_VP_INDEX_SELF`.
    pub vp_index: u32,
    /// VTL.
    pub vtl: u8,
    /// Source.
    pub sint: u8,
    /// Message.
    pub message: HvMessage,
}

impl DirectMessage {
    /// Checks what does not depend on the target; partition, VP and VTL are the caller's to
    /// check.
    ///
    /// # Errors
    /// `INVALID_PARAMETER`.
    pub fn new(input: &PostMessageDirect) -> Result<Self, HvStatus> {
        let message =
            HvMessage::read_from_bytes(&input.message).map_err(|_| HvStatus::INVALID_PARAMETER)?;
        let valid = input.rsvd1 == [0; 3]
            && input.rsvd2 == [0; 3]
            && usize::from(input.sint) < HV_SYNIC_SINT_COUNT
            && message.header.message_type != HvMessageType::NONE
            && usize::from(message.header.payload_size) <= message.payload.len();
        valid
            .then_some(Self {
                vp_index: input.vp_index,
                vtl: input.vtl,
                sint: input.sint,
                message,
            })
            .ok_or(HvStatus::INVALID_PARAMETER)
    }
}

/// HvCallSignalEventDirect: give it to [`crate::Synic::signal`] of the VP and VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectEvent {
    /// VP; may be `HV_VP_INDEX_SELF`.
    pub vp_index: u32,
    /// VTL.
    pub vtl: u8,
    /// Source.
    pub sint: u8,
    /// Flag.
    pub flag: u16,
}

impl DirectEvent {
    /// See [`DirectMessage::new`].
    ///
    /// # Errors
    /// `INVALID_PARAMETER`.
    pub fn new(input: &SignalEventDirect) -> Result<Self, HvStatus> {
        let valid = usize::from(input.sint) < HV_SYNIC_SINT_COUNT
            && input.flag_number < HV_EVENT_FLAGS_COUNT;
        valid
            .then_some(Self {
                vp_index: input.vp_index,
                vtl: input.vtl,
                sint: input.sint,
                flag: input.flag_number,
            })
            .ok_or(HvStatus::INVALID_PARAMETER)
    }
}
