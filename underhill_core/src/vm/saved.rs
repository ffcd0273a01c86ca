//! What one worker leaves to the next of a guest. The guest's memory and registers stay
//! where they are: with the host and the kernel.

use super::GuestState;
use chipset::SavedChipset;

/// State of a VM.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SavedVm {
    /// The devices; none before the guest's first start.
    #[prost(message, optional, tag = "1")]
    pub(crate) chipset: Option<SavedChipset>,
    /// Where the guest is in its life, see [`SavedVm::state`].
    #[prost(uint32, tag = "2")]
    state: u32,
    /// Its resets so far.
    #[prost(uint64, tag = "3")]
    pub(crate) resets: u64,
}

/// Tags of the states. 0 is that of a message without one.
const STATES: [(u32, GuestState); 5] = [
    (1, GuestState::Running),
    (2, GuestState::Paused),
    (3, GuestState::PoweredOff),
    (4, GuestState::Crashed),
    (5, GuestState::Stopped),
];

impl SavedVm {
    pub(crate) fn new(state: GuestState, resets: u64, chipset: Option<SavedChipset>) -> Self {
        let tag = STATES.iter().find(|(_, known)| *known == state);
        Self {
            chipset,
            state: tag.map_or(0, |(tag, _)| *tag),
            resets,
        }
    }

    /// Where the guest is in its life. A state that this program does not know does not
    /// run.
    pub(crate) fn state(&self) -> GuestState {
        let known = STATES.iter().find(|(tag, _)| *tag == self.state);
        known.map_or(GuestState::Stopped, |(_, state)| *state)
    }
}
