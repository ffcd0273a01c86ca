//! Messages that wait for their slot: TLFS "Message Buffers".

use hv_defs::synic::HvMessage;

/// Buffers for messages of others, per VP and VTL. The TLFS has as many per port.
pub const GUEST_MESSAGES: usize = 16;
/// One more for an intercept: the VP that it concerns stands still until it is handled.
pub(crate) const BUFFERS: usize = GUEST_MESSAGES + 1;
const INTERCEPT: usize = GUEST_MESSAGES;

/// A message that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) sint: u8,
    /// Of two messages for one slot the lower goes first.
    pub(crate) order: u64,
    pub(crate) message: HvMessage,
}

/// The buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Buffers(pub(crate) [Option<Waiting>; BUFFERS]);

impl Buffers {
    pub(crate) const EMPTY: Self = Self([None; BUFFERS]);

    /// A free buffer.
    pub(crate) fn free(&mut self, intercept: bool) -> Option<&mut Option<Waiting>> {
        if intercept {
            Some(&mut self.0[INTERCEPT])
        } else {
            self.0[..INTERCEPT].iter_mut().find(|b| b.is_none())
        }
        .filter(|buffer| buffer.is_none())
    }

    /// Buffers with messages for a slot: place and order.
    pub(crate) fn of(&self, sint: u8) -> impl Iterator<Item = (usize, u64)> {
        self.0
            .iter()
            .enumerate()
            .filter_map(move |(place, buffer)| {
                let waiting = buffer.as_ref().filter(|waiting| waiting.sint == sint)?;
                Some((place, waiting.order))
            })
    }
}
