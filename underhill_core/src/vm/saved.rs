//! What one worker leaves to the next of a guest. The guest's memory and registers stay
//! where they are: with the host and the kernel.

use super::GuestState;
use super::Happening;
use super::serial::SavedPort;
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
    /// COM1 and COM2.
    #[prost(message, repeated, tag = "4")]
    pub(super) serial: Vec<SavedPort>,
    /// What a VP has told, and nobody has handled yet.
    #[prost(message, optional, tag = "5")]
    pub(super) happening: Option<SavedHappening>,
    /// VPs that have left the sidecar.
    #[prost(message, repeated, tag = "6")]
    pub(super) moves: Vec<SavedMove>,
}

/// How a VP has come from the sidecar to Linux.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SavedMove {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub(super) vp: u32,
    /// Why.
    #[prost(string, tag = "2")]
    pub(super) reason: String,
    /// When, since the start of VTL2's kernel.
    #[prost(uint64, tag = "3")]
    pub(super) at_ns: u64,
    /// How long that took.
    #[prost(uint64, tag = "4")]
    pub(super) took_ns: u64,
}

/// A [`Happening`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SavedHappening {
    /// Which: its place among the four, from 1.
    #[prost(uint32, tag = "1")]
    kind: u32,
    /// What it has to say.
    #[prost(string, tag = "2")]
    text: String,
}

impl From<Happening> for SavedHappening {
    fn from(happening: Happening) -> Self {
        let (kind, text) = match happening {
            Happening::PoweredOff => (1, String::new()),
            Happening::Reset(source) => (2, source),
            Happening::Crashed(report) => (3, report),
            Happening::Stopped(report) => (4, report),
        };
        Self { kind, text }
    }
}

impl SavedHappening {
    /// `None`: none that this program knows.
    pub(super) fn happening(self) -> Option<Happening> {
        match self.kind {
            1 => Some(Happening::PoweredOff),
            2 => Some(Happening::Reset(self.text)),
            3 => Some(Happening::Crashed(self.text)),
            4 => Some(Happening::Stopped(self.text)),
            _ => None,
        }
    }
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
            serial: Vec::new(),
            happening: None,
            moves: Vec::new(),
        }
    }

    /// Where the guest is in its life. A state that this program does not know does not
    /// run.
    pub(crate) fn state(&self) -> GuestState {
        let known = STATES.iter().find(|(tag, _)| *tag == self.state);
        known.map_or(GuestState::Stopped, |(_, state)| *state)
    }
}
